"""Pretrained weights: their names, their one place on this machine, and what a file of them holds.

A recipe names weights in one of two ways. A known name (`weights: taef2`) is looked for in the folder of that name
below `LATENTSB_WEIGHTS`; anything else is a path, also `./taef2`. Nothing is ever downloaded unasked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentsb.errors import ArgumentError, DataError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "ANY",
    "CONFIG",
    "ENVIRONMENT",
    "KNOWN",
    "MODEL",
    "PAIR",
    "Known",
    "files_of",
    "fill",
    "home",
    "known",
    "misfit",
    "names_of",
    "place",
    "read",
]

ENVIRONMENT = "LATENTSB_WEIGHTS"
CONFIG, MODEL = "config.json", "diffusion_pytorch_model.safetensors"
ANY = "*.safetensors"
PAIR = ("*_encoder.safetensors", "*_decoder.safetensors")


@dataclass(frozen=True, kw_only=True)
class Known:
    """Published weights.

    Args:
        about: what they are, in a few words.
        autoencoder: the word of the autoencoder that they belong to.
        repo: on the Hugging Face Hub.
        files: of that repository that are needed; safetensors and JSON only.
        instead: other sets of files in which the same weights are passed on.
        size: bytes of these files, about.
        licence: as the repository states it.
        shape: the autoencoder's own keys that follow from the weights, so that shapes are known without them.
    """

    about: str
    autoencoder: str
    repo: str
    files: tuple[str, ...] = (CONFIG, MODEL)
    instead: tuple[tuple[str, ...], ...] = ()
    size: int
    licence: str = "MIT"
    shape: Mapping[str, Any] = field(default_factory=dict)


SD = {"latent_channels": 4, "widths": (128, 256, 512, 512), "blocks": 2, "groups": 32, "attention": True, "quant": True}
BIG, TINY = 335_000_000, 9_800_000


def _deep(about: str, name: str, size: int, **shape: Any) -> Known:
    """A published deep-compression autoencoder."""
    repo = f"mit-han-lab/{name}-diffusers"
    return Known(about=about, autoencoder="dc", repo=repo, size=size, licence="Apache-2.0", shape=shape)


def _deeper(about: str, name: str, size: int, channels: int, more: int) -> Known:
    """One without work at the full size, and with so many resolutions more than six."""
    return _deep(
        about,
        name,
        size,
        latent_channels=channels,
        widths=(128, 256, 512, 512, 1024, 1024) + (2048,) * more,
        encoder_blocks=(0, 4, 8, 2, 2, 2) + (2,) * more,
        decoder_blocks=(0, 5, 10, 2, 2, 2) + (2,) * more,
        attention=3 + more,
        head_width=32,
        scales=(),
        shuffle=True,
        batch_norm=True,
    )


SANA = _deep(
    "32 channels at a 32nd of the sides, as in Sana",
    "dc-ae-f32c32-sana-1.0",
    1_250_000_000,
    latent_channels=32,
    widths=(128, 256, 512, 512, 1024, 1024),
    encoder_blocks=(2, 2, 2, 3, 3, 3),
    decoder_blocks=(3, 3, 3, 3, 3, 3),
    attention=3,
    head_width=32,
    scales=(5,),
    shuffle=False,
    batch_norm=False,
)
DEEP = {
    f"dc-ae-f{32 << more}c{channels}-{data}-1.0": (about, size, channels, more)
    for channels, more, size in ((32, 0, 1_290_000_000), (128, 1, 2_710_000_000), (512, 2, 4_480_000_000))
    for data, about in (("in", "trained on ImageNet"), ("mix", "trained on several sets"))
}

KNOWN: Mapping[str, Known] = {
    "sd-vae-ft-mse": Known(
        about="Stable Diffusion 1 and 2, decoder tuned for squared error",
        autoencoder="kl",
        repo="stabilityai/sd-vae-ft-mse",
        size=BIG,
        shape=SD,
    ),
    "sd-vae-ft-ema": Known(
        about="Stable Diffusion 1 and 2, decoder tuned further",
        autoencoder="kl",
        repo="stabilityai/sd-vae-ft-ema",
        size=BIG,
        shape=SD,
    ),
    "sdxl-vae": Known(about="Stable Diffusion XL", autoencoder="kl", repo="stabilityai/sdxl-vae", size=BIG, shape=SD),
    "taesd": Known(
        about="tiny, for the latents of Stable Diffusion 1 and 2",
        autoencoder="taesd",
        repo="madebyollin/taesd",
        instead=(PAIR,),
        size=TINY,
        shape={"latent_channels": 4},
    ),
    "taesdxl": Known(
        about="tiny, for the latents of Stable Diffusion XL",
        autoencoder="taesd",
        repo="madebyollin/taesdxl",
        instead=(PAIR,),
        size=TINY,
        shape={"latent_channels": 4},
    ),
    "taesd3": Known(
        about="tiny, for the latents of Stable Diffusion 3",
        autoencoder="taesd",
        repo="madebyollin/taesd3",
        instead=(PAIR,),
        size=TINY,
        shape={"latent_channels": 16},
    ),
    "taef1": Known(
        about="tiny, for the latents of FLUX.1",
        autoencoder="taesd",
        repo="madebyollin/taef1",
        instead=(PAIR,),
        size=TINY,
        shape={"latent_channels": 16},
    ),
    "taef2": Known(
        about="tiny, for the latents of FLUX.2",
        autoencoder="taef2",
        repo="madebyollin/taef2",
        files=("taef2.safetensors",),
        instead=(PAIR,),
        size=TINY,
    ),
    "dc-ae-f32c32-sana-1.0": SANA,
    **{name: _deeper(about, name, size, channels, more) for name, (about, size, channels, more) in DEEP.items()},
}


def home() -> Path:
    """Where weights of known names lie: `$LATENTSB_WEIGHTS`, or `~/.cache/latentsb/weights`."""
    return Path(os.environ.get(ENVIRONMENT) or "~/.cache/latentsb/weights").expanduser()


def known(weights: str | Path, autoencoder: str) -> Known | None:
    """What is known of these weights without reading them; None for a path.

    Raises:
        ArgumentError: for known weights of another autoencoder.
    """
    found = KNOWN.get(weights) if isinstance(weights, str) else None
    if found is not None and found.autoencoder != autoencoder:
        fit = [name for name, other in KNOWN.items() if other.autoencoder == autoencoder]
        there = f"; weights for '{autoencoder}': {', '.join(fit)}" if fit else ""
        raise ArgumentError("weights", f"'{weights}' belongs to '{found.autoencoder}', not to '{autoencoder}'{there}")
    return found


def place(weights: str | Path) -> Path:
    """The folder of a known name, or the path itself."""
    return home() / weights if isinstance(weights, str) and weights in KNOWN else Path(weights).expanduser()


def files_of(weights: str | Path, *accepted: tuple[str, ...], owner: str = "") -> tuple[Path, ...]:
    """The files of weights.

    Args:
        weights: a known name, a folder, or a file, which then is the only one.
        accepted: sets of file names (`*` for any text) of which the first that is there is taken; `ANY` is a file
            that has no other beside it.
        owner: what the weights are for, which a message names.

    Raises:
        DataError: if none of them is there, or a name fits several files; says what to put where.
    """
    where = place(weights)
    if where.is_file():
        return (where,)
    for names in accepted:
        found = [sorted(where.glob(name)) for name in names]
        for name, paths in zip(names, found, strict=True):
            if len(paths) > 1 and all(found) and name != ANY:
                listed = " or ".join(path.name for path in paths)
                raise DataError(f"weights {where}: {name} may be {listed}; keep one of them there, or name a file")
        if all(found) and not (names == (ANY,) and len(found[0]) > 1):
            return tuple(paths[0] for paths in found)
    wanted = _either(accepted)
    if where != Path(weights).expanduser():
        cure = f"run 'latentsb fetch {weights}', or put them there"
        raise DataError(f"weights '{weights}': found no {wanted} in {where}{_others(where)}; {cure}")
    hint, whose = nearest(str(weights), KNOWN), f" of '{owner}'" if owner else ""
    told = f"weights{whose}: found no {wanted} in {where}{_others(where)}"
    raise DataError(f"{told}; put them there, or name a folder or a file that has them.{hint}")


def names_of(name: str) -> str:
    """The file names under which known weights are read, every set of them: `a and b, or c`."""
    known = KNOWN[name]
    sets = (known.files, *known.instead)
    return _either(tuple(tuple(file.replace("*", name) for file in files) for files in sets))


def _either(sets: Iterable[tuple[str, ...]]) -> str:
    return ", or ".join("a single *.safetensors" if names == (ANY,) else " and ".join(names) for names in sets)


def _others(where: Path) -> str:
    """What lies in a folder that could be taken for weights."""
    found = sorted(path.name for path in where.glob(ANY))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f" (it holds {', '.join(found[:3])}{more})" if found else ""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        DataError: if it is not a whole one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values: dict[str, Tensor] = load_file(path)
        return values
    except (SafetensorError, OSError, ValueError) as error:
        reason = "only safetensors are read, no pickles" if path.suffix in (".pth", ".pt", ".bin", ".ckpt") else error
        raise DataError(f"{path}: cannot be loaded ({reason})") from error


def fill(module: nn.Module, values: Mapping[str, Tensor], where: Path) -> None:
    """Copy tensors into a module's own, of whatever type.

    Raises:
        DataError: naming what is missing, unknown, or of another shape; nothing is copied then.
    """
    own = module.state_dict()
    if wrong := misfit(own, values):
        raise DataError(f"{where} does not fit: {wrong}")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in values.items()})


def misfit(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> str:
    """What is missing, unknown, or of another shape, the first three of them; empty if all fits."""
    wrong = [f"{name} is missing" for name in own if name not in values]
    wrong += [f"{name} is unknown" for name in values if name not in own]
    for name, value in own.items():
        if name in values and values[name].shape != value.shape:
            wrong.append(f"{name} is {tuple(values[name].shape)}, expected {tuple(value.shape)}")
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
