"""The samples of some classes of a data set."""

from __future__ import annotations

import numpy as np

from latentsb.data.source import SOURCES, Source
from latentsb.data.subset import Subset
from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import NonNegativeInt

__all__ = ["Classes"]

BLOCK = 1024
"""Samples that are read at a time for their labels."""


@SOURCES.register("classes")
class Classes(Subset):
    """The samples of a labelled data set that have one of some labels, in the order of the data.

    Two of them are the ends of a translation between halves of one data set. Samples are read once for their labels.

    Args:
        of: data with the condition `label`, of one end.
        labels: those that are kept; their numbers stay what they are.

    Raises:
        ArgumentError: if the data have no labels, have two ends, or no label is asked for or one that cannot be.
        DataError: when the data are first used, if no sample has one of the labels.
    """

    def __init__(self, *, of: Source, labels: tuple[NonNegativeInt, ...]) -> None:
        if "label" not in of.cond:
            raise ArgumentError("of", "these data have no labels to choose by")
        if of.two_sided:
            raise ArgumentError("of", "data with two ends cannot be chosen from; choose from each end")
        if not labels:
            raise ArgumentError("labels", "found none; name at least one, as in `labels: [0, 1]`")
        classes = of.cond["label"].classes
        beyond = [label for label in labels if classes is not None and label >= classes]
        if beyond:
            raise ArgumentError("labels", f"found {beyond[0]}; the data have labels 0 to {(classes or 0) - 1}")
        self.labels = labels
        super().__init__(of, self._chosen)

    def _chosen(self) -> np.ndarray:
        """Positions of the samples that have one of the labels."""
        n = len(self.source)
        blocks = [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
        found = [block[np.isin(self.source.read(block).cond["label"].numpy(), self.labels)] for block in blocks]
        rows = np.concatenate([np.empty(0, np.int64), *found])
        if not len(rows):
            raise DataError(f"none of the {n:,} samples has a label of {list(self.labels)}")
        return rows
