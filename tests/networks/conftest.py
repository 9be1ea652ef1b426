"""What the tests of networks share: draws, weights as after training, conditions of every kind on a map."""

import pytest
import torch

from latentsb.tensors import Condition, Spec

MAP = Spec((4, 4, 6))


@pytest.fixture
def normal():
    """Standard normal numbers of a shape."""
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def perturbed():
    """The network away from its zero start, as after training."""

    def away(network, seed=0):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        return network

    return away


@pytest.fixture
def specs():
    """Conditions of every kind, beside a map (4, 4, 6)."""
    return {
        "label": Spec((), torch.int64, 5),
        "z": Spec((7,)),
        "attributes": Spec((3,)),
        "x1": MAP,
        "mask": Spec((1, 4, 6), torch.bool),
    }


@pytest.fixture
def conditions():
    """Values of these conditions."""

    def drawn(b=3, seed=0):
        g = torch.Generator().manual_seed(seed)
        return Condition(
            {
                "label": torch.randint(5, (b,), generator=g),
                "z": torch.randn(b, 7, generator=g),
                "attributes": torch.randn(b, 3, generator=g),
                "x1": torch.randn(b, 4, 4, 6, generator=g),
                "mask": torch.rand(b, 1, 4, 6, generator=g) < 0.5,
            }
        )

    return drawn
