"""The commands on recipes, as a user runs them: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from latentsb import errors
from latentsb.cli import main

TOYS = Path(__file__).parents[1] / "recipe" / "toy_parts.py"
ROOT = Path(__file__).parents[2]
DIGITS = """\
data: digits
autoencoder: identity
bridge:
  name: flow
  network: {name: mlp, width: 16}
solver: {name: heun, steps: 4}
train: {images: 2e5, batch: 64}
"""


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(DIGITS)

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return command


def test_without_arguments_the_help_with_examples(run):
    code, out, _ = run()
    assert code == 0
    for command in ("list", "show", "check", "copy", "schema", "new", "doctor", "latentsb train my.yaml"):
        assert command in out


def test_a_wrong_command_is_told(run):
    code, _, err = run("chekc")
    assert code == 2
    assert "Traceback" not in err
    assert "chekc" in err


def test_help_and_early_mistakes_import_neither_torch_nor_more_than_they_need(tmp_path):
    (tmp_path / "r.yaml").write_text("data: digits\nbridge: flow\ntrain: {lrr: 1}\n")
    code = (
        "import sys\nfrom latentsb.cli import main\n"
        "try: main(sys.argv[2:])\n"
        "except SystemExit as left: print('exit', left.code, file=sys.stderr)\n"
        "for module in sys.argv[1].split(','): assert module not in sys.modules, module\n"
    )

    def quick(absent: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, absent, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = quick("torch,pydantic,numpy,yaml", "--help")
    assert done.stderr == "exit 0\n"
    done = quick("torch,numpy,yaml", "check", "--help")
    assert done.stderr == "exit 0\n"
    done = quick("torch,numpy", "check", "r.yaml")
    assert done.stderr.splitlines()[0].startswith("r.yaml:3:9: train.lrr: unknown key of 'train'. Did you mean 'lr'?")
    assert done.stderr.splitlines()[-2:] == ["1 problem; nothing was started.", "exit 2"]
    done = quick("torch,numpy", "list", "recipes")
    assert done.stderr == "exit 0\n"


def test_three_mistakes_one_of_them_a_third_partys_one_an_override(run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "data: toy_data\n"
        "bridge:\n"
        "  name: toy_bridge\n"
        "  sigma_maxx: 3\n"
        "  network: {name: toy_net, width: 8}\n"
        "train: {btach: 3}\n"
    )
    code, out, err = run("check", "mine.yaml", "bridge.network.haeds=3", "--import", str(TOYS))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert re.match(r"mine.yaml:4:3: bridge.sigma_maxx: .*Did you mean 'sigma_max'", lines[0])
    assert re.match(r"mine.yaml:6:9: train.btach: .*Did you mean 'batch'", lines[1])
    assert re.match(r"override 'bridge.network.haeds=3': bridge.network.haeds: .*Did you mean 'heads'", lines[2])
    assert lines[3:] == ["3 problems; nothing was started."]


def test_check_tells_shapes_sizes_and_steps(run):
    code, out, err = run("check", "digits.yaml")
    assert (code, err) == (0, "")
    assert re.search(r"one latent +1 × 8 × 8", out)
    assert re.search(r"samples +1,797", out)
    assert re.search(r"latents of all samples +(230|460) kB", out)
    assert re.search(r"bridge +200,000 +3,125 +111 ", out)
    assert re.search(r"bridge +flow .*bridges\.flow\.Flow", out)
    from latentsb.experiment import build
    from latentsb.recipe import Recipe

    parameters = sum(p.numel() for p in build(Recipe.load("digits.yaml")).bridge.parameters())
    shown = re.search(r"bridge +[A-Z]\w+ +([0-9.]+)( k)?", out)
    assert float(shown[1]) * (1000 if shown[2] else 1) == pytest.approx(parameters, rel=5e-3)


def test_check_measures_what_a_linear_map_keeps_for_its_gradient():
    import torch

    from latentsb import Spec
    from latentsb.cli.checking import activations
    from latentsb.experiment import Experiment
    from latentsb.tensors import Batch
    from latentsb.trainable import Loss, Trainable

    class Line(Trainable):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 8))

        def loss(self, batch: Batch, draws):
            return Loss(self.layers(batch.data).sum(1))

    class Whole:
        spec, latent, cond, two_sided = Spec((8,)), Spec((8,)), {}, False

    line = Line()
    kept = activations(Experiment(None, Whole(), Whole(), line, None), line)
    assert kept == 4 * (8 + 64)  # the inputs of both layers, float32; weights are not counted


def test_check_names_missing_data_and_still_shows_the_parts(run):
    code, out, err = run("check", "digits.yaml", "data={name: folder, path: no/such/folder, size: 8}")
    assert code == errors.DataError.exit_code
    assert "no/such/folder" in err
    assert "Traceback" not in err
    assert re.search(r"bridge +flow", out)


def test_parts_that_do_not_fit_are_told_at_their_key(run):
    code, _, err = run("check", "digits.yaml", "bridge.network={name: dit, patch: 3, width: 16, depth: 1, heads: 2}")
    assert code == 2
    assert re.search(r"bridge.network.patch: ", err)


def test_show_as_written_and_as_understood(run):
    assert run("show", "digits.yaml")[1] == DIGITS
    code, out, _ = run("show", "digits.yaml", "--resolved", "train.lr=1e-5")
    assert code == 0
    Path("again.yaml").write_text(out)
    from latentsb.recipe import Recipe

    assert Recipe.load("again.yaml") == Recipe.load("digits.yaml", ["train.lr=1e-5"])


def test_copy_does_not_overwrite(run):
    assert run("copy", "digits.yaml", "mine.yaml")[0] == 0
    assert Path("mine.yaml").read_text() == DIGITS
    Path("mine.yaml").write_text("mine")
    code, _, err = run("copy", "digits.yaml", "mine.yaml")
    assert code == 2
    assert err == "mine.yaml exists already and is not overwritten; give another name\n"
    assert Path("mine.yaml").read_text() == "mine"
    assert run("copy", "digits.yaml", "no/folder/mine.yaml")[0] == 2


def test_list_shows_words_lines_sources_and_keys(run):
    code, out, _ = run("list", "bridge", "--import", str(TOYS))
    assert code == 0
    assert re.search(r"flow +Flow matching", out)
    assert "Source: Lipman et al. 2023" in out
    assert re.search(r"toy_bridge +A toy bridge", out)
    assert "Source: nobody." in out
    assert "reference=toy_line" in out.replace("\n", "")
    code, out, _ = run("list")
    for kind in ("bridge", "autoencoder", "solver", "network", "data", "recipes", "runs"):
        assert re.search(rf"^ ?{kind} ", out, re.MULTILINE)
    code, _, err = run("list", "brigde")
    assert code == 2
    assert "Did you mean 'bridge'" in err


def test_list_recipes_shows_every_shipped_recipe_with_a_line(run):
    from latentsb.recipe.sources import shipped

    code, out, _ = run("list", "recipes")
    assert code == 0
    for name in shipped():
        assert re.search(rf"^ ?{name} +\S+ \S+", out, re.MULTILINE), name
    assert run("list", "runs")[0] == 0


def test_schema_accepts_what_the_binder_accepts_and_marks_what_it_refuses(run):
    code, out, _ = run("schema", "--import", str(TOYS))
    assert code == 0
    check = jsonschema.Draft202012Validator(json.loads(out))
    check.check_schema(json.loads(out))
    from latentsb.recipe import Recipe

    good = Recipe.load("digits.yaml").resolved()
    assert list(check.iter_errors(good)) == []
    assert list(check.iter_errors({"extends": "digits", "bridge": {"name": "flow", "dropout": 0.2}})) == []
    for key, value in {"lrr": 1, "lr": -1, "batch": 0.5, "precision": "fp16", "keep": 1}.items():
        assert list(check.iter_errors({**good, "train": {**good["train"], key: value}})), key
    for bridge in ("flwo", {"name": "flow", "dropout": 2}, {"name": "flow", "droput": 0.1}):
        assert list(check.iter_errors({**good, "bridge": bridge})), bridge


def test_the_schema_covers_every_kind_and_word(run):
    schema = json.loads(run("schema")[1])
    from latentsb.recipe.kinds import registries

    for kind, registry in registries().items():
        assert set(schema["$defs"][kind]["anyOf"][0]["enum"]) == set(registry.names())
    train = schema["properties"]["train"]["properties"]
    assert all("description" in key for key in train.values())
    assert train["lr"]["exclusiveMinimum"] == 0


def test_a_new_bridge_passes_its_own_test_and_is_not_overwritten(run, tmp_path):
    code, _, err = run("new", "bridge", "my_own")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.glob("*.py")) == ["my_own.py", "test_my_own.py"]
    assert run("new", "bridge", "my_own")[0] == 2
    code, out, _ = run("list", "bridge", "--import", "my_own.py")
    assert re.search(r"my_own +Straight lines", out)
    recipe = DIGITS.replace("name: flow", "name: my_own")
    Path("mine.yaml").write_text("imports: [my_own.py]\n" + recipe)
    assert run("check", "mine.yaml")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_own.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["flow", "My", "a-b", "1a", "class", "ünï", ""])
def test_a_new_bridge_needs_a_free_word(run, tmp_path, name):
    assert run("new", "bridge", name)[0] == 2
    assert not list(tmp_path.glob("*.py"))


def test_doctor_is_one_table(run):
    code, out, _ = run("doctor")
    assert code == 0
    for row in (
        "python",
        "torch",
        "cuda",
        "cpu",
        "attention sdpa",
        "attention xformers",
        "runs/",
        "recipes",
        "extra eval",
    ):
        assert re.search(rf"^ ?{row} ", out, re.MULTILINE), row
    assert "pip install 'latentsb[xformers]'" in out or "auto" in out


def test_terminal_codes_in_names_are_shown_not_obeyed(run):
    code, _, err = run("check", "\x1b[31mred.yaml")
    assert code == 2
    assert "\x1b" not in err


def test_ctrl_c_leaves_with_130(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentsb.cli.recipes.load_recipe", interrupt)
    code, _, err = run("check", "digits.yaml")
    assert code == 130
    assert "Traceback" not in err


def test_the_documented_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    kinds = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    of_errors = {kind.__name__: kind.exit_code for kind in kinds if issubclass(kind, errors.Error)}
    assert {name: int(code) for code, name in rows} == of_errors


@pytest.mark.parametrize("name", ["my", "2024", "true", "a.b-c"])
def test_a_copy_has_its_own_name_and_differs_in_nothing_else(run, tmp_path, name):
    assert run("copy", "digits", f"{name}.yaml")[0] == 0
    _, out, _ = run("show", "digits")
    ours, theirs = (tmp_path / f"{name}.yaml").read_text().splitlines(), out.splitlines()
    differing = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert [b for _, b in differing] == ["name: digits"]
    assert run("train", f"{name}.yaml", "--dry-run")[1].endswith(f"the run would be runs/{name}; nothing was written\n")


def test_a_copy_keeps_the_comment_behind_the_name_and_refuses_what_is_no_name(run, tmp_path):
    (tmp_path / "own.yaml").write_text("name: 'of mine'  # said so\n" + DIGITS)
    assert run("copy", "own.yaml", "other.yaml")[0] == 0
    assert (tmp_path / "other.yaml").read_text() == "name: other  # said so\n" + DIGITS
    code, _, err = run("copy", "own.yaml", "my copy.yaml")
    assert code == 2
    assert "'my copy' cannot be a recipe's name" in err
    assert not (tmp_path / "my copy.yaml").exists()
