"""State costs: values in closed form, and which way they push."""

import math
from dataclasses import dataclass

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.process.statecost import STATE_COSTS, Congestion, Obstacles, Quadratic, Shell, StateCost

DOUBLE = torch.float64
T = torch.tensor([0.3, 0.6], dtype=DOUBLE)


def states(*shape, seed=0):
    return torch.randn(2, 4, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cost", [Quadratic(), Congestion(), Shell()])
def test_a_cost_has_one_number_per_state_of_any_shape(cost):
    assert cost(states(3, 2, 2), T).shape == (2, 4)


def test_quadratic():
    x = states(3)
    torch.testing.assert_close(Quadratic(alpha=2.5)(x, T), 2.5 * (x**2).sum(2))


def test_an_obstacle_costs_half_at_its_boundary_all_within_and_nothing_away():
    cost = Obstacles(balls=((1.0, 0.0, 0.5),), weight=8.0, edge=0.01)
    x = torch.tensor([[[1.0, 0.5], [1.1, 0.1], [1.0, 0.0], [0.0, 0.0]]], dtype=DOUBLE)
    torch.testing.assert_close(cost(x, T[:1]), torch.tensor([[4.0, 8.0, 8.0, 0.0]], dtype=DOUBLE), rtol=0, atol=1e-4)
    assert cost.inside(x).tolist() == [[False, True, True, False]]


def test_obstacles_push_out_and_have_a_derivative_at_the_centre():
    cost = Obstacles(balls=((0.0, 0.0, 1.0), (9.0, 9.0, 1.0)), edge=0.5)
    x = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(cost(x, T[:1]).sum(), x)
    assert slope[0, 0, 0] < 0
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("balls", [(), ((0.0, 1.0), (0.0, 0.0, 1.0)), ((1.0,),), ((0.0, 0.0, -1.0),)])
def test_balls_that_are_none_are_refused(balls):
    with pytest.raises(ArgumentError, match="balls"):
        Obstacles(balls=balls)


def test_balls_of_another_dimension_are_refused():
    with pytest.raises(ArgumentError, match="2 dimensions, but the states have 3"):
        Obstacles()(states(3), T)


def test_congestion_pushes_each_from_the_others_only():
    x = states(2).requires_grad_()
    cost, other = Congestion(weight=3.0, scale=2.0), x.detach().roll(1, 1)
    expected = 6 / (((x - other) ** 2).sum(2) / 4 + 1)
    torch.testing.assert_close(cost(x, T), expected)
    (slope,) = torch.autograd.grad(cost(x, T).sum(), x)
    assert bool(((slope * (x - other)).sum(2) < 0).all())
    pushed = -12 * (x - other) / 4 / (((x - other) ** 2).sum(2, keepdim=True) / 4 + 1) ** 2
    torch.testing.assert_close(slope, pushed.detach())


def test_the_shell_costs_nothing_on_great_circles_and_half_the_way_in_on_straight_lines():
    a, b = torch.zeros(64, dtype=DOUBLE), torch.zeros(64, dtype=DOUBLE)
    a[0] = b[1] = 8.0
    middle = torch.stack([(a + b) / math.sqrt(2), (a + b) / 2])[None]
    expected = torch.tensor([[0.0, 64 * (1 - math.sqrt(0.5)) ** 2]], dtype=DOUBLE)
    torch.testing.assert_close(Shell()(middle, T[:1]), expected, rtol=1e-9, atol=1e-9)


def test_a_cost_of_ones_own_is_one_class():
    @STATE_COSTS.register("wall_of_the_tests")
    @dataclass(frozen=True, kw_only=True)
    class Wall(StateCost):
        height: float = 3.0

        def __call__(self, x, t):
            return self.height * torch.relu(x[..., 0]) * t[:, None]

    assert STATE_COSTS["wall_of_the_tests"] is Wall
    assert Wall()(states(2), T).shape == (2, 4)
