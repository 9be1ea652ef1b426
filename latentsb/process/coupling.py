"""Couplings: which x0 belongs to which x1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from latentsb import parallel
from latentsb.errors import DataError
from latentsb.laws import Sampled
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.transport import assign, costs, draw, sinkhorn
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Batch, Condition

if TYPE_CHECKING:
    from latentsb.laws import Ends, Law
    from latentsb.trainable import Round

__all__ = ["COUPLINGS", "Coupling", "FromReference", "Independent", "MinibatchOT", "Pair", "Paired"]


@dataclass(frozen=True)
class Pair:
    """One joint draw of both ends.

    Args:
        x0: data end, shape (B, …).
        x1: other end, same shape.
        cond: conditions of the pair.
        extra: what a coupling wants to hand to its own bridge, by name (OT weights, for example).
    """

    x0: Tensor
    x1: Tensor
    cond: Condition = field(default_factory=Condition)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Coupling(ABC):
    """A joint law of the two ends.

    `aligned` says which x1 the data stream must deliver where the data has one: the partner of x0 (True) or an
    independent draw (False). `both_ends` says whether x1 has its own law; if not, only that of x0 is exact, and x1
    follows from it.
    """

    aligned: ClassVar[bool] = False
    both_ends: ClassVar[bool] = True

    def over(self, reference: ScalarReference) -> Coupling:
        """The coupling as a bridge over this reference uses it; by default itself."""
        return self

    def fitted(self, round: Round, ends: Ends) -> Coupling:
        """The coupling fitted to the data of a round, in bridges that have rounds; by default itself."""
        return self

    def prepare(self, batch: Batch, ends: Ends, draws: Draws) -> Batch:
        """Arrange all rows of a step at once, before they are split; by default they stay as they are.

        Called in every process with its own rows of the global batch, once per step, without gradients.
        """
        return batch

    @abstractmethod
    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """Couple the rows of a batch; where the batch has no x1, it is drawn from `ends.x1`."""


COUPLINGS: Registry[Coupling] = Registry(
    "coupling", Coupling, homes=("latentsb.process.coupling", "latentsb.oracles.static")
)


@COUPLINGS.register("independent")
@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """The two ends have nothing to do with each other; an end that the data does not bring is drawn from its law."""

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """Couple each row of x0 with an unrelated x1.

        Raises:
            DataError: if the data lacks an end and the bridge has no law for it that can be sampled.
        """
        return Pair(*_both(batch, ends, draws), batch.cond)


@COUPLINGS.register("paired")
@dataclass(frozen=True, kw_only=True)
class Paired(Coupling):
    """The data brings partners: image and degraded image, start and goal."""

    aligned: ClassVar[bool] = True

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The pairs of the data; that its x1 are partners is checked by the stream that delivers them.

        Raises:
            DataError: if the data does not bring both ends.
        """
        if batch.x0 is None or batch.x1 is None:
            missing = "x0" if batch.x0 is None else "x1"
            raise DataError(
                f"coupling 'paired' needs data that brings both ends; this data has no {missing}. "
                "Use coupling 'independent', or data with pairs"
            )
        return Pair(batch.x0, batch.x1, batch.cond)


@COUPLINGS.register("reference")
@dataclass(frozen=True, kw_only=True)
class FromReference(Coupling):
    """x1 is where the reference process brings x0: the first coupling of iterative proportional fitting.

    Source: De Bortoli et al. 2021, Diffusion Schrödinger bridge, Sec. 3; Shi et al. 2023, DSBM (there DSBM-IPF).

    Args:
        reference: the process; that of the bridge where the bridge has one.
    """

    both_ends: ClassVar[bool] = False
    reference: ScalarReference | None = None

    def over(self, reference: ScalarReference) -> FromReference:
        """The same, over the bridge's reference if it has none of its own."""
        return replace(self, reference=self.reference or reference)

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The data, and for each row a draw of `N(α_1 x0, α_1² ρ²_1)`.

        Raises:
            DataError: if the data lacks x0 and no law of it can be sampled, or no reference is known.
        """
        if self.reference is None:
            raise DataError("coupling 'reference' needs a process: give it one, as in {name: reference, reference: …}")
        x0 = _drawn("x0", ends.x0, batch, draws) if batch.x0 is None else batch.x0
        end = self.reference.noised(torch.ones((), dtype=torch.float64))
        return Pair(x0, end.sample(x0, None, draws.normal("reference", x0)), batch.cond)


@COUPLINGS.register("minibatch_ot")
@dataclass(frozen=True, kw_only=True)
class MinibatchOT(Coupling):
    """Optimal transport between the two ends of the global batch: near goes with near.

    Without noise in the reference the plan is exact: the permutation of least total `|x0 − x1|²`. With noise it is the
    static Schrödinger bridge of the batch over that reference (entropic transport with cost `|x0 − x1|²/2` and the
    reference's epsilon), and the partner of each x0 is drawn from its row of the plan.

    * The batch is the global one: all processes and all micro-batches.
    * Rows are coupled with rows of equal conditions only. x1 does not depend on the conditions of x0 and must not
      begin to, or samples would start from the wrong law; with conditions that no two rows share nothing is moved.
    * Exact partners are taken without replacement. An entropic plan is no permutation; a partner drawn by its row
      keeps x0 exactly, and x1 in expectation over the draws. A loss is a sum over pairs, so its expectation, and that
      of its gradient, is the whole plan's all the same.

    A batch of n points couples the two laws with a bias that falls with n: larger batches make straighter paths.

    Source: Pooladian et al. 2023, Multisample flow matching; Tong et al. 2024, OT-CFM and SB-CFM, Sec. 3.

    Args:
        reference: whose epsilon regularises the plan; Brownian motion of `sigma` has `sigma²`.
    """

    reference: ScalarReference = Brownian(sigma=0.0)

    def prepare(self, batch: Batch, ends: Ends, draws: Draws) -> Batch:
        """The batch with x1 replaced by the partners of its own rows.

        Raises:
            DataError: if the data lacks an end and the bridge has no law for it that can be sampled.
        """
        x0, x1 = _both(batch, ends, draws)
        everyone = parallel.Rows.of(len(batch), x0.device)
        near, far = everyone.gather(x0), everyone.gather(x1)
        u = everyone.gather(draws.uniform("partner").to(x0.device)).cpu()
        partners = torch.arange(len(near))
        for rows in _groups(everyone.gather(_keys(batch.cond.to(x0.device), ends, x0))):
            between = costs(near[rows.to(near.device)], far[rows.to(far.device)])
            if self.reference.epsilon == 0:
                chosen = assign(between)
            else:
                chosen = draw(sinkhorn(between, self.reference.epsilon), u[rows])
            partners[rows] = rows[chosen]
        return replace(batch, x0=x0, x1=far[partners[everyone.own].to(far.device)])

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The partners that `prepare` found for these rows.

        Raises:
            DataError: if the batch has not been prepared.
        """
        if batch.x0 is None or batch.x1 is None:
            raise DataError("coupling 'minibatch_ot' pairs whole batches: give the loss a batch that was prepared")
        return Pair(batch.x0, batch.x1, batch.cond)


def _keys(cond: Condition, ends: Ends, like: Tensor) -> Tensor:
    """What must be equal in rows that may be coupled: the conditions that the bridge is given, shape (B, K)."""
    names = [name for name in sorted(ends.cond) if name in cond]
    values = [part for name in names for part in (cond[name].reshape(len(like), -1), cond.mask(name)[:, None])]
    return torch.cat([like.new_zeros((len(like), 1), dtype=torch.float64), *(v.double() for v in values)], 1)


def _groups(keys: Tensor) -> list[Tensor]:
    """Rows with equal keys, each group in ascending order, int64 on the CPU."""
    group = torch.unique(keys.cpu(), dim=0, return_inverse=True)[1]
    return [torch.nonzero(group == number).flatten() for number in range(int(group.max()) + 1)]


def _both(batch: Batch, ends: Ends, draws: Draws) -> tuple[Tensor, Tensor]:
    """Both ends of a batch; one that it lacks is drawn from its law.

    Raises:
        DataError: if there is no law, or it cannot be sampled.
    """
    x0 = _drawn("x0", ends.x0, batch, draws) if batch.x0 is None else batch.x0
    x1 = _drawn("x1", ends.x1, batch, draws) if batch.x1 is None else batch.x1
    return x0, x1.to(x0)


def _drawn(name: str, law: Law | None, batch: Batch, draws: Draws) -> Tensor:
    """An end drawn from its law.

    Raises:
        DataError: if there is no law, or it cannot be sampled.
    """
    if not isinstance(law, Sampled):
        found = "has no law" if law is None else f"has a law that cannot be sampled ({type(law).__name__})"
        raise DataError(f"the data brings no {name}, and the end {name} {found}; give {name} a law, such as 'gaussian'")
    return law.sample(len(batch), draws.fork(name), batch.cond)
