"""Two folders of images that are led to each other, in one line of a recipe."""

from __future__ import annotations

from pathlib import Path

from latentsb.data.folder import Folder
from latentsb.data.pairs import Unpaired
from latentsb.data.pixels import Fit
from latentsb.data.source import SOURCES
from latentsb.ranges import Count, Fraction

__all__ = ["Folders"]


@SOURCES.register("folders")
class Folders(Unpaired):
    """Two unrelated folders of images: from `source` (x1) to `target` (x0), both read alike; the word may be left out.

    `data: {source: A, target: B, size: 64}` is short for `unpaired` data of two folders.

    Args:
        source: folder of the images that are translated, x1.
        target: folder of the images that they are to become, x0.
        size: side of the images, or (height, width).
        fit: images of another size are cut to the largest centred part of the right proportions (`crop`), laid
            whole on black (`pad`), stretched (`stretch`), or are unreadable (`exact`).
        channels: 1 grey, 3 colour, 4 colour and opacity; any other number that TIFF files and arrays have.
        flip: images may be mirrored left-right.
        bad: share of unreadable images that is tolerated in each; they are left out.
        max_pixels: images whose header promises more pixels are unreadable.
        endings: of the files that are read; those of images if left out.
        range: values of arrays, and of images of more than 8 bits, that become -1 and 1; else those of their type.

    Raises:
        ArgumentError: if the size, the range or the endings are none that can be.
        DataError: at first use, if a folder does not exist, has no images or more unreadable ones than is tolerated.
    """

    implied_by = frozenset({"source", "target"})

    def __init__(
        self,
        *,
        source: Path,
        target: Path,
        size: Count | tuple[Count, Count],
        fit: Fit = "crop",
        channels: Count = 3,
        flip: bool = False,
        bad: Fraction = 0.0,
        max_pixels: Count = 64_000_000,
        endings: tuple[str, ...] = (),
        range: tuple[float, float] | None = None,
    ) -> None:
        def folder(path: Path, key: str) -> Folder:
            made = Folder(
                path=path,
                size=size,
                fit=fit,
                channels=channels,
                flip=flip,
                bad=bad,
                max_pixels=max_pixels,
                endings=endings,
                range=range,
            )
            made.path_key = key
            return made

        self.folders = folder(target, "target"), folder(source, "source")
        super().__init__(x0=self.folders[0], x1=self.folders[1])

    @property
    def recipe_key(self) -> str:
        """Where the data stand in their recipe, for messages at first use."""
        return self.folders[0].recipe_key

    @recipe_key.setter
    def recipe_key(self, value: str) -> None:
        for folder in self.folders:
            folder.recipe_key = value
