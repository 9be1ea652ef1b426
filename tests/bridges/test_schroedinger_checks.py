"""Known answers and known traps of Schrödinger bridges, by number, and those of them that stand nowhere else.

Places are relative to the folder of the tests; a test holds each of them to exist.

Known answers
 1. closed forms of the pinned reference: process/test_reference.py::test_special_cases_of_the_pinned_law,
    process/test_reference.py::test_drifts_of_special_cases,
    process/test_reference.py::test_pinned_is_the_bayes_bridge_of_the_transitions
 2. precision of the Gaussian plan:
    oracles/test_gaussian_plan.py::test_the_plan_has_the_ends_and_the_precision_block_of_the_reference
 3. Nelson and the moment equation:
    oracles/test_gaussian_bridge.py::test_moments_obey_the_equation_of_the_forward_drift,
    oracles/test_gaussian_bridge.py::test_nelson_where_both_drifts_come_from_their_own_end
 4. predictions and drifts: process/test_prediction.py::test_a_drift_and_its_prediction_are_inverses,
    process/test_prediction.py::test_single_precision_round_trips_to_a_millionth,
    process/test_conversion.py::test_every_conversion_is_undone_by_its_inverse
 5. a deterministic pair: bridges/test_dsbm.py::test_the_targets_of_a_shift_without_noise_are_the_shift
 6. recursions: oracles/test_recursions.py::test_imf_from_the_independent_coupling,
    oracles/test_recursions.py::test_ipf_of_two_standard_normals_are_fibonaccis_ratios,
    bridges/test_dsbm_recursions.py::test_turns_from_independent_ends_are_iterative_markovian_fitting,
    bridges/test_dsbm_recursions.py::test_turns_from_the_reference_are_iterative_proportional_fitting,
    bridges/test_dsb_optima.py::test_the_recursion_by_simulation_and_least_squares
 7. a mixture pair is recovered: bridges/test_lightsb.py::test_a_known_pair_is_recovered
 8. two forms of the potential: oracles/test_mixture_pair.py::test_lightsbs_form_and_the_benchmarks_are_one,
    bridges/test_lightsb.py::test_the_map_to_the_potential_and_back
 9. a solved joint loss, and its two derivations: bridges/test_sbvae.py::test_the_solved_instance,
    bridges/test_fbsde.py::test_the_joint_loss_is_that_of_sbvae
10. a quadratic state cost: bridges/test_gsbm.py::test_a_quadratic_cost_makes_ornstein_uhlenbeck_bridges,
    bridges/test_gsbm.py::test_the_whole_method_finds_the_gaussian_bridge_of_a_quadratic_cost
11. likelihood by the flow: bridges/test_fbsde.py::test_the_likelihood_of_the_flow_is_that_of_the_data,
    bridges/test_sf2m.py::test_the_likelihood_is_that_of_the_data
12. floor of the log-variance: bridges/test_schroedinger_checks.py::test_the_floor_of_the_log_variance
13. resuming: bridges/test_dsbm_rounds.py::test_a_training_that_is_interrupted_anywhere_ends_with_the_same_bits,
    bridges/test_dsb_runs.py::test_interrupted_inside_any_round_it_ends_in_the_same_bits,
    bridges/test_gsbm.py::test_a_training_interrupted_in_any_turn_ends_in_the_same_bytes,
    bridges/test_sbvae.py::test_a_resumed_run_freezes_at_the_same_step_and_the_encoder_rests_from_then_on
14. exchanged ends: bridges/test_dsbm.py::test_exchanged_ends_make_the_mirrored_bridge,
    oracles/test_gaussian_bridge.py::test_exchanging_the_ends_mirrors_the_drifts,
    bridges/test_lightsb.py::test_towards_x0_is_the_mirror_in_time

Traps
15. labels of chains one step late, rows of a cache in order:
    bridges/test_dsb.py::test_training_and_sampling_ask_at_the_same_times,
    bridges/test_dsb.py::test_rows_are_drawn_from_all_chains_and_places_independently
16. directions exchanged: bridges/test_dsb.py::test_a_deterministic_pair_says_which_way_and_when
17. steps that are not those of the grid, a likelihood of stochastic paths:
    bridges/test_fbsde.py::test_the_chain_takes_the_steps_of_its_grid,
    bridges/test_fbsde.py::test_the_likelihood_of_the_flow_is_that_of_the_data
18. Brownian points and pairs over another reference, simulated pairs coupled anew:
    bridges/test_dsbm.py::test_the_optimum_is_the_markovian_projection_over_any_reference,
    bridges/test_schroedinger_checks.py::test_pairs_of_the_reference_have_its_transition,
    bridges/test_dsbm.py::test_simulated_pairs_are_never_paired_anew
19. exact transport where entropic is due, the factor of the flow, pairs with replacement:
    bridges/test_sf2m.py::test_pairs_are_entropic_by_default_and_at_the_references_epsilon,
    bridges/test_sf2m.py::test_the_pull_of_the_flow_is_half_the_growth_of_the_variance,
    bridges/test_sf2m.py::test_an_exact_plan_is_a_permutation
20. splines that begin narrow, a mean in place of an integral, every pair at every time:
    process/test_splines.py::test_no_knots_moved_is_the_brownian_bridge,
    process/test_splines.py::test_energy_is_the_divergence_from_the_brownian_bridge,
    process/test_splines.py::test_each_pair_is_evaluated_at_its_own_time_only,
    bridges/test_gsbm.py::test_work_grows_with_the_pairs_and_no_faster
21. the first state of a restoration, its schedule and its noiseless limit:
    bridges/test_i2sb.py::test_a_trajectory_starts_at_x1_itself,
    bridges/test_i2sb.py::test_the_reference_is_the_published_schedule,
    bridges/test_i2sb.py::test_without_noise_it_is_the_flow_between_partners
22. epsilon for half the squared distance: process/test_transport.py::test_the_entropic_plan_is_that_of_pot,
    process/test_transport.py::test_gaussians_are_correlated_as_their_schroedinger_bridge_is,
    oracles/test_gaussian_plan.py::test_a_large_sample_agrees_with_pots_sinkhorn
23. variance that ancestral steps lose:
    oracles/test_chain.py::test_ancestral_steps_lose_variance_and_keep_the_covariance
24. full and diagonal covariances: oracles/test_oracle_metrics.py::test_the_floor_is_the_expectation_of_the_estimate,
    oracles/test_oracle_metrics.py::test_the_diagonal_estimate_is_blind_to_correlations
25. small steps in short types: bridges/test_dsb.py::test_states_do_not_lose_small_steps_in_short_types,
    bridges/test_dsbm.py::test_states_are_not_rounded_where_networks_are_short
26. a reference that couples nothing:
    oracles/test_gaussian_bridge.py::test_a_standard_schedule_of_vp_leaves_nothing_to_couple,
    oracles/test_gaussian_plan.py::test_effective_epsilon_of_vp_and_what_it_leaves_of_the_coupling
27. log-variance without the density of an end:
    bridges/test_schroedinger_checks.py::test_without_a_density_a_tilt_is_free
28. networks that know N: bridges/test_schroedinger_checks.py::test_chains_of_another_number_of_steps
"""

import math

import pytest
import torch

from latentsb.oracles import chain
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Normal
from latentsb.process.coupling import FromReference
from latentsb.process.pathloss import LogVariance, LogVarianceTrajectory, Paths
from latentsb.process.references import OU, VE, VP, Brownian
from latentsb.solvers.sde import EulerMaruyama

DOUBLE = torch.float64
UNIT = Normal.isotropic(1)
BRIDGE = GaussianBridge.between(UNIT, UNIT, Brownian(sigma=1.0))


def test_every_check_has_a_test_that_exists(places):
    places(__doc__, 28)


def kernels(steps, scale=1.0):
    """Euler–Maruyama steps of both exact drifts in one dimension: slopes at t_0 … t_{N−1} and at t_1 … t_N."""
    times = chain.uniform(steps)
    forward = [1 + float(BRIDGE.b_f(t).A) / steps for t in times[:-1]]
    backward = [1 + scale * float(BRIDGE.b_b(t).A) / steps for t in times[1:]]
    return torch.tensor(forward, dtype=DOUBLE), torch.tensor(backward, dtype=DOUBLE)


def precision(slopes, towards):
    """Of the whole path `x_0, …, x_N` of a chain from a standard normal end: a sum of squares of its increments."""
    steps = len(slopes)
    found = torch.zeros(steps + 1, steps + 1, dtype=DOUBLE)
    found[0 if towards == "x1" else -1, 0 if towards == "x1" else -1] = 1
    for k, slope in enumerate(slopes):
        row = torch.zeros(steps + 1, dtype=DOUBLE)
        here, there = (k, k + 1) if towards == "x1" else (k + 1, k)
        row[there], row[here] = 1, -slope
        found += steps * torch.outer(row, row)
    return found


def log_ratio(steps, scale=1.0):
    """Mean and variance of `log dP_f/dP_b` under the forward chain: a quadratic form of a normal vector."""
    forward, backward = kernels(steps, scale)
    f, b = precision(forward, "x1"), precision(backward, "x0")
    form = torch.linalg.solve(f, b - f)
    mean = (form.trace() + torch.logdet(f) - torch.logdet(b)) / 2
    return float(mean), float((form @ form).trace() / 2)


def paths(steps, n, seed=0, start=None):
    """Forward chains, and the logarithms of what both kernels make of them, without the densities of the ends."""
    forward, backward = kernels(steps)
    rng = torch.Generator().manual_seed(seed)
    xs = [torch.randn(n, generator=rng, dtype=DOUBLE) if start is None else start]
    for slope in forward:
        xs.append(slope * xs[-1] + torch.randn(len(xs[0]), generator=rng, dtype=DOUBLE) / math.sqrt(steps))
    x = torch.stack(xs)
    log_f = -steps / 2 * (x[1:] - forward[:, None] * x[:-1]).square().sum(0)
    log_b = -steps / 2 * (x[:-1] - backward[:, None] * x[1:]).square().sum(0)
    return x, log_f, log_b


FLOORS = [(10, 2.4e-3), (20, 8.2e-4), (50, 2.4e-4), (100, 1.0e-4)]


@pytest.mark.parametrize(("steps", "variance"), FLOORS)
def test_the_floor_of_the_log_variance(steps, variance):
    """Of the exact drifts between two standard normal laws in N steps, in closed form and by the loss itself."""
    mean, exact = log_ratio(steps)
    assert exact == pytest.approx(variance, rel=0.05)
    n = 40_000
    x, log_f, log_b = paths(steps, n)
    whole = [value[None] for value in (log_f - x[0].square() / 2, log_b - x[-1].square() / 2)]
    found = float(LogVariance().of(Paths(*whole, torch.zeros(1, n), torch.ones(1, n, dtype=torch.bool))))
    assert float((whole[0] - whole[1]).mean()) == pytest.approx(mean, abs=4 * math.sqrt(exact / n))
    # Variance of a variance from fourth moments; of forms in normal numbers the kurtosis is below 15.
    assert found == pytest.approx(exact, rel=4 * math.sqrt(14 / n))


def test_a_wrong_backward_drift_is_far_above_the_floor():
    assert log_ratio(100, scale=0.8)[1] == pytest.approx(9.7e-3, rel=0.05)


def test_without_a_density_a_tilt_is_free():
    """`log π_0` belongs to the log-variance: without it the optimum has a variance, and a tilt of x_0 is not seen.

    Paths that share their start do not see it either: whatever is added to the logarithm as a function of x_0.
    """
    steps, n = 20, 20_000
    x, log_f, log_b = paths(steps, n)
    keep = torch.ones(1, n, dtype=torch.bool)

    whole = (log_b - x[-1].square() / 2)[None]

    def variance(density):
        return float(LogVariance().of(Paths((log_f + density)[None], whole, 0 * whole, keep)))

    right = variance(-x[0].square() / 2)
    assert right == pytest.approx(log_ratio(steps)[1], rel=0.05)
    # Var(x²/2) = 1/2 is left where the density is missing.
    assert variance(torch.zeros(n, dtype=DOUBLE)) == pytest.approx(0.5, rel=4 * math.sqrt(14 / n))
    starts = torch.randn(50, 1, generator=torch.Generator().manual_seed(3), dtype=DOUBLE).expand(50, 400)
    x, log_f, log_b = (v.reshape(-1, 50, 400) for v in paths(steps, n, 1, starts.reshape(-1)))
    end = log_b[0] - x[-1].square() / 2
    shared = [
        LogVarianceTrajectory().of(Paths(log_f[0] + tilt, end, 0 * end, torch.ones(50, 400, dtype=torch.bool)))
        for tilt in (0 * starts, 7 * starts.square())
    ]
    torch.testing.assert_close(shared[0], shared[1], rtol=1e-9, atol=1e-12)
    assert float(shared[0].mean()) < 0.01


@pytest.mark.parametrize("reference", [Brownian(sigma=0.8), OU(theta=1.7, sigma=0.6), VP(), VE()], ids=repr)
def test_pairs_of_the_reference_have_its_transition(gauss, reference):
    """`x1 ~ Q(· | x0)`: for the moments of exact draws, the drift and the noise of that process, not Brownian ones."""
    draws = gauss.Columns(0)
    batch = gauss.both(Normal.isotropic(1, 0.5, 2.0), UNIT, draws.rows, draws)
    pair = FromReference().over(reference).pair(batch, None, draws)
    t = torch.linspace(0, 1, 20_001, dtype=DOUBLE)
    # d mean/dt = f mean, d var/dt = 2 f var + g², by quadrature of the defining coefficients.
    growth = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.cumulative_trapezoid(reference.f(t), t)])
    scale = float(growth[-1].exp())
    spread = scale**2 * float(torch.trapezoid((-2 * growth).exp() * reference.g(t).square(), t))
    assert float(pair.x1.mean()) == pytest.approx(0.5 * scale, rel=1e-4)
    assert float(pair.x1.var(correction=0)) == pytest.approx(2 * scale**2 + spread, rel=1e-3)
    assert float(((pair.x0 - 0.5) * pair.x1).mean()) == pytest.approx(2 * scale, rel=1e-4)


def test_chains_of_another_number_of_steps(gauss):
    """A network is asked at times, not at numbers of steps: trained with 4, it makes chains of 40 that are better."""
    bridge = gauss.dsb(steps=4)
    bridge.networks["x0"].maps = BRIDGE.b_b
    bridge.turn.fill_(1)
    draws = gauss.Columns(40)
    state = bridge.start(gauss.both(UNIT, UNIT, draws.rows, draws), draws, "x0")
    law = chain.run(chain.euler_maruyama(BRIDGE.b_b, BRIDGE.a, chain.uniform(40, "x0")), UNIT).last
    found = EulerMaruyama(steps=40, noiseless_last=False).run(bridge, state, draws, "x0").x
    asked = torch.stack(bridge.networks["x0"].times)
    torch.testing.assert_close(asked, chain.uniform(40, "x0")[:-1])
    assert float(found.var(correction=0)) == pytest.approx(float(law.cov), rel=1e-9)
    coarse = chain.run(chain.euler_maruyama(BRIDGE.b_b, BRIDGE.a, chain.uniform(4, "x0")), UNIT).last
    assert abs(float(law.cov) - 1) < abs(float(coarse.cov) - 1) / 5
