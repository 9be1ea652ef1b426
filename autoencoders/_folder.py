"""What autoencoders share whose network is one of diffusers': a shape and weights that may come from a folder."""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder, sizes_near
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr, ssim
from latentsb.process.distances import Distance
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.weights import CONFIG, MODEL, files_of, fill, known, place

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

__all__ = ["Foldered", "latent_of", "reconstruction"]

SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "latent_magnitude", "latent_shift")
IGNORED = frozenset((*SCALES, "sample_size", "force_upcast"))
"""Keys of a config that change nothing here: the fitted normaliser takes the place of scale and shift."""


class Foldered(Autoencoder):
    """An autoencoder around a model of diffusers; write its shape in both directions, and its use.

    With weights, the keys of the shape that were left null are those of the weights; others must not contradict.

    Attributes:
        word: of the recipe.
        kind: diffusers' class.
        shape: our keys of the model's shape.
        weights: a known name, the path of a folder or file, or None to train from nothing.
        model: the model.
    """

    word: ClassVar[str]
    kind: ClassVar[str]
    shape: ClassVar[tuple[str, ...]]
    weights: str | Path | None
    model: Any

    @classmethod
    @abstractmethod
    def new(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys of a model that is trained from nothing, for those that are null."""

    @classmethod
    @abstractmethod
    def shape_in(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys from a `config.json`, as far as our keys can say what is there."""

    @classmethod
    @abstractmethod
    def config_of(cls, channels: int, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of diffusers' class.

        Args:
            channels: of an image.
            shape: every one of our keys.
        """

    @classmethod
    def told(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A `config.json` in one way of writing, where several mean the same; as it is by default."""
        return dict(config)

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The shape: of known weights, of a folder's `config.json`, or of a new model.

        Raises:
            ArgumentError: if a key contradicts the weights.
        """
        weights = keys["weights"]
        if weights is None:
            return {name: value for name, value in cls.new(keys).items() if keys[name] is None}
        found = cls._shape_of(weights)
        shape = {name: found[name] for name in cls.shape if name in found}
        for name, value in shape.items():
            given = keys[name]
            if given is not None and _plain(given) != _plain(value):
                told = [json.dumps(v) for v in (given, value)]
                raise ArgumentError(name, f"found {told[0]}; the weights '{weights}' have {told[1]} (leave it out)")
        return {name: value for name, value in shape.items() if keys[name] is None}

    @classmethod
    def whole_shape(cls, images: Spec, weights: str | Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """All keys of the shape, for a constructor.

        Args:
            images: shape of one image.
            weights: as in the recipe.
            given: the keys of the shape, null where they follow from others.

        Raises:
            ArgumentError: if keys contradict the weights, or these are for images of other channels.
            DataError: if the shape is in a folder that is not complete.
        """
        if len(images.shape) != 3:
            raise ArgumentError("images", f"{cls.word} needs images (C, H, W), found samples of shape {images.shape}")
        shape = {**given, **cls.completed({"weights": weights, **given})}
        if weights is None:
            return shape
        if None in shape.values():
            files_of(_folder(weights), (CONFIG, MODEL), owner=cls.word)
        channels = cls._shape_of(weights).get("channels", images.channels)
        if channels != images.channels:
            told = f"the weights are for images of {channels} channels, found {images.channels}"
            raise ArgumentError("images", f"{told}; write channels: {channels} in the data")
        return shape

    @classmethod
    def build(cls, channels: int, shape: Mapping[str, Any]) -> Any:
        """The model, with random weights."""
        import diffusers.models  # a second of import

        return getattr(diffusers.models, cls.kind)(**cls.config_of(channels, shape))

    def load(self) -> None:
        """Read the weights.

        Raises:
            DataError: if the folder or the weights are not complete, or of another shape than the recipe.
        """
        if self.weights is None:
            return
        folder = files_of(_folder(self.weights), (CONFIG, MODEL), owner=self.word)[0].parent
        found = _load(folder, type(self.model))
        self._same(folder / CONFIG, dict(found.config), dict(self.model.config))
        fill(self.model, found.state_dict(), folder / MODEL)

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of raw latents."""
        decoded: Tensor = self.model.decode(raw).sample
        return decoded

    def terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Named parts of the loss of images, each of shape (B,).

        Args:
            images: (B, C, H, W) in [-1, 1].
            draws: of these rows.

        Raises:
            NotImplementedError: if the class has a loss of its own.
        """
        raise NotImplementedError

    def both_ends(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The terms of a batch: of its images, or the mean of those of both ends where pixels have two."""
        found = self.terms(batch.data if batch.images is None else batch.images, draws)
        if batch.x1 is None:
            return found
        other = self.terms(batch.x1, draws.fork("x1"))
        return {name: (value + other[name]) / 2 for name, value in found.items()}

    @classmethod
    def _shape_of(cls, weights: str | Path) -> dict[str, Any]:
        """Our keys of the weights' shape, and `channels` of an image; empty for a folder that is not there (any more).

        Raises:
            DataError: if a config is of a model that this class cannot hold.
        """
        found = known(weights, cls.word)
        if found is not None:
            return {"channels": 3, **found.shape}
        path = place(_folder(weights)) / CONFIG
        if not path.is_file():
            return {}
        try:
            config = cls.told(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, OSError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        if config.get("_class_name", cls.kind) != cls.kind:
            raise DataError(f"{path}: {cls.word} cannot hold _class_name: {json.dumps(config['_class_name'])}")
        shape, channels = cls.shape_in(config), config.get("in_channels", 3)
        ours = cls.config_of(channels, shape)
        cls._same(path, {name: value for name, value in config.items() if name in ours and value is not None}, ours)
        return {"channels": channels, **shape}

    @classmethod
    def _same(cls, path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        """Compare a config with what our keys can say.

        Raises:
            DataError: naming the first key in which they differ.
        """
        told, found = cls.told(ours), cls.told(theirs)
        for name in dict.fromkeys((*told, *found)):
            counts = name in found and name not in IGNORED and not name.startswith("_")
            if counts and _plain(found[name]) != _plain(told.get(name)):
                raise DataError(f"{path}: {cls.word} cannot hold {name}: {json.dumps(found[name])}")


def latent_of(images: Spec, channels: int, levels: int, key: str) -> Spec:
    """Shape of a latent whose sides are halved from each resolution to the next.

    Args:
        images: shape of one image, (C, H, W).
        channels: of the latent.
        levels: how many resolutions there are, at least 1.
        key: that says so, for the message.

    Raises:
        ArgumentError: if the sides do not divide.
    """
    factor = 2 ** (levels - 1)
    _, height, width = images.shape
    if height % factor or width % factor:
        raise ArgumentError(
            key, f"{levels} resolutions divide the sides by {factor}; images have {sizes_near(images, factor)}"
        )
    return Spec((channels, height // factor, width // factor))


def reconstruction(decoded: Tensor, images: Tensor, distance: Distance) -> dict[str, Tensor]:
    """What decoding lost: the mean distance of a number of the image, and PSNR and SSIM of the images as shown.

    Args:
        decoded: (B, C, H, W), about [-1, 1].
        images: same shape, in [-1, 1].
        distance: of two numbers.

    Returns:
        Three terms of shape (B,); gradients go through the first.
    """
    one, seen = torch.ones((), device=images.device), decoded.detach().clamp(-1.0, 1.0)
    return {
        "distance": distance.of(decoded - images, one, one).flatten(1).mean(1),
        "psnr": psnr(seen, images),
        "ssim": ssim(seen, images),
    }


def _plain(value: Any) -> Any:
    """The value as JSON would have it: lists for tuples."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _folder(weights: str | Path) -> str | Path:
    """The folder of weights of which the file itself is named; others as they are."""
    where = place(weights)
    return where.parent if where.is_file() else weights


def _load(folder: Path, kind: type[ModelMixin]) -> ModelMixin:
    """The model of a folder, every weight of it found and no weight left over; older names are understood."""
    loaders = logging.getLogger("diffusers.models.modeling_utils")
    level = loaders.level
    loaders.setLevel(logging.ERROR)  # it warns of missing weights; below they are an error
    try:
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
        )
    except Exception as error:
        raise DataError(f"{folder / MODEL}: cannot be loaded ({error})") from error
    finally:
        loaders.setLevel(level)
    wrong = [f"{kind.replace('_', ' ')} {', '.join(map(str, names[:3]))}" for kind, names in found.items() if names]
    if wrong:
        raise DataError(f"{folder / MODEL} does not belong to its {CONFIG}: {'; '.join(wrong)}")
    loaded: ModelMixin = model
    return loaded
