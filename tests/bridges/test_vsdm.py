"""VSDM: exact scores and reversals for Gaussian data, the policy's minimum, its turns, and resume inside them."""

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.experiment import build
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.policies import Diagonal, Free, Full, Policy, Scaled
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.solvers.grid import Power
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainer import Trainer

F64 = torch.float64
MEAN = torch.tensor([0.5, -1.0], dtype=F64)
COV = torch.tensor([[1.0, 0.9], [0.9, 9.0]], dtype=F64)
A = torch.tensor([[0.3, 0.2], [-0.1, -0.4]], dtype=F64)


class Nothing(Network):
    """Zero: what is left to a network where the data are Gaussian."""

    def forward(self, x, t, cond):
        return 0 * x


def bridge(policy=Full, steered: bool = True, **keys):
    """A bridge to Gaussian data whose score is exact, over a process with some matrix."""
    found = BRIDGES["vsdm"](Ends(Spec((2,), F64)), network=Nothing, policy=policy, **keys)
    found.mean0.copy_(MEAN)
    found.cov0.copy_(COV if found.cov0.ndim == 2 else COV.diagonal())
    if steered:
        found.A.copy_(A if found.A.ndim == 3 else A.diagonal())
        found.a.copy_(torch.tensor([0.2, 0.1]))
    return found


def gaussian(dim: int) -> Policy:
    return Full(dim, profile=Scaled())


def data(n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return MEAN + torch.randn(n, 2, dtype=F64, generator=rng) @ torch.linalg.cholesky(COV).T


@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
def test_the_score_of_gaussian_data_is_exact(t):
    vsdm, x = bridge(), data(5)
    law = vsdm.reference.along(torch.tensor([t], dtype=F64))
    K = law.Phi[0] @ COV @ law.Phi[0].T + law.Q[0]
    exact = -(x - law.Phi[0] @ MEAN - law.m[0]) @ torch.linalg.inv(K)
    assert torch.allclose(vsdm.score(x, torch.tensor(t, dtype=F64), Condition()), exact, rtol=1e-8)
    # Nelson: b_f + b_b = g² score; and the ODE lies half way.
    time = torch.tensor(t, dtype=F64)
    forward, back = (vsdm.drift(x, time, Condition(), end) for end in ("x1", "x0"))
    assert torch.allclose(forward + back, vsdm.diffusion(time) ** 2 * exact, rtol=1e-8)
    assert torch.allclose(vsdm.velocity(x, time, Condition()), (forward - back) / 2, rtol=1e-8)


@pytest.mark.parametrize("policy", [gaussian, Diagonal])
def test_the_ode_from_the_process_own_end_generates_the_data_for_any_matrix(policy):
    vsdm = bridge(policy)
    target = COV if policy is gaussian else COV.diagonal().diag()
    corners = torch.cat([torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)])
    first = vsdm.kernel(torch.ones((), dtype=F64)).sample(corners)
    state = vsdm.start(Batch(torch.arange(3), corners), Draws.seeds(range(3)))
    begin = type(state)(first, state.t, Condition())
    end = Heun(steps=400, grid=Power()).run(vsdm, begin, Draws.seeds(range(3))).x
    root = (end[1:] - end[0]).T  # the ODE is affine here
    assert torch.allclose(end[0], MEAN, atol=5e-3)
    assert torch.allclose(root @ root.T, target, rtol=5e-3, atol=5e-3)


def test_the_loss_of_the_best_guess_is_what_is_left_of_the_noise():
    vsdm, n = bridge(), 40_000
    loss = vsdm.loss(Batch(torch.arange(n), data(n)), Draws.step(0, "loss", 0, range(n))).total
    kernel = vsdm._process()[1]
    exact = float(kernel.rest.double().square().sum((1, 2)).mean() / 2)
    assert abs(float(loss.mean()) - exact) < 4 * float(loss.std()) / n**0.5


@pytest.mark.parametrize("zeta", [1.0, 0.75])
def test_the_policy_has_its_minimum_at_the_closed_form_of_a_stage(zeta):
    vsdm = bridge(zeta=zeta)
    held, shift = vsdm.A[0].clone(), vsdm.a[0].clone()
    S_f, S_b = torch.tensor([[2.0, 0.3], [0.3, 1.5]]).double(), torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    # Four points with exactly these second moments and no mean.
    points = torch.linalg.cholesky(S_b) @ torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]).double()
    x = points.T[:, None]
    push = -x @ torch.linalg.inv(S_f) - x @ held.T - shift
    vsdm.paths_of_turn = {"x": x, "push": push, "t": torch.ones(4, 1, dtype=F64)}
    with torch.no_grad():
        vsdm.policy.weight.copy_(held + torch.linalg.inv(S_f) - zeta * torch.linalg.inv(S_b))
        vsdm.policy.shift.copy_(shift)
    rows = [torch.full((1,), k) for k in range(4)]
    draws = {"path": iter(rows), "step": iter([torch.zeros(1, dtype=torch.int64)] * 4)}

    class Every:
        def integers(self, name, high):
            return next(draws[name])

    total = sum(vsdm.forward_loss(Batch(torch.arange(1)), Every()).total.sum() for _ in rows)
    total.backward()
    assert float(vsdm.policy.weight.grad.abs().max()) < 1e-9
    assert float(vsdm.policy.shift.grad.abs().max()) < 1e-9


def test_simulated_trajectories_have_the_covariance_of_the_exact_reversal():
    from latentsb.oracles import variational
    from latentsb.solvers.sde import EulerMaruyama

    solver = EulerMaruyama(steps=200, grid=Power(), noiseless_last=False)
    vsdm, n = bridge(steered=False, simulation=solver), 4000
    vsdm.mean0.zero_()
    found = vsdm.simulate(Batch(torch.arange(n)), Draws.block(0, "test", 0, n))
    stage = variational.first(vsdm.rate, COV, 50)
    k = int((found["t"][0] - 0.5).abs().argmin())
    here = found["x"][:, k]
    exact = stage.backward[int(float(found["t"][0, k]) * 50)]
    # Five standard errors of a covariance, and a few per cent of the half interval and the steps.
    assert torch.allclose(here.T @ here / n, exact, atol=5 * float(exact.max()) * (2 / n) ** 0.5)
    inverse = torch.linalg.inv(stage.forward[int(float(found["t"][0, k]) * 50)])
    assert torch.allclose(found["push"][:, k], -here @ inverse, rtol=0.1, atol=0.1)


RECIPE = """
data: {name: swissroll, stretch: [1, 4], n: 400}
autoencoder: {name: identity, normaliser: none}
bridge: {name: vsdm, network: {name: mlp, width: 16, depth: 1}, policy: {name: POLICY}, turn: 32, backward: 2,
  adapt: 2, paths: 40, simulation: {name: euler_maruyama, steps: 5, grid: power, noiseless_last: false}}
solver: {name: heun, steps: 3, grid: power}
train: {batch: 16, images: IMAGES, lr: 1e-2, warmup: 0, log_every: 16, save_every: 16, preview_every: 1_000,
  ema: {half_life: 32}}
preview: {n: 4}
"""


def train(folder, policy: str, images: int) -> Run:
    recipe = Recipe.parse(RECIPE.replace("POLICY", policy).replace("IMAGES", str(images)))
    run = Run.create(recipe, str(folder))
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return run


@pytest.mark.parametrize("policy", ["full", pytest.param("low_rank, rank: 1", marks=pytest.mark.slow)])
def test_a_run_interrupted_in_either_turn_goes_on_to_the_same_bits(policy, tmp_path):
    whole = train(tmp_path / "whole", policy, 240)
    for images in (48, 80, 112, 240):  # inside the network's turn, inside the policy's, in the next cycle
        parts = train(tmp_path / "parts", policy, images)
    assert dict(parts.checkpoint().sha256) == dict(whole.checkpoint().sha256)
    vsdm = Run.open(whole.path).experiment(device="cpu").bridge
    assert bool(vsdm.A.any())
    assert bool((vsdm.cov0.diagonal() > 0).all())
    assert float(vsdm.cov0[1, 1]) > 4 * float(vsdm.cov0[0, 0])
    samples = Run.open(whole.path).sample(3, seed=0).images
    assert samples.shape == (3, 2)


def test_a_free_profile_learns_a_matrix_for_each_knot():
    vsdm = bridge(lambda dim: Diagonal(dim, profile=Free(knots=3)))
    assert vsdm.A.shape == (64, 2)
    assert vsdm.policy.weight.shape == (3, 2)
