"""Samplers without data: recipes bind, train, resume, sample and evaluate; weights are exact before any training."""

import math

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.errors import RecipeError
from latentsb.evaluate import evaluate
from latentsb.experiment import build
from latentsb.metrics.log_z import figures, weighted
from latentsb.previews import preview
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Batch
from latentsb.trainer import Trainer
from latentsb.weighing import WeighingBridge

TARGET = "target: {name: gauss_shift, mean: 1.0, sigma: 0.7, dim: 2, scale: 2.0}"
NETWORK = "network: {name: mlp, width: 16, depth: 1}"
CONTROL = f"control: {{name: lerp, {NETWORK}}}"
MILD = "reference: {name: vp, beta_min: 0.5, beta_d: 1.5}"
MEMBERS = {
    "dis": f"sampler: {{name: dis, {MILD}}}, {CONTROL}",
    "pis": f"sampler: pis, control: {{name: score, {NETWORK}}}",
    "dds": f"sampler: {{name: dds, {MILD}}}, control: {{name: langevin, {NETWORK}}}",
    "general": f"sampler: general, {CONTROL}, back: {{name: prior_score, {NETWORK}}}",
}
TRAIN = "{batch: 8, images: 64, lr: 1e-2, warmup: 0, log_every: 32, save_every: 32, preview_every: 64}"


def recipe(member: str = MEMBERS["dis"], *, target: str = TARGET, rest: str = "", train: str = TRAIN) -> Recipe:
    return Recipe.parse(
        f"bridge: {{name: density, {target}, {member}, steps: 5, paths: 4{rest}}}\n"
        f"solver: {{name: euler_maruyama, steps: 5, noiseless_last: false}}\ntrain: {train}\npreview: {{n: 4}}\n"
    )


def bridge(*args: str, **kwargs: str) -> WeighingBridge:
    found = build(recipe(*args, **kwargs)).bridge
    assert isinstance(found, WeighingBridge)
    return found


def shaken(module: torch.nn.Module) -> None:
    """Weights that are not those of the beginning, where networks are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("member", MEMBERS)
def test_the_mean_weight_of_an_untrained_network_is_z(member):
    # Of a narrower target the weights have tails of which a standard error knows nothing.
    sampler = bridge(MEMBERS[member], target=TARGET.replace("mean: 1.0, sigma: 0.7", "mean: 0.5, sigma: 0.6"))
    shaken(sampler)
    w = torch.cat([p.log_weight for p in weighted(sampler, 10_000, 10_000, 0)]).exp()
    error = float(w.std()) / math.sqrt(len(w))
    assert error < 0.1
    assert abs(float(w.mean()) - 2.0) < 3 * error


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("loss", ["kl", "kl_ito", "lv", "lv_traj", "rkl_ld"])
def test_every_divergence_trains_every_control_of_every_member(member, loss):
    sampler = bridge(MEMBERS[member], rest=f", loss: {loss}")
    shaken(sampler)
    rows = Batch(torch.arange(4))
    found = sampler.loss(rows, Draws.step(0, "loss", 0, range(4)))
    assert found.total.shape == found.terms["elbo"].shape == (4,)
    found.total.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in sampler.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in sampler.parameters()) > 0.8 * len(list(sampler.parameters()))


def test_rows_do_not_depend_on_the_split():
    sampler = bridge()
    whole = sampler.loss(Batch(torch.arange(6)), Draws.step(0, "loss", 0, range(6))).total
    parts = [sampler.loss(Batch(torch.arange(2)), Draws.step(0, "loss", 0, range(i, i + 2))).total for i in (0, 2, 4)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-5)


def test_paths_of_one_start():
    sampler = bridge(rest=", loss: lv_traj")
    shared = sampler.simulate(3, 4, Draws.step(0, "", 0, range(3)), shared=True)
    apart = sampler.simulate(3, 4, Draws.step(0, "", 0, range(3)))
    starts = [path.x[0].reshape(3, 4, 2) for path in (shared, apart)]
    assert [len({tuple(row.tolist()) for row in s.reshape(12, 2)}) for s in starts] == [3, 12]
    assert len({tuple(row.tolist()) for row in shared.end}) == 12


def test_the_solver_runs_the_chain_that_training_sees():
    """`euler_maruyama` on as many steps: the same law of the end, to the noise of 4,000 samples."""
    experiment = build(recipe())
    shaken(experiment.bridge)
    draws = Draws.block(1, "", 0, 4000)
    with torch.no_grad():
        chain = experiment.bridge.simulate(4000, 1, draws).end
        rows = Batch(torch.arange(4000))
        solved = experiment.solver.run(experiment.bridge, experiment.bridge.start(rows, draws), draws.fork("solve")).x
    for name in ("mean", "std"):
        ours, theirs = getattr(solved, name)(0), getattr(chain, name)(0)
        assert bool(((ours - theirs).abs() < 5 * chain.std(0) / math.sqrt(2000)).all())


def test_training_finds_a_gaussian():
    """`lv` from nothing but a density: log Z to its standard error, spread to a few per cent."""
    built = build(recipe(MEMBERS["pis"], rest=", loss: lv"))
    optimiser = torch.optim.Adam(built.bridge.parameters(), lr=1e-2)
    before = figures(built.bridge.target, weighted(built.bridge, 2000, 2000, 1))
    for k in range(100):
        optimiser.zero_grad()
        built.bridge.loss(Batch(torch.arange(8)), Draws.step(0, "loss", 8 * k, range(8))).total.mean().backward()
        optimiser.step()
    found = figures(built.bridge.target, weighted(built.bridge, 4000, 4000, 1))
    assert found["ess"] > max(0.8, before["ess"])
    assert abs(found["log_z"] - math.log(2)) < 4 * found["log_z ±"]
    assert found["elbo_ito"] < math.log(2)


def test_a_recipe_without_data_trains_resumes_samples_previews_and_evaluates(tmp_path):
    def train(folder: str, images: int) -> Run:
        asked = recipe(train=TRAIN.replace("images: 64", f"images: {images}"))
        run = Run.create(asked, tmp_path / folder)
        try:
            Trainer(run, build(asked), device="cpu").fit()
        finally:
            run.close()
        return run

    whole = train("whole", 64)
    train("parts", 32)
    parts = train("parts", 64)
    assert dict(parts.checkpoint().sha256) == dict(whole.checkpoint().sha256)
    run = Run.open(whole.path)
    assert "data" not in run.recipe.resolved()
    experiment = run.experiment(device="cpu")
    assert run.sample(3, seed=0).images.shape == (3, 2)
    assert preview(experiment, tmp_path / "shown" / "picture.png", stage="bridge")
    assert (tmp_path / "shown" / "picture.png").is_file()
    found = evaluate(run, experiment, None, 16, settings=())["log_z"]
    assert found.floors == {"exact": pytest.approx(math.log(2))}
    assert 0 < found.details["ess"] <= 1


def test_what_does_not_fit_is_told():
    for text, told in (
        ("bridge: {name: flow, network: mlp}\n", "data: missing section"),
        ("bridge: {name: flow, network: mlp, target: gmm}\n", "target"),
        ("bridge: {name: density}\n", "data: missing section"),
        ("bridge: {name: density, target: gmn}\n", "Did you mean 'gmm'"),
    ):
        with pytest.raises(RecipeError, match=told):
            Recipe.parse(text)
    for member, rest, told in (
        (MEMBERS["dis"] + f", back: {{name: prior_score, {NETWORK}}}", "", "not learned"),
        (f"sampler: general, {CONTROL}", "", "needs the control"),
    ):
        with pytest.raises(RecipeError, match=told):
            build(recipe(member, rest=rest))
    assert "density" in BRIDGES
