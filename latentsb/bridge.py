"""Contracts of bridges. Capabilities are types: a command says which type it needs.

Time runs over [0, 1]; t = 0 is data (x0), t = 1 the other end (x1). Solvers run 1 → 0 unless told
`towards="x1"`. Both drifts are written *as executed*: `x_{t+h} = x_t + h b_f + noise` and
`x_{t−h} = x_t + h b_b + noise`; `b_f + b_b = g² ∇log p_t` (Nelson), and the probability-flow ODE has the velocity
`(b_f − b_b)/2` in forward time.

Times are float64 tensors **on the CPU**, of shape () in solvers and (B,) in training: schedules are computed there
and only their coefficients travel to the device (`tensors.expand_as`), so no step waits for it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.process import conversion
from latentsb.process.coupling import Coupling
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Trainable

__all__ = ["BRIDGES", "Bridge", "DenoisingBridge", "EncodingBridge", "End", "PlannedBridge", "State", "require"]

End = Literal["x0", "x1"]


@dataclass(frozen=True)
class State:
    """A point on a trajectory.

    Args:
        x: shape (B, *spec.shape).
        t: one time for the whole batch, float64, shape ().
        cond: conditions, constant along the trajectory.
    """

    x: Tensor
    t: Tensor
    cond: Condition


class Bridge(Trainable):
    """A trained or exact process between two laws.

    Attributes:
        ends: the two laws and the shapes.
        aligned: the stream must deliver partners (x0, x1), not independent draws.
        coupling: which x0 goes with which x1, where the bridge leaves that to the recipe.
        ways: the ends that it can run towards; with one of them there is no velocity and no likelihood.
    """

    ends: Ends
    aligned: bool = False
    coupling: Coupling | None = None
    ways: tuple[End, ...] = ("x0", "x1")

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        """Let the coupling arrange the whole batch."""
        return batch if self.coupling is None else self.coupling.prepare(batch, self.ends, draws)

    @abstractmethod
    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """Where a trajectory towards the given end starts: at t = 1 towards x0, at t = 0 towards x1.

        `batch` brings the rows (`index`), conditions and, where there is data, x0 or x1.
        """

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`b_b` towards x0, `b_f` towards x1; t of shape (), result of the shape of x.

        Raises:
            CapabilityError: if the bridge cannot run towards that end.
        """

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Probability-flow velocity in forward time, `(b_f − b_b)/2`; shape of x."""
        return (self.drift(x, t, cond, "x1") - self.drift(x, t, cond, "x0")) / 2

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)`, float64, shape of t."""

    def project(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Bring a state back to where it may live (known pixels, a start and goal); the identity by default."""
        return x


class PlannedBridge(Bridge):
    """A bridge over a reference that draws the end of a trajectory at once, given where it stands.

    Attributes:
        reference: the scalar reference process; pinned to both ends it fills in the way between.
    """

    reference: ScalarReference

    @abstractmethod
    def arrive(self, state: State, draws: Draws, towards: End = "x0") -> Tensor:
        """A draw of the end given the state, shape of `state.x`.

        Raises:
            CapabilityError: if the bridge cannot run towards that end.
        """


class DenoisingBridge(Bridge):
    """A bridge that knows `E[X0 | X_t]` and the Gaussian marginal around it; drifts and score follow.

    The other end of a pinned marginal travels as the condition `x1`; where there is none, `marginal(t).a` is zero.

    Attributes:
        reference: the scalar reference process.
        t_min: smallest time at which the denoiser may be asked.
        t_max: largest such time.
    """

    reference: ScalarReference
    t_min: float = 1e-4
    t_max: float = 1.0

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[X0 | X_t = x, cond]`; t of shape () or (B,), result of the shape of x."""

    @abstractmethod
    def marginal(self, t: Tensor) -> Marginal:
        """Law of X_t given the ends, at t of shape () or (B,)."""

    @property
    def pinned(self) -> bool:
        """Whether the marginal is pinned to an x1, which must be given in both directions; else it is one-sided."""
        return bool(self.marginal(torch.ones((), dtype=torch.float64)).a != 0)

    def _other_end(self, cond: Condition) -> Tensor | None:
        """`x1` where the marginal is pinned to it, None where it is one-sided."""
        return cond["x1"] if self.pinned else None

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """Drift at t in (0, 1) of the process given x1.

        Towards x0 it is `−f x + r'/r (α_t E[X0 | x] − x) = −f x + g² (score − h)`, towards x1 `f x + g² h`, where `h`
        is the pull of x1 (zero in a one-sided marginal); Zhou et al. 2024, Sec. 3.
        """
        if towards == "x1":
            return conversion.b_f_from_x1(self.reference, t, x, self._other_end(cond))
        return conversion.b_b_from_x0(self.reference, t, x, self.denoise(x, t, cond))

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)` of the reference."""
        return self.reference.g(t)

    def score(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`∇ log p_t(x | cond)`."""
        return self.marginal(t).score(x, self.denoise(x, t, cond), cond.get("x1"))


class EncodingBridge(DenoisingBridge):
    """A denoising bridge whose other end is made from a code z of the data (DBAE, DiffAE).

    Attributes:
        z_dim: length of the code.
        inverts: `endpoint` infers x1 from the data; else the code alone determines its law.
    """

    z_dim: int
    inverts: bool = False

    @abstractmethod
    def encode(self, x0: Tensor, draws: Draws | None = None, images: Tensor | None = None) -> Condition:
        """Code of the data as `Condition(z=…)`, shape (B, Z); without draws a stochastic encoder gives its mean."""

    @abstractmethod
    def endpoint(self, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Condition:
        """`cond` with `x1` added: the other end that belongs to the code."""

    @property
    def awaits_prior(self) -> bool:
        """Whether new codes have to wait for a stage that trains the prior; never by default."""
        return False

    @abstractmethod
    def new_codes(self, cond: Condition, draws: Draws) -> Condition:
        """Codes for new samples of these conditions as `Condition(z=…)`, one per row of the draws.

        Raises:
            CapabilityError: if no prior has been fitted yet.
        """


BRIDGES: Registry[Bridge] = Registry("bridge", Bridge)
B = TypeVar("B", bound=Bridge)


def require(bridge: Bridge, kind: type[B], purpose: str) -> B:
    """The bridge, if it is of the kind that `purpose` needs.

    Raises:
        CapabilityError: naming the bridges that are of that kind.
    """
    if isinstance(bridge, kind):
        return bridge
    able = [word for word in BRIDGES.names() if issubclass(BRIDGES[word], kind)]
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise CapabilityError(
        f"{purpose} needs {article} {kind.__name__}; '{BRIDGES.word_of(bridge)}' is not one. "
        f"These are: {', '.join(able)}"
    )
