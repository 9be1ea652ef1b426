"""No data: a law of which there are no samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentsb.data.source import Items, Source
from latentsb.errors import CapabilityError
from latentsb.laws import Law
from latentsb.registry import describe

__all__ = ["WithoutData"]


class WithoutData(Source):
    """What stands for data in a recipe whose bridge samples from a density: batches bring rows only.

    No word names it: it follows from `bridge.target`.

    Args:
        law: at t = 0.
    """

    def __init__(self, *, law: Law) -> None:
        self.spec, self.cond, self.x0 = law.spec, {}, law

    def __len__(self) -> int:
        return 0

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Refuse.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("a target density has no samples to read")

    def fingerprint(self) -> dict[str, Any]:
        """The law's own keys."""
        return {"law": describe(self.x0)}
