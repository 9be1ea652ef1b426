"""Translation between two data sets: exact bridges through it, the files that it leaves, and how it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.experiment import build
from latentsb.oracles import ExactBridge, GaussianBridge, MixturePair, Normal
from latentsb.pictures import save_image
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.solvers.ode import Heun
from latentsb.solvers.sde import EulerMaruyama
from latentsb.trainer import Trainer
from latentsb.translate import Translation, direction, translate, ways

NETWORK = "network: {name: mlp, width: 8, depth: 1}"
TRAIN = "train: {images: 128, batch: 64, preview_every: 1000000, save_every: 1000000}"
UNPAIRED = f"""
data:
  name: unpaired
  x0: {{name: gaussian, mean: [2.0, 0.0], n: 100}}
  x1: {{name: gaussian, mean: [-1.0, 0.0], n: 50}}
bridge: {{name: flow, {NETWORK}}}
solver: {{name: euler, steps: 3}}
{TRAIN}
"""
FOLDERS = f"""
data:
  name: unpaired
  x0: {{name: folder, path: %s/dark, size: 8, channels: 1}}
  x1: {{name: folder, path: %s/light, size: 8, channels: 1}}
bridge: {{name: flow, {NETWORK}}}
solver: {{name: euler, steps: 3}}
{TRAIN}
"""
X0, X1 = Normal.isotropic(2, 0.0, 1.0), Normal.isotropic(2, 3.0, 1.0)
BRIDGE = GaussianBridge.between(X0, X1, Brownian(sigma=1.0))
PLAN = (math.sqrt(5) - 1) / 2


def exact(oracle=BRIDGE):
    return replace(build(Recipe.parse(UNPAIRED, (), label="exact")), bridge=ExactBridge(oracle))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with two folders of pictures, and runs between them, between points, and from noise."""
    folder = tmp_path_factory.mktemp("project")
    for name, level, n in (("dark", -0.8, 5), ("light", 0.8, 4)):
        (folder / name / "deep").mkdir(parents=True)
        for i in range(n):
            save_image(torch.full((1, 8, 8), level), folder / name / ("deep" if i == 0 else ".") / f"{name} {i}.png")
    noise = f"data: {{name: gaussian, n: 100}}\nbridge: {{name: flow, {NETWORK}}}\n{TRAIN}"
    pairs = f"data: {{name: paired, x0: moons, x1: moons}}\nbridge: {{name: ddbm, {NETWORK}}}\n{TRAIN}"
    for name, text in (
        ("folders", FOLDERS % (folder, folder)),
        ("points", UNPAIRED),
        ("noise", noise),
        ("ddbm", pairs),
    ):
        recipe = Recipe.parse(text, (), label=name)
        run = Run.create(recipe, folder / "runs" / name)
        Trainer(run, build(recipe), device="cpu").fit()
        run.close()
    return folder


@pytest.fixture
def command(project, commands):
    return commands(project)


@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_an_exact_bridge_translates_by_its_plan(towards):
    n, steps = 3_000, 20
    start, goal = (X1, X0) if towards == "x0" else (X0, X1)
    samples = start.sample(n, Draws.block(0, "test", 0, n)).float()
    made = translate(
        exact(), samples, towards=towards, solver=EulerMaruyama(steps=steps, noiseless_last=False), seed=7, batch=n
    )
    joint = Normal.fitted(torch.cat([made.originals, made.translated], 1).double())
    assert made.towards == towards
    # Standard errors: of a mean 1/√n, of a (co)variance below √2/√n; 20 steps add .0157 to the variance.
    assert (joint.mean[2:] - goal.mean).abs().max() < 4 / math.sqrt(n)
    assert (joint.cov[2:, 2:].diagonal() - 1.0157).abs().max() < 4 * math.sqrt(2 / n)
    assert (joint.cov[:2, 2:].diagonal() - PLAN).abs().max() < 4 * math.sqrt(2 / n)


def test_there_and_back_along_the_ode_is_the_identity():
    samples = X0.sample(64, Draws.block(1, "test", 0, 64)).float()
    there = translate(exact(), samples, towards="x1", solver=Heun(steps=100))
    back = translate(exact(), there.translated, towards="x0", solver=Heun(steps=100))
    assert (there.translated.mean() - samples.mean() - 3).abs() < 1e-3
    assert (back.translated - samples).abs().max() < 1e-3


def test_a_row_depends_on_its_seed_alone():
    samples = X1.sample(6, Draws.block(2, "test", 0, 6)).float()
    solver = EulerMaruyama(steps=5)
    whole = translate(exact(), samples, towards="x0", solver=solver, seed=3)
    parts = translate(exact(), samples, towards="x0", solver=solver, seed=3, batch=4)
    torch.testing.assert_close(whole.translated, parts.translated)
    last = translate(exact(), samples[4:], towards="x0", solver=solver, seed=7)
    torch.testing.assert_close(whole.translated[4:], last.translated)


def test_what_leads_one_way_only_is_told_and_taken():
    pair = exact(MixturePair(dim=2, epsilon=1.0)).bridge
    assert ways(pair)["x1"] == ""
    assert direction(pair) == "x1"
    with pytest.raises(CapabilityError, match=r"does not translate towards x0: .* it leads towards x1 only"):
        direction(pair, "x0")
    assert direction(exact().bridge) == "x0"
    with pytest.raises(ArgumentError, match="expected"):
        translate(exact(), torch.zeros(3, 5))


def test_the_picture_has_each_source_above_its_result():
    originals, results = torch.full((13, 1, 8, 8), -1.0), torch.full((13, 1, 8, 8), 1.0)
    picture = np.asarray(Translation(originals, results, results, "x0", 1).picture().convert("L"))
    tiles = [picture[(row + 1) * picture.shape[0] // 4 - picture.shape[0] // 8, 20] for row in range(4)]
    assert tiles == [0, 255, 0, 255]


def test_two_folders(command, project):
    code, out, _ = command("translate", "runs/folders", "light")
    assert code == 0
    assert "4 samples of x1 led towards x0 by 'euler', 3 network calls each" in out
    made = project / "runs/folders/translations/step-000000002-x1-to-x0-euler"
    names = ["000000-light-0.png", "000001-light-1.png", "000002-light-2.png", "000003-light-3.png"]
    assert sorted(p.name for p in made.iterdir()) == [*names, "grid.png", "translations.json"]
    stored = json.loads((made / "translations.json").read_text())
    assert [stored[key] for key in ("towards", "count", "seed", "calls")] == ["x0", 4, 0, 3]
    assert stored["inputs"][0].endswith("light/deep/light 0.png")
    # What lies in the folder of x0 is led away from it; what is asked for comes first.
    assert "5 samples of x0 led towards x1" in command("translate", "runs/folders", "dark")[1]
    assert "5 samples of x1 led towards x0" in command("translate", "runs/folders", "dark", "--towards", "x0")[1]
    assert "3 samples of x1 led towards x0" in command("translate", "runs/folders", "-n", "3", "-o", "mine")[1]
    assert (project / "mine" / "grid.png").is_file()


def test_vectors_and_solvers(command, project):
    points = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    np.save(project / "points.npy", points)
    np.savez(project / "points.npz", x=points, other=points)
    code, out, _ = command("translate", "runs/points", "points.npy", "points.npz", "--towards", "x1", "solver.steps=5")
    assert code == 0
    assert "12 samples of x0 led towards x1 by 'euler', 5 network calls each" in out
    with np.load(project / "runs/points/translations/step-000000002-x0-to-x1-euler/translations.npz") as made:
        assert np.array_equal(made["originals"][:6], points)
        np.testing.assert_allclose(made["translated"][:6], made["translated"][6:], rtol=1e-5)
    out = command("translate", "runs/points", "--mode", "sde")[1]
    assert "12 samples of x1 led towards x0 by 'euler_maruyama', 3 network calls each" in out
    assert "by 'euler'," in command("translate", "runs/points", "--mode", "ode")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("noise",), "'flow' does not translate towards x0: it was trained on data of one end"),
        (("ddbm", "--towards", "x1"), "'ddbm' does not translate towards x1: its x1 is given, not made"),
        (("points", "nowhere"), "nowhere: there is no such file or folder"),
        (("folders", "empty"), "empty: the folder holds no image"),
        (("points", "wide.npy"), "wide.npy: found float64 of shape (2, 3), expected floats (B, 2)"),
        (("points", "-n", "1000"), "the data have 50 samples of x1, 1000 were asked for"),
    ],
)
def test_refusals(command, project, arguments, told):
    np.save(project / "wide.npy", np.zeros((2, 3)))
    (project / "empty").mkdir(exist_ok=True)
    code, _, err = command("translate", f"runs/{arguments[0]}", *arguments[1:])
    assert code != 0
    assert told in err
    assert len(err.splitlines()) == 1


def test_pairs_are_translated_towards_x0(command):
    assert "12 samples of x1 led towards x0" in command("translate", "runs/ddbm")[1]


def test_files_that_cannot_be_read_are_told_at_once(project, monkeypatch):
    from latentsb.translate import open_samples

    monkeypatch.chdir(project)
    (project / "a.npy").write_bytes(b"no")
    (project / "b.npz").write_bytes(b"no")
    experiment = build(Recipe.parse(UNPAIRED, (), label="exact"))
    with pytest.raises(DataError, match=r"(?s)a\.npy.*b\.npz"):
        open_samples(experiment, [project / "a.npy", project / "b.npz"])
