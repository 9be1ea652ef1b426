"""Who takes any size: built for a square, an autoencoder does to other sides what one that was built for them does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentsb.autoencoder import AUTOENCODERS, Autoencoder
from latentsb.resized import shapes_at
from latentsb.tensors import Spec

DEPTH = {"widths": (8, 16), "groups": 4}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "identity": (1, {}),
    "patch": (4, {"factor": 4}),
    "kl": (2, DEPTH),
    "vq": (2, DEPTH | {"codes": 16}),
    "dc": (
        4,
        {
            "weights": None,
            "widths": (8, 16, 16),
            "encoder_blocks": (1, 1, 1),
            "decoder_blocks": (1, 1, 1),
            "attention": 1,
            "head_width": 4,
            "latent_channels": 4,
        },
    ),
    "tiny": (4, {"encoder_width": 6, "decoder_width": 6, "encoder_blocks": (1, 1, 1), "latent_channels": 3}),
    "taesd": (8, {"latent_channels": 4}),
    "taef2": (8, {}),
}
"""Word, factor, and what makes it small."""


def built(word: str, height: int, width: int) -> Autoencoder:
    torch.manual_seed(0)
    return AUTOENCODERS[word](Spec((3, height, width)), **CASES[word][1]).eval()


@torch.no_grad()
@pytest.mark.parametrize("word", CASES)
def test_weights_do_not_know_the_size(word: str) -> None:
    factor = CASES[word][0]
    square, wide = built(word, 32, 32), built(word, 16, 48)
    assert square.any_size
    assert square.cell == wide.cell == factor
    wide.load_state_dict(square.state_dict())
    assert wide.fingerprint() == square.fingerprint()
    square.images, square.latent = shapes_at(square, (16, 48), factor)
    assert square.latent == wide.latent
    assert square.latent.shape[1:] == (16 // factor, 48 // factor)  # height first
    x = torch.rand(2, 3, 16, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = square.encode(x)
    assert latents.shape == (2, *wide.latent.shape)
    assert torch.equal(latents, wide.encode(x))
    images = square.decode(latents)
    assert images.shape == x.shape
    assert torch.equal(images, wide.decode(latents))
    # What is near in the picture is near in the latent: the left third changes the left of the latent the most.
    x[..., :16] = -x[..., :16]
    moved = (square.encode(x) - latents).abs().mean((0, 1, 2))
    assert moved[: len(moved) // 3].mean() > 2 * moved[2 * len(moved) // 3 :].mean()
