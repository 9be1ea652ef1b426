"""Several processes: who computes which rows, and the few things that they must agree on.

Everything is a no-op in one process. A step exchanges exactly one flattened vector of gradients; sums over rows
are what travels, so that any split of the rows gives the same mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from latentsb.errors import Error

__all__ = [
    "Rows",
    "agree",
    "barrier",
    "broadcast",
    "collect",
    "first",
    "is_main",
    "leave",
    "rank",
    "rows",
    "sum_flat",
    "together",
    "world",
]

T = TypeVar("T")


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process; 0 where there is one."""
    return dist.get_rank() if _on() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _on() else 1


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def leave() -> None:
    """Part from the other processes; what keeps the group until the interpreter ends may abort there."""
    if _on():
        dist.destroy_process_group()


def rows(batch: int, rank: int, world: int) -> range:
    """Rows of the global batch that a process computes; their numbers differ by one at most."""
    return range(batch * rank // world, batch * (rank + 1) // world)


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that is spread over the processes, in their order.

    Args:
        lengths: how many rows each process holds.
    """

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, own: int, device: torch.device) -> Rows:
        """Learn how many rows the others hold; every process must call it."""
        if world() == 1:
            return cls((own,))
        found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
        dist.all_gather(found, torch.tensor([own], device=device))
        return cls(tuple(int(n) for n in found))

    @property
    def own(self) -> slice:
        """This process's rows of what `gather` returns."""
        start = sum(self.lengths[: rank()])
        return slice(start, start + self.lengths[rank()])

    @torch.no_grad()
    def gather(self, value: Tensor) -> Tensor:
        """The rows of all processes, shape (sum of lengths, …); the tensor itself in one process."""
        if world() == 1:
            return value
        sent = value.new_zeros((max(self.lengths), *value.shape[1:]))  # all send equally many; what is added is cut
        sent[: len(value)] = value
        found = [torch.empty_like(sent) for _ in self.lengths]
        dist.all_gather(found, sent)
        return torch.cat([part[:n] for part, n in zip(found, self.lengths, strict=True)])


def broadcast(value: Any) -> Any:
    """The main process's value, in every process. Values are JSON-like and come from our own processes only."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def sum_flat(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one exchange of one float32 vector."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).to(torch.float32) for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def collect(parts: Sequence[T | None]) -> list[T]:
    """Fill in what other processes made.

    Args:
        parts: one entry per part, None where another process made it; entry k is made by process `k mod world`.
    """
    every: list[Any] = [parts]
    if world() > 1:
        every = [None] * world()
        dist.all_gather_object(every, list(parts))
    return [every[k % len(every)][k] for k in range(len(parts))]


def agree(values: Mapping[str, str]) -> None:
    """Check that every process has the same hashes.

    Args:
        values: hash by what it stands for, such as `recipe`, `code`, `data`.

    Raises:
        Error: in every process, naming what differs and in which process.
    """
    if world() == 1:
        return
    found: list[Mapping[str, str] | None] = [None] * world()
    dist.all_gather_object(found, dict(values))
    wrong = _differences([f for f in found if f is not None])
    if wrong:
        raise Error(f"the processes do not run the same thing: {'; '.join(wrong)}")


def _differences(found: Sequence[Mapping[str, str]]) -> list[str]:
    first = found[0]
    names: Iterable[str] = sorted({name for one in found for name in one})
    return [
        f"{name} differs in process {number}"
        for name in names
        for number, one in enumerate(found)
        if one.get(name) != first.get(name)
    ]


def first(act: Callable[[], T]) -> T | None:
    """Run something in the main process only; every process learns of its failure.

    Returns:
        What it returned, None in the other processes.

    Raises:
        Error: what it raised, in the main process; an error of the same type and text in the others.
    """
    result: T | None = None
    failure: Exception | None = None
    if is_main():
        try:
            result = act()
        except Exception as error:
            failure = error
    told = broadcast(None if failure is None else (str(failure), getattr(failure, "exit_code", 1)))
    if failure is not None:
        raise failure
    if told is not None:
        mirrored = Error(f"in the main process: {told[0]}")
        mirrored.exit_code = told[1]
        raise mirrored
    return result


def together(act: Callable[[], T]) -> T:
    """Run something in every process; each waits for the others and learns of their failures.

    Returns:
        What it returned, where all succeeded.

    Raises:
        Exception: its own, or the first of the others': an error with its text, or what else ended it.
    """
    if world() == 1:
        return act()
    result: T | None = None
    failure: Exception | None = None
    try:
        result = act()
    except Exception as error:
        failure = error
    told = (str(failure), getattr(failure, "exit_code", 1)) if isinstance(failure, Error) else failure
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, told)
    if failure is not None:
        raise failure
    for number, other in enumerate(found):
        if isinstance(other, Exception):
            raise other
        if other is not None:
            mirrored = Error(f"in process {number}: {other[0]}")
            mirrored.exit_code = other[1]
            raise mirrored
    return cast("T", result)
