"""Every key of every recipe, misspelt, of the wrong type, and removed; and texts with random damage."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentsb.errors import RecipeError
from latentsb.recipe import Recipe
from latentsb.recipe.nodes import dump
from latentsb.recipe.sources import shipped

TOYS = Path(__file__).with_name("toy_parts.py")
TOY = "data: toy_data\nbridge: {name: toy_bridge, others: [toy_line], network: {name: toy_net, width: 64}}\n"
TOY += "solver: toy_solver\nstages: [{train: autoencoder, lr: 1}, {train: bridge}]\n"
RECIPES = {"toy": TOY} | {name: path.read_text(encoding="utf-8") for name, path in shipped().items()}


def resolved(name: str) -> dict[str, Any]:
    values = Recipe.parse(RECIPES[name], (), [TOYS]).resolved()
    return {key: value for key, value in values.items() if key not in ("imports", "about", "name")}


def keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        yield from keys(inner, (*path, key))


def holder(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path[:-1]:
        value = value[step]
    return value


def problems(values: dict[str, Any]) -> tuple[Any, ...]:
    try:
        Recipe.parse(dump(values), (), [TOYS])
    except RecipeError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("name", RECIPES)
def test_a_misspelt_key_is_named_and_the_right_one_suggested(name):
    base, tried, suggested = resolved(name), 0, 0
    for path in keys(base):
        word = str(path[-1])
        values = copy.deepcopy(base)
        inside = holder(values, path)
        misspelt = word[:-2] + word[-1] + word[-2] if len(word) > 2 and word[-1] != word[-2] else word + "x"
        inside[misspelt] = inside.pop(word)
        found = [p for p in problems(values) if p.key == ".".join(map(str, (*path[:-1], misspelt)))]
        assert len(found) == 1, (path, misspelt)
        tried += 1
        suggested += f"'{word}'" in found[0].message
    assert tried > 40
    assert suggested >= 0.9 * tried, (suggested, tried)


@pytest.mark.parametrize("name", RECIPES)
def test_a_value_of_the_wrong_type_is_named(name):
    base = resolved(name)
    for path in keys(base):
        values = copy.deepcopy(base)
        inside = holder(values, path)
        old = inside[path[-1]]
        if old is None:
            continue
        inside[path[-1]] = {"no": {"such": "key"}}
        key = ".".join(map(str, path))
        found = problems(values)
        assert any(p.key == key or p.key.startswith(f"{key}.") for p in found), (key, found)
        assert all(p.where for p in found)


@pytest.mark.parametrize("name", RECIPES)
def test_a_key_that_is_removed_takes_its_default_or_is_named(name):
    base = resolved(name)
    for path in keys(base):
        values = copy.deepcopy(base)
        del holder(values, path)[path[-1]]
        key = ".".join(map(str, path))
        above = key.rpartition(".")[0] or key
        found = [p for p in problems(values) if p.key != "data" or "data" in base]  # which a target replaces
        assert all(p.key.startswith(above) for p in found), (key, found)


SIGNS = "{}[]:,-#&*!|>'\"%@`~ \t\n\r\0\\/=.0123456789eExnaNyY<>?é\ufeff"
LETTERS = [*SIGNS, "true", "null", ".nan", "<<: ", "*a", "&a ", "!!int "]


def damaged(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + rng.choice([0, 1, 1, 3, 20]))
        middle = rng.choice(["", rng.choice(LETTERS), rng.choice(LETTERS) * rng.randint(1, 40), text[at:to] * 2])
        text = text[:at] + middle + text[to:]
    return text


@pytest.mark.parametrize("name", RECIPES)
def test_damaged_text_is_accepted_or_refused_and_nothing_else(name, monkeypatch):
    # A damaged line of `imports` must not import whatever module its letters happen to name.
    monkeypatch.setattr("latentsb.recipe.document._import_all", lambda binder, imports: {})
    rng, refused, n = random.Random(name), 0, 300 if name == "toy" else 60
    whole = re.sub(r"^#.*\n", "", RECIPES[name], flags=re.MULTILINE)  # damage of a comment does no harm
    Recipe.parse(TOY)
    for _ in range(n):
        text = damaged(whole, rng)
        began = time.process_time()
        try:
            Recipe.parse(text)
        except RecipeError:
            refused += 1
        assert time.process_time() - began < 1, text
    assert refused > n / 3


def test_random_bytes_are_refused():
    rng = random.Random(0)
    for _ in range(100):
        with pytest.raises(RecipeError):
            Recipe.parse(rng.randbytes(rng.randint(0, 300)))
