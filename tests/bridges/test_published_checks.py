"""The analytic checks of the diffusion bridge autoencoder, by number, and those of them that stand nowhere else.

Places are relative to the folder of the tests; a test holds each of them to exist.

Bridge
 1. pinning: process/test_reference.py::test_pinning
 2. forward moments by integration: process/test_reference.py::test_forward_moments_by_integration
 3. h as a gradient: process/test_reference.py::test_h_is_the_gradient_of_the_log_transition
 4. Bayes' rule for scores: process/test_reference.py::test_bayes_bridge_score_is_kernel_score_plus_pull
 5. limits of h: process/test_reference.py::test_h_limits, process/test_reference.py::test_ve_pull_is_explicit
 6. signal-to-noise ratio and its rate: process/test_reference.py::test_snr_difference_and_its_rate
 7. asymptotics: process/test_reference.py::test_vp_asymptotics
 8. the Markov posterior: process/test_reference.py::test_posterior_is_the_published_one_and_keeps_the_marginals,
    solvers/test_identities.py::test_markov_posterior_forgets_the_endpoint
 9. posterior steps keep the marginals: bridges/test_published_steps.py::test_posterior_steps_keep_the_marginals,
    solvers/test_second_order.py::test_one_stochastic_step_is_the_published_one
10. VP against VE: process/test_reference.py::test_scaled_time_and_space_turn_vp_into_ve,
    solvers/test_golden_table.py::test_ve_and_vp_agree_in_noise_coordinates

Gaussian conditionals
11. denoiser and score: solvers/test_identities.py::test_denoiser_and_score,
    bridges/test_exact.py::test_dbae_is_the_closed_form
12. transport by the ODE: solvers/test_identities.py::test_ode_transports_quantiles
13. one law of SDE and ODE: solvers/test_identities.py::test_reverse_sde_has_the_law_of_the_ode
14. starts at the exact endpoint: solvers/test_identities.py::test_exact_endpoint_start_of_the_sde,
    solvers/test_identities.py::test_exact_endpoint_start_of_the_ode
15. the gauge: solvers/test_identities.py::test_deterministic_solvers_do_not_see_the_endpoint,
    bridges/test_published_steps.py::test_the_ode_from_any_endpoint_ends_in_the_median
16. the best error and twice it: generate/test_generate.py::test_a_faithful_reconstruction_is_the_conditional_mean,
    generate/test_generate.py::test_a_perceptual_reconstruction_has_twice_the_error_of_a_faithful_one
    The tables: process/test_reference.py::test_vp_golden_table, process/test_reference.py::test_ve_golden_table,
    process/test_preconditioning.py::test_official_golden_table, solvers/test_golden_table.py::test_official_churn

Preconditioning and loss
17. unit variances: process/test_preconditioning.py::test_official_input_and_target_have_unit_variance
18. initial loss: process/test_preconditioning.py::test_initial_loss_is_one,
    process/test_preconditioning.py::test_initial_loss_under_a_wrong_covariance,
    bridges/test_linear_gaussian.py::test_ignored_covariance_shows_in_the_initial_loss
19. error of x0 and of the output: process/test_preconditioning.py::test_weighted_error_is_the_error_of_the_output
20. score form: process/test_times.py::test_likelihood_weight_is_the_score_weight
21. EDM's form: process/test_preconditioning.py::test_official_without_spread_of_x1_is_edm
22. limits of the weight: process/test_preconditioning.py::test_official_limits,
    process/test_preconditioning.py::test_official_weight_integrates_to_its_published_value
23. training and sampling share their settings: bridges/test_published_checks.py::test_what_was_trained_is_sampled,
    training/test_resume.py::test_a_changed_recipe_is_refused_and_the_keys_are_named;
    another default fails process/test_preconditioning.py::test_official_golden_table

The linear-Gaussian autoencoder
24. the optimum for any decoder:
    bridges/test_training.py::test_linear_gaussian_autoencoder_learns_its_optimum_with_any_endpoint_decoder,
    bridges/test_dbae_terms.py::test_the_endpoint_term_is_beside_the_gauge
25. I-MMSE: process/test_times.py::test_half_the_integral_of_the_likelihood_weight_is_information,
    bridges/test_linear_gaussian.py::test_likelihood_weight_measures_information
26. the certified bound: bridges/test_published_checks.py::test_the_loss_certifies_information,
    metrics/test_information.py::test_certified_bound_of_the_linear_gaussian_autoencoder
27. capacity: bridges/test_parts.py::test_stochastic_code_has_the_published_form_and_capacity,
    bridges/test_channels.py::test_capacities
28. divergence of the prior: bridges/test_published_checks.py::test_the_mean_rate_is_information_and_divergence,
    bridges/test_prior.py::test_the_regularised_loss_is_information_and_the_divergence_of_the_prior,
    bridges/test_prior.py::test_decoding_loses_divergence_and_an_invertible_decoder_none

Software
29. calls: bridges/test_published_steps.py::test_calls_of_the_published_samplers, solvers/test_solvers.py::test_calls
30. determinism: solvers/test_solvers.py::test_a_sample_depends_on_its_seed_alone,
    generate/test_generate.py::test_a_sample_depends_on_its_seed_alone
31. resuming: training/test_resume.py::test_longer_training_is_the_long_training,
    training/test_resume.py::test_sigterm_saves_at_that_very_step_and_nothing_changes,
    training/test_kills.py::test_three_killed_runs_end_as_the_unbroken_one
32. averages of buffers: training/test_ema.py::test_floating_buffers_are_averaged_counts_are_copied_and_others_stay,
    bridges/test_published_checks.py::test_averaged_statistics_decode_each_code_by_itself
33. SSIM: metrics/test_similarity.py::test_agrees_with_torchmetrics,
    metrics/test_similarity.py::test_ssim_of_equals_is_one_and_it_is_symmetric,
    bridges/test_published_checks.py::test_ssim_sees_channels_apart_and_places_together
34. grey levels: generate/test_outputs.py::test_every_grey_level_survives_writing_and_reading
35. TAD: metrics/test_disentanglement.py::test_tad_of_one_number_for_each_attribute,
    metrics/test_disentanglement.py::test_a_doubled_number_and_noise_have_no_tad,
    metrics/test_disentanglement.py::test_redundant_attributes_do_not_count
36. probes: metrics/test_probes.py::test_linear_targets_are_read_perfectly_and_noise_not_at_all
37. interpolation and edit: generate/test_walks.py::test_interpolation_in_z_ends_at_the_reconstructions,
    generate/test_edit.py::test_strength_zero_is_the_reconstruction_to_the_bit,
    bridges/test_parts.py::test_interpolation_ends_where_reconstruction_does_and_moves_straight_between
38. routes of the gradient: bridges/test_training.py::test_gradient_reaches_encoder_and_decoder_by_each_route,
    bridges/test_dbae_terms.py::test_gradients_take_the_routes_that_are_open,
    bridges/test_dbae_terms.py::test_a_fixed_decoder_stays_what_it_was
"""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from latentsb.bridges.dbae import DBAE
from latentsb.channels import CodeLaw
from latentsb.ema import Ema, HalfLife
from latentsb.errors import CheckpointError
from latentsb.experiment import build
from latentsb.laws import Ends
from latentsb.metrics.similarity import ssim
from latentsb.networks.base import Decoder
from latentsb.prior import GaussianPrior
from latentsb.process.preconditioning import Official
from latentsb.process.times import Likelihood
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.recipe.sections import TrainSettings
from latentsb.run import Run
from latentsb.tensors import Condition, Spec
from latentsb.trainer import Trainer
from latentsb.update import Update

DOUBLE = torch.float64


def f64(value):
    return torch.tensor(value, dtype=DOUBLE)


def test_every_check_has_a_test_that_exists(places):
    places(__doc__, 38)


RECIPE = """
data: {name: gaussian, mean: [0.5, -1.0], n: 64}
bridge:
  name: dbae
  z_dim: 1
  network: {name: mlp, width: 8, depth: 1}
  encoder: {name: dense, width: 8, depth: 1}
  decoder: {name: dense, width: 8, depth: 1}
  preconditioning: {name: official, sigma_end: 0.7, covariance: 0.1}
train: {images: 32, batch: 16, lr: 0.1, warmup: 0, ema: null, log_every: 16, save_every: 32, preview_every: 1000000}
"""


def test_what_was_trained_is_sampled(gauss, tmp_path):
    """One object says how the network is scaled; a run keeps it, and does not go on with another."""
    recipe = Recipe.parse(RECIPE, (), label="toy")
    trained = build(recipe)
    run = Run.create(recipe, tmp_path / "run")
    try:
        Trainer(run, trained, device="cpu").fit()
    finally:
        run.close()
    sampled = Run.open(tmp_path / "run").experiment(weights="model", device="cpu")
    there, here = trained.bridge, sampled.bridge
    assert here.preconditioning == there.preconditioning == Official(sigma_end=0.7, covariance=0.1)
    assert hash(here.preconditioning) == hash(there.preconditioning)
    assert (here.reference, here.times, here.weight) == (there.reference, there.times, there.weight)
    x, t, x1 = gauss.data(3).float(), f64(0.97), gauss.data(3, 1).float()
    cond = Condition({"x1": x1, "z": x1[:, :1]})
    with torch.no_grad():
        told = there.eval().denoise(x, t, cond)
        assert torch.equal(here.denoise(x, t, cond), told)
        # The published mismatch, a smaller sigma_end at sampling, does not go unnoticed.
        here.preconditioning = Official(sigma_end=0.21, covariance=0.1)
        assert float((here.denoise(x, t, cond) - told).abs().max()) > 0.1 * float(told.abs().max())
    other = Recipe.parse(RECIPE, ("bridge.preconditioning.sigma_end=0.5",), label="toy")
    with pytest.raises(CheckpointError, match="sigma_end"):
        Run.create(other, tmp_path / "run")


# x0 ~ N(0, 1/4), z = 1.3 x0 + 0.4 ε.
S2 = 0.25
Z2 = 1.3**2 * S2 + 0.4**2
P = S2 - (1.3 * S2) ** 2 / Z2
INFORMATION = math.log(S2 / P) / 2


@pytest.mark.parametrize(("sigma", "published"), [(0.3, 0.38106), (0.03, 0.64136), (0.003, 0.64603)])
def test_the_loss_certifies_information(gauss, sigma, published):
    """I(x0; y at sigma), less half the weighted error from there on, by quadrature with the bridge's own weight."""
    bridge = DBAE(
        Ends(Spec((1,), DOUBLE)),
        network=gauss.BridgeOptimum,
        encoder=gauss.LinearEncoder,
        decoder=gauss.LinearDecoder,
        z_dim=1,
        preconditioning=Official(),
        weight=Likelihood(),
    )
    first = float(bridge.reference.time_of_sigma_eff(f64(sigma), pinned=True))

    def certified(variance):
        """With the error of a denoiser whose estimate of x0 has this variance before it sees the state."""

        def weighted(log_t):
            t = log_t.exp()
            at = bridge.marginal(t)
            weight = bridge.weight.of(t, bridge, bridge.preconditioning.coefficients(at, t))
            return weight * variance * at.c / (at.b**2 * variance + at.c) * t

        # Beyond 1 − 1e-9 nothing is left: 1/sigma_eff² is 1e-9 there.
        half = gauss.integral(weighted, math.log(first), math.log1p(-1e-9)) / 2
        return math.log(1 + S2 / sigma**2) / 2 - half

    assert pytest.approx(0.6460776851, abs=1e-10) == INFORMATION
    assert certified(P) == pytest.approx(math.log((1 + S2 / sigma**2) / (1 + P / sigma**2)) / 2, abs=1e-7)
    assert certified(P) == pytest.approx(published, abs=5.1e-6)
    assert certified(P) < INFORMATION
    # A denoiser that does not know z certifies nothing.
    assert certified(S2) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("v", [0.5, Z2, 2.0])
def test_the_mean_rate_is_information_and_divergence(gauss, v):
    """L_PR = E KL(q(z|x0) ‖ N(0, v)) = I(x0; z) + (v_z/v − 1 − ln(v_z/v))/2, least for v = v_z, which fitting finds."""
    n = 100_000
    x0 = 0.5 * torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    law = CodeLaw(1.3 * x0, torch.full_like(x0, 0.4))
    rate = CodeLaw(law.mean / v**0.5, law.sigma / v**0.5).rate().sum(1)
    divergence = (Z2 / v - 1 - math.log(Z2 / v)) / 2
    assert gauss.within(rate, INFORMATION + divergence)
    assert divergence > 0.005 if v != Z2 else divergence == 0
    prior = GaussianPrior(Spec((1,), DOUBLE), {})
    prior.fit([law.draw(Draws.step(0, "code", 0, range(n)))])
    fitted = Normal(prior.codes.mean, prior.codes.cov[0].sqrt())
    left = kl_divergence(Normal(f64(0.0), f64(Z2**0.5)), fitted)
    # Twice the divergence from a fit of two parameters is χ²(2)/n: above 20/n in one of 20,000.
    assert float(left) < 10 / n


class Normed(Decoder):
    """A decoder with batch statistics."""

    def __init__(self, dim, out):
        super().__init__(dim, out)
        self.layers = nn.Sequential(nn.Linear(dim, 6), nn.BatchNorm1d(6), nn.Linear(6, out.numel))

    def forward(self, z):
        return self.layers(z)


def test_averaged_statistics_decode_each_code_by_itself(gauss):
    """Running statistics are averaged with the weights; under the average a code's x1 does not know its neighbours."""
    torch.manual_seed(0)
    bridge = DBAE(
        Ends(Spec((2,))),
        network=lambda x, cond: gauss.LinearNetwork(x, cond, knots=torch.linspace(-2, 2, 5), reads=("z", "x1")),
        encoder=gauss.LinearEncoder,
        decoder=Normed,
        z_dim=2,
    )
    ema = Ema(bridge, [HalfLife(images=64, ramp=0)])
    settings = TrainSettings(batch=32, lr=0.01, warmup=0)
    update = Update(bridge, settings, seed=0, purpose="test", ema=ema, bf16=False)
    name, average = "decoder.layers.1.running_mean", torch.zeros(6)
    for k in range(4):
        batch = gauss.batch(gauss.data(32, k).float(), k * 32)
        update.step(batch, bridge.schedule().now(k * 32, {}), k * 32, None)
        average = average.lerp(bridge.state_dict()[name], 1 - 0.5**0.5)
    assert_close(ema.state("ema-64")[name], average)
    assert float(average.abs().max()) > 0.01
    z = 3 * torch.randn(5, 2)
    training = bridge.endpoint(Condition({"z": z}))["x1"].detach()
    bridge.eval()
    with torch.no_grad(), ema.applied("ema-64"):
        whole = bridge.endpoint(Condition({"z": z}))["x1"]
        alone = torch.cat([bridge.endpoint(Condition({"z": row[None]}))["x1"] for row in z])
    assert_close(alone, whole, rtol=1e-5, atol=1e-6)
    assert float((training - whole).abs().max()) > 0.1


def test_ssim_sees_channels_apart_and_places_together():
    """Channels in another order change nothing; a window over columns and colours, as published, finds more alike.

    Such images are refused where the last dimension can only be colours. For five of them the published figure shows:
    the pictures are smooth and alike in all channels, and their noise is not.
    """
    rng = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(torch.randn(2, 1, 4, 4, generator=rng), size=32, mode="bicubic") / 3
    x = smooth.double().expand(2, 5, 32, 32)
    y = x + 0.1 * torch.randn(x.shape, generator=rng, dtype=DOUBLE)
    right, order = ssim(x, y), [2, 0, 4, 1, 3]
    assert_close(ssim(x[:, order], y[:, order]), right, rtol=1e-12, atol=0)
    assert_close(torch.stack([ssim(x[:, [c]], y[:, [c]]) for c in range(5)]).mean(0), right, rtol=1e-12, atol=0)
    wrong = ssim(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1))
    assert float((wrong - right).abs().min()) > 0.02
    for colours in (1, 3):
        last = x[:, :colours].permute(0, 2, 3, 1)
        with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
            ssim(last, last)
