"""Whole recipes: sections, stages, `extends`, `imports`, and what is told before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentsb.errors import RecipeError
from latentsb.recipe import Recipe
from latentsb.recipe.sections import TrainSettings, seconds

TOYS = Path(__file__).with_name("toy_parts.py")
BASE = "data: toy_data\nbridge: {name: toy_bridge, network: {name: toy_net, width: 64}}\nsolver: toy_solver\n"


def load(text: str, *overrides: str) -> Recipe:
    return Recipe.parse(BASE + text, overrides, [TOYS], label="r")


def told(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_a_recipe_needs_data_and_bridge_alone():
    recipe = Recipe.parse("data: toy_data\nbridge: {name: toy_bridge, network: {name: toy_net, width: 8}}", [], [TOYS])
    assert (recipe.autoencoder.name, recipe.solver.name, recipe.seed) == ("identity", "heun", 0)
    assert [stage.train for stage in recipe.stages] == ["bridge"]
    assert recipe.stages[0].settings == recipe.train == TrainSettings()


def test_stages_stand_over_the_shared_settings():
    recipe = load(
        "train: {batch: 32, lr: 1e-3}\nstages: [{train: autoencoder, lr: 3e-4, images: 2e6}, {train: bridge.prior}]"
    )
    first, second = recipe.stages
    assert (first.settings.batch, first.settings.lr, first.settings.images) == (32, 3e-4, 2_000_000)
    assert (second.train, second.settings) == ("bridge.prior", recipe.train)
    assert recipe.resolved()["stages"] == [
        {"train": "autoencoder", "lr": 3e-4, "images": 2_000_000},
        {"train": "bridge.prior"},
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2h", 7200),
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1d", 86400),
        ("1h 5s", 3605),
        (30, 30),
        (None, None),
    ],
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_time: 2x}", "r:4:9: train.max_time: expected a number > 0 or a duration.*found '2x'"),
        ("train: {max_time: 0s}", "train.max_time"),
        ("train: {max_time: 1..2h}", "train.max_time"),
        ("train: {betas: [0.9]}", "train.betas: expected a list of 2.*found"),
        ("train: {betas: [0.9, 1]}", "train.betas.1: expected a number >= 0 and < 1, found 1"),
        ("train: {keep: 1}", "train.keep: expected an integer >= 2, found 1"),
        (
            "train: {precision: bf61}",
            "train.precision: expected one of 'auto', 'fp32', 'bf16', found 'bf61'. Did you mean",
        ),
        ("train: {ema: {}}", "train.ema.half_life: give either"),
        ("train: {ema: {half_life: 1, power: 0.1}}", "r:4:15: train.ema.half_life: give either"),
        ("train: {ema: {powr: 0.1}}", "train.ema.powr: unknown key.*'power'"),
        ("train: {ema: 3}", "train.ema: expected a mapping, found 3"),
        ("train: 3", "train: expected a mapping, found 3"),
        ("train: {lrr: 1}", "train.lrr: unknown key of 'train'. Did you mean 'lr'"),
        ("trian: {}", "r:4:1: trian: unknown section. Did you mean 'train'"),
        ("zzz: {}", "unknown section. Sections: extends, imports"),
        ("stages: []", "stages: expected a list of stages"),
        ("stages: [3]", r"stages.0: expected a mapping such as \{train: bridge\}, found 3"),
        ("stages: [{lr: 1}]", "stages.0.train: expected 'autoencoder', 'bridge' or"),
        ("stages: [{train: brigde}]", "stages.0.train: .*Did you mean 'bridge'"),
        ("stages: [{train: bridge, lrr: 1}]", "stages.0.lrr: unknown key of 'stages.0'. Did you mean 'lr'"),
        ("stages: [{train: bridge, lr: -1}]", "stages.0.lr: expected a number > 0, found -1"),
        ("seed: -1", "seed: expected an integer >= 0"),
        ("seed: x", "seed: expected an integer"),
        ("name: a/b", "name: expected letters"),
        ("name: ../x", "name: expected letters"),
        ("preview: {n: 0}", "preview.n: expected an integer >= 1, found 0"),
    ],
)
def test_mistakes_of_sections(text, message):
    assert re.search(message, told(text))


def test_section_and_part_mistakes_are_told_together_where_parts_are_brought_along():
    found = told("train: {lrr: 1}", "bridge.z_dim=0").splitlines()
    assert len(found) == 2


def test_extends_a_file_and_an_override_stands_over_both(tmp_path):
    (tmp_path / "a.yaml").write_text(f"imports: [{TOYS}]\nname: first\n{BASE}train: {{batch: 2, lr: 1}}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nbridge: {z_dim: 3}\ntrain: {lr: 2}\n")
    recipe = Recipe.load(tmp_path / "b.yaml", ["train.warmup=7"])
    assert (recipe.train.batch, recipe.train.lr, recipe.train.warmup) == (2, 2.0, 7)
    assert (recipe.name, recipe.bridge.arguments["z_dim"]) == ("b", 3)
    assert recipe.bridge.arguments["network"].arguments["width"] == 64
    assert recipe.text.startswith("extends")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nbridge: {z_dim: 0, network: {with: 3}}\ntrain: {batch: 0}\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "b.yaml")
    assert [p.where.removeprefix(str(tmp_path)) for p in caught.value.problems] == [
        "/b.yaml:2:10",
        "/b.yaml:2:30",
        "/b.yaml:3:9",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: b.yaml", r"b.yaml:1:1: extends: .*circle"),
        ("extends: none.yaml", r"b.yaml:1:1: the recipe .*none.yaml does not exist"),
        ("extends: no_such_recipe", r"b.yaml:1:1: no shipped recipe is called 'no_such_recipe'"),
        ("extends: 3", "extends: expected a file"),
        ("extends: [a]", "extends: expected a file"),
        ("imports: 3", "imports: expected a list"),
        ("imports: [3]", "imports: expected a list"),
        ("imports: [none.py]", "b.yaml:1:11: imports: there is no file .*none.py"),
        ("imports: [no_such_module_x]", "imports: there is no module 'no_such_module_x'"),
        ("imports: [broken.py]", r"imports: .*broken.py:2: ZeroDivisionError"),
        ("imports: [syntax.py]", r"imports: .*syntax.py:1: SyntaxError"),
        ("imports: [taken.py]", r"imports: .*taken.py:\d+: ValueError: reference 'toy_line' is already"),
    ],
)
def test_what_cannot_be_brought_along(tmp_path, text, message):
    (tmp_path / "broken.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "syntax.py").write_text("x = = 1\n")
    (tmp_path / "taken.py").write_text(TOYS.read_text() + "\n# another file\n")
    (tmp_path / "b.yaml").write_text(text + "\n" + BASE)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "b.yaml", (), [TOYS])
    assert re.search(message, str(caught.value)), str(caught.value)


def test_the_same_file_registers_once_under_any_path_and_shadows_nothing(tmp_path):
    (tmp_path / "copy.py").write_bytes(TOYS.read_bytes())
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "copy_of_toys.yaml").write_text(f"imports: [copy.py, {TOYS}]\n{BASE}")
    (tmp_path / "toy_parts.py").write_bytes(TOYS.read_bytes())
    recipe = Recipe.load(tmp_path / "copy_of_toys.yaml", (), [tmp_path / "toy_parts.py"])
    assert len(recipe.imports) == 3
    assert len(set(recipe.hashes.values())) == 1
    assert sys.path[0] != str(tmp_path)
    assert str(tmp_path) not in sys.path or sys.path.index(str(tmp_path)) > sys.path.index(
        str(Path(re.__file__).parents[1])
    )


def test_two_different_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"x = '{folder}'")
    with pytest.raises(RecipeError, match=r"another file is called same.py too"):
        Recipe.parse(BASE, (), [TOYS, tmp_path / "a" / "same.py", tmp_path / "b" / "same.py"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("none.yaml", "does not exist"),
        (".", "no shipped recipe"),
        ("no_such_recipe", "no shipped recipe is called"),
        ("tests/", "is a folder|does not exist"),
    ],
)
def test_a_missing_recipe_is_told(recipe, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load(recipe)


@pytest.mark.parametrize("text", ["3", "[1]", "a", "- a: 1", "''"])
def test_a_recipe_is_a_mapping(text):
    with pytest.raises(RecipeError, match="a recipe is a mapping of sections"):
        Recipe.parse(text)


EARLY = {
    "yaml": "data: digits\nbridge: flow\nseed: 012\n",
    "section": "data: digits\nbridge: flow\ntrain: {lrr: 1}\n",
    "top": "data: digits\nbrigde: flow\n",
    "stage": "data: digits\nbridge: flow\nstages: [{train: x}]\n",
    "word": "data: digits\nbridge: flwo\n",
    "missing": "data: digits\n",
}


def test_mistakes_of_yaml_and_sections_are_told_without_torch(tmp_path):
    for name, text in EARLY.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    code = (
        "import sys; from latentsb.recipe import Recipe; from latentsb.errors import RecipeError\n"
        f"for name in {list(EARLY)}:\n"
        "    try: Recipe.load(f'{sys.argv[1]}/{name}.yaml')\n"
        "    except RecipeError as error: print(name, len(error.problems))\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name} 1" for name in EARLY]
