"""Exact answers for Schrödinger bridges, to hold methods to.

`GaussianBridge` (normal ends, any linear reference), `GridBridge` (any two laws in one or two dimensions) and
`MixturePair` (known plans in any dimension) know plans, drifts and exact samples; `recursions` knows what IPF and IMF
do round by round, `chain` what a discretised sampler draws from, `metrics` distances and floors. `ExactBridge` lets
solvers run on them. All in float64 on the CPU.
"""

from latentsb.oracles.exact import ExactBridge
from latentsb.oracles.gaussian import GaussianBridge, entropic_cost, entropic_plan
from latentsb.oracles.grid import GridBridge
from latentsb.oracles.mixtures import AdjustedPotential, MixturePair, Potential
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.oracles.recursions import imf, ipf

__all__ = [
    "AdjustedPotential",
    "Affine",
    "ExactBridge",
    "GaussianBridge",
    "GridBridge",
    "Joint",
    "MixturePair",
    "Normal",
    "Potential",
    "entropic_cost",
    "entropic_plan",
    "imf",
    "ipf",
]
