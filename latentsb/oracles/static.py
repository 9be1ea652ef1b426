"""Couplings that draw partners from a known plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from latentsb import parallel
from latentsb.errors import DataError
from latentsb.laws import Ends, Sampled
from latentsb.oracles.gaussian import entropic_plan
from latentsb.oracles.normal import Joint, Normal, square_root
from latentsb.process.coupling import COUPLINGS, Coupling, Pair
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.tensors import Batch

if TYPE_CHECKING:
    from latentsb.trainable import Round

__all__ = ["Planned", "Static", "draw_from"]


@dataclass(frozen=True, kw_only=True)
class Planned(Coupling):
    """Partners drawn from the conditional law of a plan.

    Args:
        draw: from rows of x0 and their draws to one x1 for each, of the same shape: `draw_from(joint)`, or
            `lambda x0, draws: pair.conditional(x0).sample(draws)` of a `MixturePair`.
    """

    both_ends: ClassVar[bool] = False
    draw: Callable[[Tensor, Draws], Tensor]

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The data, and for each row a draw from its conditional law."""
        x0 = _end("x0", batch, ends, draws)
        return Pair(x0, self.draw(x0, draws.fork("plan")).to(x0), batch.cond)


def draw_from(plan: Joint) -> Callable[[Tensor, Draws], Tensor]:
    """Draws of x1 given x0 under a joint normal law, for rows of any shape with D elements."""
    mean, cov = plan.x1_given_x0()
    root = square_root(cov)

    def draw(x0: Tensor, draws: Draws) -> Tensor:
        flat = x0.flatten(1).to("cpu", torch.float64)
        return (mean(flat) + draws.normal("static", flat) @ root).reshape(x0.shape).to(x0)

    return draw


@COUPLINGS.register("static")
@dataclass(frozen=True, kw_only=True)
class Static(Coupling):
    """The entropic plan between the normal laws that have the moments of the data: x1 is drawn given x0.

    For normal data this is the Schrödinger bridge's own coupling. For other data the law of x1 has the right mean and
    covariance only, so bridges treat it as one whose x1 is not exact.

    Source: Bunne et al. 2023, The Schrödinger bridge between Gaussian measures has a closed form, Eq. 4.

    Args:
        rows: of the data, from which the moments are taken; a bridge without rounds takes those of each global batch.
        reference: the process whose plan it is; that of the bridge where the bridge has one.
    """

    both_ends: ClassVar[bool] = False
    rows: Count = 10_000
    reference: ScalarReference | None = None

    def __post_init__(self) -> None:
        enforce(self)

    def over(self, reference: ScalarReference) -> Static:
        """The same, over the bridge's reference if it has none of its own."""
        return replace(self, reference=self.reference or reference)

    def fitted(self, round: Round, ends: Ends) -> Planned:
        """The plan for the moments of rows of the data."""

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            return {name: _end(name, batch, ends, draws) for name in ("x0", "x1")}

        table = round.simulate("ends", self.rows, make)
        return self._plan(table["x0"], table["x1"])

    def prepare(self, batch: Batch, ends: Ends, draws: Draws) -> Batch:
        """The batch with x1 drawn from the plan for the moments of the global batch."""
        x0, x1 = (_end(name, batch, ends, draws) for name in ("x0", "x1"))
        everyone = parallel.Rows.of(len(batch), x0.device)
        plan = self._plan(everyone.gather(x0), everyone.gather(x1.to(x0)))
        return replace(batch, x0=x0, x1=plan.pair(replace(batch, x0=x0), ends, draws).x1)

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The partners that `prepare` drew for these rows.

        Raises:
            DataError: if the batch has not been prepared.
        """
        if batch.x0 is None or batch.x1 is None:
            raise DataError("coupling 'static' draws for whole batches: give the loss a batch that was prepared")
        return Pair(batch.x0, batch.x1, batch.cond)

    def _plan(self, x0: Tensor, x1: Tensor) -> Planned:
        """The plan for the moments of two tables.

        Raises:
            DataError: if there is no process, or one without noise.
        """
        if self.reference is None or self.reference.total == 0:
            raise DataError("coupling 'static' needs a process with noise, as in {name: static, reference: {sigma: 1}}")
        near, far = (Normal.fitted(x.flatten(1).cpu()) for x in (x0, x1))
        return Planned(draw=draw_from(entropic_plan(near, far, self.reference)))


def _end(name: str, batch: Batch, ends: Ends, draws: Draws) -> Tensor:
    """An end of a batch, or a draw of its law.

    Raises:
        DataError: if there is neither.
    """
    found, law = (batch.x0, ends.x0) if name == "x0" else (batch.x1, ends.x1)
    if found is not None:
        return found
    if not isinstance(law, Sampled):
        raise DataError(f"coupling 'static' needs data or a law for {name}, and there is neither")
    return law.sample(len(batch), draws.fork(name), batch.cond)
