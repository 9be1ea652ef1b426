"""References that every test of process mathematics runs over, and times inside (0, 1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentsb.process.reference import ScalarReference
from latentsb.process.references import OU, VE, VP, Brownian, Varying

REFERENCES = [
    VP(),
    VP(beta_min=0.1, beta_d=19.9),
    VE(sigma_max=80.0),
    Brownian(sigma=0.7),
    Varying(beta_ends=0.1, beta_middle=1.3),
    OU(theta=1.7, sigma=0.6),
]


@pytest.fixture(params=REFERENCES, ids=repr)
def reference(request: pytest.FixtureRequest) -> ScalarReference:
    return request.param


@pytest.fixture
def t() -> Tensor:
    return torch.tensor([1e-4, 0.01, 0.1, 0.3, 0.49, 0.62, 0.9, 0.99, 0.9999], dtype=torch.float64)
