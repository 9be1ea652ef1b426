"""One step of training: micro-batches, gradients summed over processes, clipping, AdamW, averages.

Losses are per sample and divided by the size of the *global* batch, so that sums over micro-batches and processes
are the mean over the batch, however it was split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentsb import parallel
from latentsb.ema import Ema
from latentsb.errors import CheckpointError
from latentsb.guard import REASONS
from latentsb.randomness import Draws, key_of
from latentsb.recipe.sections import TrainSettings
from latentsb.tensors import Batch
from latentsb.trainable import Phase, Trainable

__all__ = ["Update"]


class Update:
    """The optimiser of a stage and what one step does.

    Args:
        trainable: what is trained, on its device.
        settings: of the stage.
        seed: of the run.
        purpose: names the stage's draws.
        ema: averages to keep, or None.
        bf16: whether losses are computed under bfloat16 autocast.
    """

    def __init__(
        self, trainable: Trainable, settings: TrainSettings, *, seed: int, purpose: str, ema: Ema | None, bf16: bool
    ) -> None:
        self.trainable, self.settings, self.seed, self.purpose = trainable, settings, seed, purpose
        self.ema, self.bf16 = ema, bf16
        self.device = trainable.device
        self.parameters = dict(trainable.named_parameters())
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, fused=True
        )
        self.sums: dict[str, Tensor] = {}
        self._trains: tuple[str, ...] = ()
        self._with_gradient: dict[str, list[str]] = {}

    def step(self, batch: Batch, phases: tuple[Phase, ...], seen: int, asked: str | None) -> Tensor:
        """Train on this process's rows of a batch.

        Args:
            batch: on the device.
            phases: of this step.
            seen: images of the stage before the step.
            asked: why this process was asked to stop, of `REASONS`.

        Returns:
            Flags summed over the processes: bad, then one for each of `REASONS`.
        """
        flags = torch.zeros(1 + len(REASONS), device=self.device)
        with torch.no_grad():
            batch = self.trainable.prepare(batch, Draws.step(self.seed, f"{self.purpose} batch", seen, batch.index))
        for phase in phases:
            bad = self._phase(batch, phase, seen, asked, flags if phase is phases[-1] else None)
            flags[0] = torch.maximum(flags[0], bad)
        if self.ema is not None:
            self.ema.update(self.settings.batch, tuple(dict.fromkeys(p for phase in phases for p in phase.trains)))
        return flags

    def means(self) -> dict[str, float]:
        """Means of what was summed since the last call, over the steps that were finite; waits for the device."""
        values = {name: value.tolist() for name, value in self.sums.items()}
        self.sums = {}
        return {name: total / count for name, (total, count) in values.items() if count}

    def _phase(self, batch: Batch, phase: Phase, seen: int, asked: str | None, flags: Tensor | None) -> Tensor:
        self._switch(phase.trains)
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._backward(batch, phase, seen)
        self._reduce(phase, sums, flags, asked)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=self.device)
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(
                [p for p in self.parameters.values() if p.grad is not None], self.settings.clip, norm
            )
        bad = (~torch.isfinite(norm + sums["loss"])).float()
        rise = min(1.0, (seen + self.settings.batch) / self.settings.warmup) if self.settings.warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * phase.lr * rise
        # The fused kernel leaves weights, moments and step counts untouched where this is set, without a host sync.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self._note({**sums, "grad_norm": norm}, bad, phase.name if phase.name != "all" else "")
        return bad

    def _switch(self, trains: tuple[str, ...]) -> None:
        """Gradients and training mode for what the phase trains, and for nothing else."""
        if trains == self._trains:
            return
        self._trains = trains
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name.startswith(trains))
        for name, module in self.trainable.named_modules():
            holds = any(prefix.startswith(f"{name}.") for prefix in trains) or not name
            module.training = holds or f"{name}.".startswith(trains)

    def _backward(self, batch: Batch, phase: Phase, seen: int) -> dict[str, Tensor]:
        size, micro = self.settings.batch, self.settings.micro_batch or max(1, len(batch))
        sums: dict[str, Tensor] = {}
        for first in range(0, len(batch), micro):
            part = batch.select(slice(first, first + micro)) if micro < len(batch) else batch
            draws = Draws.step(self.seed, f"{self.purpose} {phase.name}", seen, part.index)
            # Layers that draw for themselves (dropout) get a seed of their own rows, so nothing needs to be saved.
            _seed(key_of(self.seed, self.purpose, phase.name, seen, int(part.index[0])) & (2**63 - 1), self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                found = phase.loss(part, draws)
            total = found.total.float().sum() / size
            if total.requires_grad:
                torch.autograd.backward(total)
            for name, value in {"loss": found.total, **found.terms}.items():
                value = value.detach().float().sum() / size
                sums[name] = sums[name] + value if name in sums else value
        return sums

    def _reduce(self, phase: Phase, sums: dict[str, Tensor], flags: Tensor | None, asked: str | None) -> None:
        if flags is not None and asked is not None:
            flags[1 + REASONS.index(asked)] = 1.0
        if parallel.world() == 1:
            return
        if phase.name not in self._with_gradient:
            own = {name for name, p in self.parameters.items() if p.grad is not None}
            every: list[Any] = [None] * parallel.world()
            dist.all_gather_object(every, own)
            self._with_gradient[phase.name] = sorted(set().union(*every))
        gradients = []
        for name in self._with_gradient[phase.name]:
            parameter = self.parameters[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        stop = [] if flags is None else [flags[1:]]
        parallel.sum_flat([*gradients, *(sums[name] for name in sorted(sums)), *stop])

    def _note(self, values: Mapping[str, Tensor], bad: Tensor, prefix: str) -> None:
        good = 1 - bad
        for name, value in values.items():
            key = f"{prefix}/{name}" if prefix else name
            pair = torch.stack([torch.where(bad > 0, torch.zeros_like(value), value), good])
            self.sums[key] = self.sums[key] + pair if key in self.sums else pair

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's moments by name, and the sums of the log since its last line."""
        found = {f"log/{name}": value for name, value in self.sums.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}/{name}"] = value
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned.

        Raises:
            CheckpointError: if it belongs to other parameters.
        """
        self.sums = {}
        self.optimizer.state.clear()
        for key, value in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "log":
                self.sums[name] = value.to(self.device)
                continue
            parameter = self.parameters.get(name)
            if parameter is None or kind not in ("step", "exp_avg", "exp_avg_sq"):
                raise CheckpointError(f"the optimiser's state has the unknown entry '{key}'")
            if kind != "step" and value.shape != parameter.shape:
                raise CheckpointError(f"optimiser: {key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
            # A clone: what was read from a file may share one buffer, and the fused kernel writes in place.
            self.optimizer.state[parameter][kind] = value.clone().to(self.device)


def _seed(seed: int, device: torch.device) -> None:
    # torch.manual_seed formats a stack trace for accelerators that are not there: a millisecond.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
