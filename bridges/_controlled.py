"""What bridges share whose loss is a functional of simulated paths: controls as networks, chains, tables of paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentsb.bridge import BRIDGES, End
from latentsb.conditioning import drop_conditions
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Density, Ends
from latentsb.networks.base import Network
from latentsb.process.prediction import Control
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Round
from latentsb.twosided import TwoSided

__all__ = ["Controlled", "Paths", "Steps"]


@dataclass(frozen=True)
class Paths:
    """Paths of a controlled process at the nodes `t_k = k/N`, in forward time whichever way they were simulated.

    Args:
        x: states at t_0 … t_N, shape (B, N + 1, …).
        control: of the network that simulated them, at the nodes that it was asked at, shape (B, N or N + 1, …).
        noise: standard normal numbers of the steps, in the order of travel, shape (B, N, …).
    """

    x: Tensor
    control: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Steps:
    """Pieces of paths, each of a path of its own: what a loss needs of a table's rows.

    Args:
        k: first node of each piece, shape (B,), on the CPU.
        x: states at M nodes from there on, shape (B, M, …).
        control: of the network that simulated the path, at the same nodes, shape (B, M, …).
        cond: of the rows.
    """

    k: Tensor
    x: Tensor
    control: Tensor
    cond: Condition


class Controlled(TwoSided):
    """A bridge whose networks are the controls `Z` and `Ẑ` of `b_f = f x + g Z` and `b_b = −f x + g Ẑ`.

    Networks predict zero before training, so both processes begin as the reference. Paths are Euler–Maruyama chains
    on the nodes `t_k = k/N` with the step `h = 1/N`, which is the grid's own spacing; states keep the type of the data.

    Args:
        ends: shapes and conditions.
        network: of the controls; built twice.
        reference: with noise at every time.
        steps: N of the chains.
        dropout: share of training rows whose label and attributes are hidden.
        recompute: do not keep the networks' inner values of a chain, but compute each step again in the backward pass.

    Raises:
        ArgumentError: if the reference has no noise at some node.
    """

    # Controls are finite where they arrive, too.
    t_min = 0.0
    t_max = 1.0

    def __init__(
        self,
        ends: Ends,
        network: Build[Network],
        *,
        reference: ScalarReference,
        steps: int,
        dropout: float,
        recompute: bool,
    ) -> None:
        super().__init__(ends, network, reference=reference, prediction=Control(), dropout=dropout)
        self.steps, self.recompute = steps, recompute
        self.nodes = torch.arange(steps + 1, dtype=torch.float64) / steps
        self.f, self.g = reference.f(self.nodes), reference.g(self.nodes)
        if not bool((self.g > 0).all()):
            at = float(self.nodes[self.g <= 0][0])
            raise ArgumentError("reference", f"controls are in units of its noise, and it has none at t = {at:g}")
        self.table: tuple[End, Mapping[str, Tensor]] | None = None

    @property
    def h(self) -> float:
        """Step of a chain."""
        return 1 / self.steps

    @property
    def prior(self) -> Density:
        """Law of x1.

        Raises:
            CapabilityError: if its density is not known.
        """
        if not isinstance(self.ends.x1, Density):
            raise CapabilityError(
                f"the loss of '{BRIDGES.word_of(self)}' needs an x1 whose density is known; this data brings samples"
            )
        return self.ends.x1

    def over(self, values: Tensor, x: Tensor) -> Tensor:
        """Values (M,) of nodes, or (B, M) of nodes of each row, that multiply states x of shape (B, M, …)."""
        values = values.to(device=x.device, dtype=x.dtype)
        values = values if values.ndim == 2 else values[None]
        return values.reshape(values.shape + (1,) * (x.ndim - 2))

    def hidden(self, cond: Condition, draws: Draws) -> Condition:
        """The conditions, some of them dropped."""
        return drop_conditions(cond, self.dropout, draws)

    def controls(self, x: Tensor, k: Tensor, cond: Condition, towards: End) -> Tensor:
        """`Z` (towards x1) or `Ẑ` (towards x0) in one call of the network, or one for each node if recomputing.

        Args:
            x: states, shape (B, M, …).
            k: their nodes, shape (M,) or (B, M), on the CPU.
            cond: of the B rows.
            towards: of which drift.
        """
        if self.recompute and torch.is_grad_enabled() and x.shape[1] > 1:
            each = [self._recomputed(x[:, i : i + 1], k[..., i : i + 1], cond, towards) for i in range(x.shape[1])]
            return torch.cat(each, 1)
        return self._controls(x, k, cond, towards)

    def _controls(self, x: Tensor, k: Tensor, cond: Condition, towards: End) -> Tensor:
        b, m = x.shape[:2]
        t = self.nodes[k].expand(b, m).reshape(-1)
        repeated = cond if m == 1 else cond.select(torch.arange(b).repeat_interleave(m))
        return self.output(x.flatten(0, 1), t, repeated, towards).reshape(x.shape)

    def _recomputed(self, x: Tensor, k: Tensor, cond: Condition, towards: End) -> Tensor:
        out: Tensor = checkpoint(self._controls, x, k, cond, towards, use_reentrant=False)
        return out

    def chain(self, x: Tensor, cond: Condition, draws: Draws, towards: End = "x1", *, last: bool = False) -> Paths:
        """Simulate paths from one end to the other, `x ± h f x + h g Z + g √h ξ`.

        Args:
            x: where they start, shape (B, …).
            cond: of the rows.
            draws: of the rows.
            towards: end that they go to.
            last: ask for the control at the last node, too.
        """
        n, sign = self.steps, 1 if towards == "x1" else -1
        noise = draws.normal("chain", x[:, None].expand(-1, n, *x.shape[1:]))
        order = torch.arange(n + 1) if sign > 0 else torch.arange(n, -1, -1)
        control = self._recomputed if self.recompute and torch.is_grad_enabled() else self._controls
        xs, controls = [x], []
        for i, k in enumerate(order):
            if i < n or last:
                controls.append(control(x[:, None], k[None], cond, towards)[:, 0])
            if i < n:
                drift = sign * float(self.f[k]) * x + float(self.g[k]) * controls[-1]
                x = x + self.h * drift + self.h**0.5 * float(self.g[k]) * noise[:, i]
                xs.append(x)
        forward = slice(None, None, sign)
        return Paths(torch.stack(xs[forward], 1), torch.stack(controls[forward], 1), noise)

    def tabulate(self, round: Round, rows: int, towards: End) -> None:
        """Simulate paths towards an end and keep them for the steps to come."""

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=round.bf16):
                return self._rows(batch, draws, towards)

        self.table = towards, round.simulate(f"paths towards {towards}", rows, make)

    def _rows(self, batch: Batch, draws: Draws, towards: End) -> dict[str, Tensor]:
        state = self.start(batch, draws, towards)
        paths = self.chain(state.x, state.cond, draws, towards, last=True)
        cond = {f"cond.{name}": value for name, value in batch.cond.values.items()}
        present = {f"present.{name}": value for name, value in batch.cond.present.items()}
        return {"x": paths.x, "control": paths.control, **cond, **present}

    def pick(self, batch: Batch, draws: Draws, towards: End, nodes: int) -> Steps:
        """A random piece of a random path of the table for each row; of a fresh path where there is no table yet.

        Args:
            batch: of which only the number of rows counts, once there is a table.
            draws: of the rows.
            towards: where the paths were simulated to.
            nodes: M, length of a piece.
        """
        k = draws.integers("node", self.steps + 2 - nodes)
        if self.table is not None and self.table[0] == towards:
            table = self.table[1]
            rows = draws.integers("path", len(table["x"]))
        else:
            with torch.no_grad():
                table = self._rows(batch, draws, towards)
            rows = torch.arange(len(batch))
        host = table["x"].device
        path, node = rows.to(host), k.to(host)
        x, control = (
            torch.stack([table[name][path, node + i] for i in range(nodes)], 1).to(self.device)
            for name in ("x", "control")
        )
        found = {name: value[path].to(self.device) for name, value in table.items() if "." in name}
        cond, present = (
            {name.removeprefix(kind): value for name, value in found.items() if name.startswith(kind)}
            for kind in ("cond.", "present.")
        )
        return Steps(k, x, control, self.hidden(Condition(cond, present), draws))
