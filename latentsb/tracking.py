"""Records of training: `log.jsonl` always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from latentsb.run import Run
from latentsb.stages import Session

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Tracker"]

logger = logging.getLogger(__name__)


class Tracker:
    """Writes what a stage measures.

    Args:
        run: where to.
        session: what is measured.
        enabled: False in all processes but the main one; records are still made, but not written.

    Attributes:
        waited: seconds that the loop has waited for data.
    """

    def __init__(self, run: Run, session: Session, *, enabled: bool) -> None:
        self.run, self.session, self.enabled = run, session, enabled
        self.waited = 0.0
        self._before = session.seconds
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Tracker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def start(self) -> None:
        """Begin to measure time."""
        self._began = self._marked = time.monotonic()
        self._seen, self._waited = self.session.seen, 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave what happens here (previews, saves) out of the images per second."""
        began = time.monotonic()
        yield
        self._marked += time.monotonic() - began

    def seconds(self) -> float:
        """Seconds trained in this run, over all starts."""
        return self._before + time.monotonic() - self._began

    def record(self, means: Mapping[str, float]) -> dict[str, Any]:
        """Write a line of the log.

        Args:
            means: losses and norms since the last line.

        Returns:
            The line: place, time, means, learning rate, images per second, share of the time spent waiting for data,
            memory in bytes, steps that were skipped.
        """
        session, now = self.session, time.monotonic()
        passed = max(now - self._marked, 1e-9)
        line: dict[str, Any] = {
            "stage": session.stage.train,
            "step": session.step,
            "images": session.seen,
            "seconds": round(self.seconds(), 3),
            **means,
            "lr": session.update.optimizer.param_groups[0]["lr"],
            "images_per_second": round((session.seen - self._seen) / passed, 2),
            "data_wait": round((self.waited - self._waited) / passed, 4),
            "memory": memory(session.experiment.device),
            "skipped": session.guard.total,
        }
        self._marked, self._seen, self._waited = now, session.seen, self.waited
        if self.enabled:
            self.run.log(line)
            self._tensorboard(line)
        return line

    def measured(self, values: Mapping[str, float]) -> None:
        """Write a line of what was measured beside training, at the present place."""
        session = self.session
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"stage": session.stage.train, "step": session.step, "images": session.seen, **finite}
        if self.enabled and finite:
            self.run.log(line)
            self._tensorboard(line)

    def event(self, what: str, **facts: Any) -> None:
        """Write a line about something that happened."""
        if self.enabled:
            session = self.session
            self.run.log({"event": what, "stage": session.stage.train, "step": session.step, **facts})

    def _tensorboard(self, line: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.run.path / "tensorboard"))
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "images"):
                    self._writer.add_scalar(f"{line['stage']}/{name}", value, line["images"])
        except OSError as error:
            logger.warning("TensorBoard: %s; training goes on without it", error)


def memory(device: torch.device) -> int:
    """Peak memory in bytes: of the accelerator where there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
