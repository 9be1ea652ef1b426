"""A constructor's signature is the schema: what is bound, what is told, what is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentsb.errors import RecipeError
from latentsb.recipe import Factory, Part, Recipe
from latentsb.recipe.nodes import dump
from latentsb.solvers.base import SOLVERS
from latentsb.tensors import Spec

TOYS = Path(__file__).with_name("toy_parts.py")
BASE = """\
data: {name: toy_data}
bridge:
  name: toy_bridge
  network: {name: toy_net, width: 64}
solver: toy_solver
"""


def load(*overrides: str, text: str = BASE) -> Recipe:
    return Recipe.parse(text, overrides, [TOYS], label="r.yaml")


def told(*overrides: str, text: str = BASE) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(*overrides, text=text)
    return [str(problem) for problem in caught.value.problems]


def test_every_default_is_shown():
    assert load().resolved()["bridge"] == {
        "name": "toy_bridge",
        "network": {"name": "toy_net", "width": 64, "heads": 4, "act": "silu"},
        "second": {"name": "toy_net", "width": 8, "heads": 4, "act": "silu"},
        "reference": {"name": "toy_line", "low": 0.1, "high": 20.0},
        "others": [],
        "by_name": None,
        "z_dim": 8,
        "sigma_max": 80.0,
        "drop": 0.1,
        "weights": None,
        "sizes": [1, 2],
        "flag": False,
        "level": "auto",
    }


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("bridge.z_dim=64e0", "z_dim", 64),
        ("bridge.z_dim=1_000", "z_dim", 1000),
        ("bridge.sigma_max=3", "sigma_max", 3.0),
        ("bridge.drop=0", "drop", 0.0),
        ("bridge.weights=a/b.pt", "weights", Path("a/b.pt")),
        ("bridge.sizes=[3, 4e0, 5]", "sizes", (3, 4, 5)),
        ("bridge.sizes=[]", "sizes", ()),
        ("bridge.flag=true", "flag", True),
        ("bridge.level=3", "level", 3),
        ("bridge.level=auto", "level", "auto"),
        ("bridge.by_name=null", "by_name", None),
    ],
)
def test_values_take_the_type_of_their_annotation(override, key, value):
    found = load(override).bridge.arguments[key]
    assert found == value
    assert type(found) is type(value)


WRONG = [
    ("bridge.z_dim=1.5", "bridge.z_dim", "expected an integer >= 1, found 1.5"),
    ("bridge.z_dim=0", "bridge.z_dim", "expected an integer >= 1, found 0"),
    ("bridge.z_dim='3'", "bridge.z_dim", "expected an integer >= 1, found '3'"),
    ("bridge.z_dim=true", "bridge.z_dim", "expected an integer >= 1, found true"),
    ("bridge.z_dim=null", "bridge.z_dim", "expected an integer >= 1, found null"),
    ("bridge.z_dim=[1]", "bridge.z_dim", r"expected an integer >= 1, found \[1\]"),
    ("bridge.z_dim={a: 1}", "bridge.z_dim", "expected an integer >= 1, found a mapping"),
    ("bridge.sigma_max=-3", "bridge.sigma_max", "expected a number > 0, found -3"),
    ("bridge.sigma_max=inf", "bridge.sigma_max", "expected a number > 0, found 'inf'"),
    ("bridge.drop=1.1", "bridge.drop", "expected a number >= 0 and <= 1, found 1.1"),
    ("bridge.flag=yes", "bridge.flag", "expected true or false, found 'yes'"),
    ("bridge.flag=1", "bridge.flag", "expected true or false, found 1"),
    ("bridge.weights=3", "bridge.weights", "expected a path or null, found 3"),
    ("bridge.sizes=3", "bridge.sizes", "expected a list of integers, found 3"),
    ("bridge.sizes=[1, x]", "bridge.sizes.1", "expected an integer, found 'x'"),
    ("bridge.level=atuo", "bridge.level", "expected an integer or one of 'auto', found 'atuo'.*Did you mean 'auto'"),
    ("bridge.network.act=sliu", "bridge.network.act", "one of 'silu', 'gelu', found 'sliu'. Did you mean 'silu'"),
    ("bridge.network=3", "bridge.network", r"expected a network \(its name, or a mapping with 'name'\), found 3"),
    ("bridge.network=null", "bridge.network", "expected a network"),
    ("bridge.network.name=toy_nett", "bridge.network", "no network is called 'toy_nett'. Did you mean 'toy_net'"),
    ("bridge.reference=toy_net", "bridge.reference", "no reference is called 'toy_net'"),
    ("bridge.reference.low=x", "bridge.reference.low", "expected a number > 0, found 'x'"),
    ("bridge.reference.high=0.05", "bridge.reference.high", "must be above low = 0.1, found 0.05"),
    ("bridge.others=toy_line", "bridge.others", "expected a list"),
    ("bridge.others=[toy_line, {name: toy_line, lo: 1}]", "bridge.others.1.lo", "Did you mean 'low'"),
    ("bridge.by_name={a: {name: toy_line, low: 0}}", "bridge.by_name.a.low", "> 0, found 0"),
    ("bridge.sigma_maxx=3", "bridge.sigma_maxx", "unknown key of bridge 'toy_bridge'. Did you mean 'sigma_max'"),
    ("bridge.qqqqq=3", "bridge.qqqqq", "unknown key.*Its keys: network, second"),
    ("bridge.ends=3", "bridge.ends", "unknown key"),
    ("~bridge.network.width", "bridge.network.width", "missing key of network 'toy_net'; expected an integer >= 1"),
    ("~bridge.network", "bridge.network", "missing key of bridge 'toy_bridge'; expected a network"),
    ("~bridge.name", "bridge.name", "missing; known: .*toy_bridge"),
    ("bridge.name=3", "bridge.name", "expected the name of a bridge, found 3"),
    ("~bridge", "bridge", "missing section"),
    ("bridge=[1]", "bridge", r"expected a bridge .* found \[1\]"),
    ("bridge.network={run: runs/none, part: network}", "bridge.network", "there is no run at runs/none"),
    ("bridge.network={run: runs/none}", "bridge.network.part", "missing; which part"),
    ("bridge.network={run: 3, part: network}", "bridge.network.run", "expected a text, found 3"),
]


@pytest.mark.parametrize(("override", "key", "message"), WRONG, ids=[override for override, *_ in WRONG])
def test_a_mistake_is_told_with_its_key_and_its_remedy(override, key, message):
    found = told(override)
    assert len(found) == 1, found
    assert re.search(rf"(^|: ){re.escape(key)}: .*{message}", found[0]), found[0]


def test_places_are_those_of_the_file():
    text = BASE + "train:\n  batch: x\n"
    text = text.replace("width: 64}", "widht: 64}").replace("network:", "sizes: [1, two]\n  network:")
    assert [line.split(": ")[0] for line in told(text=text)] == ["r.yaml:4:14", "r.yaml:5:28", "r.yaml:8:3"]


def test_a_misspelt_required_key_is_one_problem():
    assert len(told(text=BASE.replace("width", "widht"))) == 1


def test_three_mistakes_of_three_kinds_are_told_together():
    text = BASE.replace("toy_bridge\n", "toy_bridge\n  sigma_maxx: 3\n") + "train: {bacth: 3}\n"
    found = told("bridge.network.haeds=2", text=text)
    assert re.match(r"r.yaml:4:3: bridge.sigma_maxx: .*'sigma_max'", found[0])
    assert re.match(r"r.yaml:7:9: train.bacth: .*'batch'", found[1])
    assert re.match(r"override 'bridge.network.haeds=2': bridge.network.haeds: .*'heads'", found[2])
    assert len(found) == 3


def test_parts_are_built_with_their_nested_parts_and_factories_build_anew():
    bridge = load("bridge.others=[toy_line, {name: toy_line, low: 0.5}]", "bridge.by_name={a: toy_line}").bridge
    built = bridge.build(Spec((3,)))
    assert built.first is not built.again
    assert (built.first.width, built.second.width) == (64, 8)
    assert [type(r).__name__ for r in built.others] == ["Line", "Line"]
    assert built.others[1].low == 0.5
    assert built.by_name["a"].high == 20.0
    assert built.values == (8, 80.0, 0.1, None, (1, 2), False, "auto")
    assert isinstance(bridge.arguments["network"], Part)
    assert Factory(bridge.arguments["network"])(Spec((3,))).heads == 4


def test_a_key_over_a_default_part_keeps_its_other_keys():
    assert load("bridge.reference.low=0.2").resolved()["bridge"]["reference"] == {
        "name": "toy_line",
        "low": 0.2,
        "high": 20.0,
    }
    assert load("bridge.second.heads=2").resolved()["bridge"]["second"]["width"] == 8


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["bridge.network.heads=7"], "override 'bridge.network.heads=7': bridge.network.heads: must divide width = 64"),
        (
            ["bridge.network.width=63"],
            "override 'bridge.network.width=63': bridge.network.heads: must divide width = 63, found 4",
        ),
    ],
)
def test_what_a_constructor_refuses_is_told_at_its_key(overrides, where):
    with pytest.raises(RecipeError) as caught:
        load(*overrides).bridge.build(Spec((3,)))
    assert str(caught.value).startswith(where)


def test_a_part_of_a_run_is_looked_up_and_does_not_need_the_run_again(tmp_path):
    first = load("bridge.network.width=32")
    (tmp_path / "resolved.yaml").write_text(first.resolved_text())
    second = load(f"bridge.network={{run: {tmp_path}, part: network}}")
    network = second.bridge.arguments["network"]
    assert (network.from_run.run, network.from_run.part) == (str(tmp_path), "bridge.network")
    assert network.arguments["width"] == 32
    (tmp_path / "resolved.yaml").unlink()
    assert Recipe.parse(second.resolved_text(), label="r.yaml") == second


def test_a_borrowed_part_keeps_its_own_weights_key_apart_from_the_origin(tmp_path):
    (tmp_path / "resolved.yaml").write_text(load("bridge.weights=a/b.pt").resolved_text())
    second = load(f"bridge={{run: {tmp_path}, part: bridge, weights: model, z_dim: 3}}")
    shown = second.resolved()["bridge"]
    assert shown["from"] == {"run": str(tmp_path), "part": "bridge", "weights": "model"}
    assert (shown["weights"], shown["z_dim"]) == ("a/b.pt", 3)
    (tmp_path / "resolved.yaml").write_text(second.resolved_text())
    again = Recipe.load(tmp_path / "resolved.yaml")
    assert again.resolved() == second.resolved()
    third = load(f"bridge={{run: {tmp_path}, part: bridge}}")
    assert third.bridge.from_run.weights == "ema", "where the run itself borrowed from does not matter to its borrower"
    assert len([part for part in third.bridge.walk() if part.from_run]) == 1


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("{run: runs/x}", "bridge.network.from.part: missing"),
        ("{part: network}", "bridge.network.from.run: missing"),
        (
            "{run: runs/x, part: network, weight: ema}",
            "bridge.network.from.weight: unknown key. Did you mean 'weights'",
        ),
        ("{run: runs/x, part: network, weights: null}", "bridge.network.from.weights: expected a text, found null"),
        ("runs/x", "bridge.network.from: expected a mapping with 'run' and 'part'"),
    ],
)
def test_a_wrong_origin_is_told(origin, message):
    found = told(f"bridge.network.from={origin}")
    assert len(found) == 1, found
    assert message in found[0]


def test_another_run_alone_keeps_which_part_of_it(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "resolved.yaml").write_text(load().resolved_text())
    first = f"bridge.network={{run: {tmp_path / 'one'}, part: bridge.network}}"
    recipe = load(first, f"bridge.network.run={tmp_path / 'two'}")
    assert recipe.bridge.arguments["network"].from_run.run == str(tmp_path / "two")
    assert recipe.bridge.arguments["network"].from_run.part == "bridge.network"
    found = told(first, "bridge.network.run=runs/nope")
    assert len(found) == 1
    assert "there is no run at runs/nope" in found[0]


def test_an_override_inside_a_solver_that_is_left_out_is_over_the_default():
    text = BASE.replace("solver: toy_solver\n", "")
    assert load("solver.steps=20", text=text).solver.arguments["steps"] == 20
    assert load("solver.steps=20", text=text).solver.name == load(text=text).solver.name == "heun"
    (problem,) = told("solver.stps=20", text=text)
    assert "unknown key of solver 'heun'. Did you mean 'steps'?" in problem
    assert load("solver.name=euler", "solver.steps=3", text=text).solver.name == "euler"
    (problem,) = told(text=text + "solver: {steps: 3}\n")
    assert "solver.name: missing" in problem


def test_the_resolved_recipe_is_a_recipe_and_equal(tmp_path):
    recipe = load(
        "bridge.others=[toy_line]",
        "train.max_time=1h30m",
        "stages=[{train: autoencoder, lr: 1e-5, ema: null}, {train: bridge.prior}]",
        "about='yes: a, \"b\" #c'",
        "bridge.weights='1e4'",
    )
    path = tmp_path / "other_name.yaml"
    path.write_text(recipe.resolved_text())
    again = Recipe.load(path)
    assert again == recipe
    assert again.hash == recipe.hash
    assert again.resolved() == recipe.resolved()
    assert dump(again.resolved()) == recipe.resolved_text()


def test_differences_name_the_keys():
    one = load()
    assert one.differences(load("train.batch=64", "bridge.reference.low=0.2")) == {
        "train.batch": (128, 64),
        "bridge.reference.low": (0.1, 0.2),
    }
    assert list(one.differences(load("bridge.second={name: toy_net, width: 16}"))) == ["bridge.second.width"]
    assert one != load("seed=1")
    assert not one.differences(load("name=other", "about=x"))
    assert one.hash == load("name=other").hash


def test_annotations_that_no_recipe_can_hold_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(SOLVERS, "_classes", dict(SOLVERS._classes))  # other tests must not meet these two
    (tmp_path / "odd.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import torch\n"
        "from latentsb.solvers.base import SOLVERS, Solver\n"
        "if TYPE_CHECKING:\n"
        "    from pathlib import Path\n"
        "@SOLVERS.register('toy_dtype')\n"
        "class WithDtype(Solver):\n"
        "    def __init__(self, *, dtype: torch.dtype = torch.float32): ...\n"
        "    def run(self, *a, **k): ...\n"
        "@SOLVERS.register('toy_unreadable')\n"
        "class Unreadable(Solver):\n"
        "    def __init__(self, *, path: Path): ...\n"
        "    def run(self, *a, **k): ...\n"
    )
    for solver, message in {
        "{name: toy_dtype, dtype: x}": "r.yaml:5:27: solver.dtype: declared as dtype, which a recipe cannot hold",
        "toy_dtype": "r.yaml:5:1: solver.dtype: the default torch.float32 cannot stand in a recipe",
        "toy_unreadable": "r.yaml:5:1: solver: the annotations of Unreadable cannot be read: name 'Path' is",
    }.items():
        with pytest.raises(RecipeError) as caught:
            Recipe.parse(BASE.replace("toy_solver", solver), (), [TOYS, tmp_path / "odd.py"], label="r.yaml")
        assert str(caught.value).startswith(message)
