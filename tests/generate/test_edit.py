"""Directions of attributes and edits along them, of codes whose law is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from latentsb.autoencoders.identity import Identity
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.vae import VAE
from latentsb.channels import Exact
from latentsb.data.arrays import ArraySource
from latentsb.directions import Direction, Logistic, Means, Ridge, find, worth
from latentsb.edits import Asked, asked_of, direction_of, edit
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.experiment import Experiment
from latentsb.generate import reconstruct
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.solvers.base import SOLVERS
from latentsb.tensors import Condition, Spec

DOUBLE = torch.float64
MEAN = torch.tensor([0.4, -0.2, 0.1], dtype=DOUBLE)
COV = torch.tensor([[1.0, 0.5, 0.2], [0.5, 0.8, -0.3], [0.2, -0.3, 0.9]], dtype=DOUBLE)
CODE = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.5, -1.0]], dtype=DOUBLE)
SLOPE, SPREAD = torch.tensor([0.7, -0.4], dtype=DOUBLE), 0.6
"""The attribute is SLOPE z + SPREAD ε."""
OF_Z = CODE @ COV @ CODE.T
GAIN = COV @ CODE.T @ torch.linalg.inv(OF_Z)
"""E[x0 | z] = MEAN + GAIN (z − CODE MEAN)."""
LEFT = COV - GAIN @ CODE @ COV
"""Cov(x0 | z)."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Coded(Encoder):
    """z = CODE x0."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ CODE.T


class Spun(Decoder):
    """Some x1; what it is does not matter to an exact denoiser."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.sum(1, keepdim=True)], 1)


class Optimum(Network):
    """F of the `shifted` preconditioning for unit sigma_data whose denoiser is E[x0 | y, z]."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        variance = (8 * t).exp()[..., None]
        y = x * (1 + variance).sqrt()
        centre = MEAN + (cond["z"] - MEAN @ CODE.T) @ GAIN.T
        spread = LEFT + variance[..., None] * torch.eye(3, dtype=DOUBLE)
        pull = torch.linalg.solve(spread, (y - centre)[..., None])[..., 0] @ LEFT
        return (centre + pull - y / (1 + variance)) * ((1 + variance) / variance).sqrt()


def experiment(bridge: nn.Module, n: int = 4000, held: int | None = None) -> Experiment:
    """Data with an attribute, a class that agrees with its sign, and a column of noise."""

    def source(rows: int, seed: int) -> ArraySource:
        x = MEAN + noise(rows, 3, seed=seed) @ torch.linalg.cholesky(COV).T
        y = x @ CODE.T @ SLOPE + SPREAD * noise(rows, seed=seed + 1)
        attributes = torch.stack([y, noise(rows, seed=seed + 2)], 1)
        cond = {"label": (y > y.mean()).long(), "attributes": attributes}
        return ArraySource(x, cond=cond, classes=2)

    data, autoencoder = source(n, 10), Identity(Spec((3,), DOUBLE))
    other = None if held is None else source(held, 20)
    return Experiment(None, data, autoencoder, bridge.eval(), SOLVERS["dpmpp"](steps=40), held=other)


def bridge(kind: str = "dbae") -> nn.Module:
    parts = {"encoder": lambda *a: Coded(*a), "decoder": lambda *a: Spun(*a), "z_dim": 2, "channel": Exact()}
    ends = Ends(spec=Spec((3,), DOUBLE))
    return VAE(ends, **parts) if kind == "vae" else DBAE(ends, network=lambda *a: Optimum(*a), **parts)


def true_direction() -> Direction:
    """The population's: weights s⊙SLOPE of unit length, and the spread of the projection."""
    scale = OF_Z.diagonal().sqrt()
    weights = scale * SLOPE / (scale * SLOPE).norm()
    correlation = OF_Z / scale[:, None] / scale
    return Direction("y", weights, MEAN @ CODE.T, scale, float((weights @ correlation @ weights).sqrt()), Ridge(), 0)


def test_an_edit_moves_the_faithful_decoding_by_the_derived_vector():
    """One standard deviation of SLOPE z: δ = √(SLOPE S SLOPE) s²⊙SLOPE / |s⊙SLOPE|², and x0 follows by GAIN δ."""
    made = experiment(bridge())
    images = made.source.samples[:20]
    strengths = (-1.5, 0.0, 2.0)
    found = edit(made, images, true_direction(), strengths=strengths, mode="faithful", batch=7)
    variances = OF_Z.diagonal()
    step = (SLOPE @ OF_Z @ SLOPE).sqrt() * variances * SLOPE / (variances * SLOPE.square()).sum()
    torch.testing.assert_close(step @ SLOPE, (SLOPE @ OF_Z @ SLOPE).sqrt())  # it is one deviation of SLOPE z
    # The one call is made at sigma_eff = 80 with y = 0, which pulls the mean by about LEFT/80².
    for k, strength in enumerate(strengths):
        expected = found.edited[:, 1] + strength * step @ GAIN.T
        torch.testing.assert_close(found.edited[:, k], expected, rtol=0, atol=4 * float(LEFT.norm()) / 80**2)
    torch.testing.assert_close(found.edited[:, 1], MEAN + (found.z - MEAN @ CODE.T) @ GAIN.T, rtol=0, atol=1e-3)
    assert found.calls == 1


def test_a_perceptual_edit_keeps_the_noise():
    """The exact decoder is affine in z for fixed noise: strengths move it by the same vector."""
    made = experiment(bridge())
    found = edit(made, made.source.samples[:5], true_direction(), strengths=(0.0, 1.0, 2.0), seed=4)
    moves = found.edited.diff(dim=1)
    torch.testing.assert_close(moves[:, 0], moves[:, 1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(moves[:, 0], (true_direction().step @ GAIN.T).expand(5, -1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["faithful", "perceptual"])
@pytest.mark.parametrize("keep", [False, True])
def test_strength_zero_is_the_reconstruction_to_the_bit(mode, keep):
    made = experiment(bridge())
    images = made.source.samples[:9]
    found = edit(made, images, true_direction(), mode=mode, keep_endpoint=keep, seed=3, batch=4)
    alone = reconstruct(made, images, mode=mode, seed=3, batch=4)
    assert torch.equal(found.edited[:, 2], alone.bridge)
    assert torch.equal(found.z, alone.z)
    assert found.strengths == (-2.0, -1.0, 0.0, 1.0, 2.0)


def test_an_endpoint_that_is_kept_leaves_a_bridge_without_a_network_where_it_was():
    made = experiment(bridge("vae"))
    images = made.source.samples[:3]
    anew = edit(made, images, true_direction(), strengths=(0, 2), mode="faithful")
    kept = edit(made, images, true_direction(), strengths=(0, 2), mode="faithful", keep_endpoint=True)
    step = true_direction().step
    moved = 2 * torch.cat([step, step.sum()[None]])
    torch.testing.assert_close(anew.edited[:, 1] - anew.edited[:, 0], moved.expand(3, 3))
    assert torch.equal(kept.edited[:, 1], kept.edited[:, 0])


def test_an_endpoint_from_the_data_is_always_kept():
    """Inferred anew under the moved code, x1 = x0 − Dec(z') would bring the image itself back."""

    class Remembering(VAE):
        inverts = True

        def endpoint(self, cond, x0=None, draws=None):
            return cond.with_(x1=x0 - self.decoder(cond["z"]))

        def denoise(self, x, t, cond):
            return cond["x1"] + self.decoder(cond["z"])

    parts = {"encoder": lambda *a: Coded(*a), "decoder": lambda *a: Spun(*a), "z_dim": 2, "channel": Exact()}
    made = experiment(Remembering(Ends(spec=Spec((3,), DOUBLE)), **parts))
    images = made.source.samples[:3]
    found = edit(made, images, true_direction(), strengths=(0, 1), mode="faithful")
    step = true_direction().step
    torch.testing.assert_close(found.edited[:, 0], images)
    torch.testing.assert_close(found.edited[:, 1], images + torch.cat([step, step.sum()[None]]))


def test_a_strength_is_a_standard_deviation_along_the_direction():
    made = experiment(bridge(), n=500)
    codes = made.source.samples @ CODE.T
    found = find("y", codes, made.source.values["attributes"][:, 0], Ridge())
    places = found.project(codes)
    torch.testing.assert_close(places.mean(), torch.zeros((), dtype=DOUBLE), rtol=0, atol=1e-12)
    torch.testing.assert_close(places.std(correction=0), torch.ones((), dtype=DOUBLE))
    torch.testing.assert_close(found.project(found.move(codes, -1.7)), places - 1.7)
    assert torch.equal(found.move(codes, 0.0), codes)
    assert float(torch.corrcoef(torch.stack([places, made.source.values["attributes"][:, 0]]))[0, 1]) > 0


def test_regression_finds_the_slope():
    """The error of least squares has covariance SPREAD² S⁻¹/N."""
    made = experiment(bridge(), n=20_000)
    z = made.source.samples @ CODE.T
    found = Ridge(alpha=1e-12).weights(z - z.mean(0), made.source.values["attributes"][:, 0])
    error = SPREAD * (torch.linalg.inv(OF_Z).diagonal() / len(z)).sqrt()
    assert bool(((found - SLOPE).abs() < 4 * error).all())
    assert bool((SLOPE.abs() > 20 * error).all())
    whole = find("y", z, made.source.values["attributes"][:, 0], Ridge(alpha=1e-12))
    torch.testing.assert_close(whole.step, true_direction().step, rtol=0.05, atol=0.02)


def classes(n: int = 20_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of two Gaussian classes, their labels, Δ = μ₁ − μ₀ and the common covariance."""
    shared, apart = OF_Z, torch.tensor([0.8, 0.5], dtype=DOUBLE)
    label = (torch.arange(n) % 4 == 0).double()  # a quarter is in the class
    codes = noise(n, 2, seed=8) @ torch.linalg.cholesky(shared).T + label[:, None] * apart
    return codes, label, apart, shared


@pytest.mark.parametrize("rule", [Ridge(alpha=1e-12), Means(), Logistic(penalty=1e-9)])
def test_directions_of_gaussian_classes_are_the_analytic_ones(rule):
    """`ridge`: (S + π(1−π) ΔΔᵀ)⁻¹ π(1−π) Δ, parallel to S⁻¹Δ; `means`: π(1−π) Δ; `logistic`: S⁻¹Δ."""
    codes, label, apart, shared = classes()
    share = 0.25 * 0.75
    centred = codes - codes.mean(0)
    total = shared + share * torch.outer(apart, apart)
    fisher = torch.linalg.solve(shared, apart)
    expected = {
        "Ridge": torch.linalg.solve(total, share * apart),
        "Means": share * apart,
        "Logistic": fisher,
    }[type(rule).__name__]
    found = rule.weights(centred, label)
    # Each is a mean of terms per sample, up to a fixed matrix: the standard error is that of their mean.
    if isinstance(rule, Logistic):
        p = torch.sigmoid(codes @ fisher - apart @ fisher / 2 + math.log(0.25 / 0.75))
        bread = torch.linalg.inv((centred.T * (p * (1 - p))) @ centred / len(codes))
        terms = (label - p)[:, None] * centred @ bread
    elif isinstance(rule, Ridge):
        residual = label - 0.25 - (codes - 0.25 * apart) @ expected
        terms = residual[:, None] * centred @ torch.linalg.inv(total)
    else:
        terms = (label - 0.25)[:, None] * centred
    error = terms.std(0) / math.sqrt(len(codes))
    assert bool(((found - expected).abs() < 4 * error).all()), (found, expected, error)
    assert bool((expected.abs() > 5 * error).any())
    if isinstance(rule, Ridge):
        torch.testing.assert_close(expected / expected.norm(), fisher / fisher.norm())


def test_a_held_out_figure_is_that_of_two_gaussians():
    """AUROC = Φ(d/√2) with d² = Δᵀ S⁻¹ Δ; of a number, r = √(explained/total)."""
    codes, label, apart, shared = classes()
    found = find("class", codes[:10_000], label[:10_000], Ridge())
    told = worth(found, codes[10_000:], label[10_000:], "the rest")
    d = math.sqrt(float(apart @ torch.linalg.solve(shared, apart)))
    assert told.figure == "AUROC"
    assert abs(told.value - (1 + math.erf(d / 2)) / 2) < 4 * told.error
    assert told.error < 0.01
    assert not told.poor
    made = experiment(bridge(), n=8000, held=2000)
    signal = float(SLOPE @ OF_Z @ SLOPE)
    number = direction_of(made, "attributes:0").worth
    assert (number.figure, number.count, number.measured_on) == ("r", 2000, "held-out data")
    assert abs(number.value - math.sqrt(signal / (signal + SPREAD**2))) < 4 * number.error
    nothing = direction_of(made, "attributes:1").worth
    assert nothing.poor
    assert abs(nothing.value) < 4 * nothing.error


def test_errors_of_worth_are_its_spread_over_repetitions():
    """AUROC of 20 exponential samples of mean 4 against 200 of mean 1 (Hanley and McNeil's own model), and r = 0.8."""
    one = torch.ones(1, dtype=DOUBLE)
    along = Direction("a", one, 0 * one, one, 1.0, Means(), 0)
    generator = torch.Generator().manual_seed(9)
    label = (torch.arange(220) < 20).double()
    areas, correlations = [], []
    for _ in range(300):
        draw = torch.empty(220, dtype=DOUBLE).exponential_(generator=generator) * (1 + 3 * label)
        areas.append(worth(along, draw[:, None], label, "draws"))
        x, y = torch.randn(2, 60, dtype=DOUBLE, generator=generator)
        correlations.append(worth(along, x[:, None], 0.8 * x + 0.6 * y, "draws"))
    for found, value, figure in ((areas, 0.8, "AUROC"), (correlations, 0.8, "r")):
        values = torch.tensor([told.value for told in found])
        errors = torch.tensor([told.error for told in found])
        assert {told.figure for told in found} == {figure}
        assert abs(float(values.mean()) - value) < 4 * float(values.std()) / math.sqrt(300) + 0.003
        # The spread of 300 is known to 4 %, and the errors are those at estimates, off by as much.
        assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.2)


def test_a_class_is_told_from_the_rest_and_measured_on_what_it_was_not_fitted_to():
    made = experiment(bridge(), n=3000)
    found = direction_of(made, 1)
    assert found.attribute == "class 1"
    assert (found.fitted_on, found.worth.count) == (2400, 600)
    assert "kept from it" in found.worth.measured_on
    other = direction_of(made, "0")
    torch.testing.assert_close(found.weights, -other.weights)
    assert found.worth.value > 0.7
    # Labels that know nothing of the codes: chance, on codes that were not fitted to.
    made.source.values["label"] = made.source.values["label"][torch.randperm(3000, generator=torch.Generator())]
    assert direction_of(made, 1).worth.poor


def test_an_attribute_is_found_by_name_or_number():
    class Named(ArraySource):
        def words(self, name):
            return {"label": ("cat", "dog"), "attributes": ("smiling", "young")}[name]

    both = Named(noise(4, 3), cond={"label": torch.tensor([0, 1, 1, 0]), "attributes": noise(4, 2)}, classes=2)
    assert asked_of(both, "young") == Asked("young", "attributes", 1)
    assert asked_of(both, "dog") == Asked("dog", "label", 1)
    assert asked_of(both, 1) == Asked("class 1", "label", 1)
    assert asked_of(both, "attributes:1") == Asked("attribute 1", "attributes", 1)
    assert asked_of(both, "label:cat") == Asked("cat", "label", 0)
    torch.testing.assert_close(asked_of(both, "dog").of(both.values), torch.tensor([0.0, 1, 1, 0], dtype=DOUBLE))
    assert torch.equal(asked_of(both, "young").of(both.values), both.values["attributes"][:, 1].double())
    columns = ArraySource(noise(4, 3), cond={"attributes": noise(4, 2)})
    assert asked_of(columns, "1") == Asked("attribute 1", "attributes", 1)
    with pytest.raises(ArgumentError, match=r"attribute: found 'smilling'.*smiling, young, cat, dog.*Did you mean"):
        asked_of(both, "smilling")
    with pytest.raises(ArgumentError, match="attribute: found 2, expected 0 to 1"):
        asked_of(both, "2")
    with pytest.raises(CapabilityError, match="needs data with labels or attributes"):
        asked_of(ArraySource(noise(4, 3)), "young")


def test_what_has_no_direction_is_told():
    codes = noise(50, 2)
    with pytest.raises(DataError, match="the same value in all 50 samples"):
        find("smiling", codes, torch.ones(50), Ridge())
    with pytest.raises(DataError, match="the codes do not vary with it"):
        find("smiling", torch.zeros(50, 2), noise(50), Means())
    with pytest.raises(ArgumentError, match="'logistic' is for classes"):
        find("age", codes, noise(50), Logistic())
    made = experiment(bridge(), n=20)
    with pytest.raises(ArgumentError, match="strengths: found none"):
        edit(made, made.source.samples, true_direction(), strengths=())


def test_a_number_of_the_code_that_never_varies_is_left_alone():
    codes = torch.cat([noise(200, 2), torch.full((200, 1), 3.0, dtype=DOUBLE)], 1)
    found = find("first", codes, codes[:, 0], Ridge())
    assert found.step[2] == 0
    assert found.step[0] > 0.9
