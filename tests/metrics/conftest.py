"""A subject made of tensors, in place of a run."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latentsb.autoencoders.identity import Identity
from latentsb.bridge import DenoisingBridge, EncodingBridge, State
from latentsb.data.arrays import ArraySource
from latentsb.laws import Ends
from latentsb.metrics.base import Data, Drawn, Subject
from latentsb.process.references import VE
from latentsb.tensors import Condition, Spec


class Stand(Subject):
    """Training and held-out tensors, their latents, a bridge, and given samples; counts how often they are drawn."""

    def __init__(
        self,
        train,
        held=None,
        *,
        labels=None,
        held_labels=None,
        bridge=None,
        samples=None,
        classes=None,
        latents=lambda x: x,
    ):
        def data(x, label, held_out):
            cond = {} if label is None else {"label": label}
            source, coded = (ArraySource(end, cond=cond, classes=classes) for end in (x, latents(x)))
            return Data(source, lambda: coded, held_out=held_out)

        self.train = data(train, labels, False)
        self.held = None if held is None else data(held, held_labels, True)
        self.autoencoder = Identity(self.train.source.spec)
        self.bridge, self.given, self.drawn = bridge, samples, 0

    def samples(self, *, guidance: float = 1.0) -> Drawn:
        self.drawn += 1
        return self.given(guidance) if callable(self.given) else Drawn(self.given)

    def reconstruct(self, images, *, mode, seed, cond, endpoint=None):
        z = self.bridge.encode(images)["z"]
        made = self.bridge.decode(z).reshape(images.shape)
        noise = {"faithful": 0.0, "perceptual": 1.0}[mode]
        made = made + noise * torch.randn(made.shape, generator=torch.Generator().manual_seed(seed))
        return SimpleNamespace(originals=images, autoencoder=images, bridge=made, z=z, calls=1)

    def watch(self, title, total):
        return contextlib.nullcontext(lambda done: None)


class Denoiser(DenoisingBridge):
    """A denoiser that is a function of `(y, sigma, cond)` over the VE reference."""

    reference = VE()

    def __init__(self, spec: Spec, denoise, classes: int | None = None) -> None:
        super().__init__()
        cond = {} if classes is None else {"label": Spec((), torch.int64, classes)}
        self.ends, self.function = Ends(spec=spec, cond=cond), denoise

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        marginal = self.marginal(t)
        return self.function(marginal.to_y(x, None), float(marginal.sigma_eff), cond)

    def marginal(self, t):
        return self.reference.noised(t)

    def loss(self, batch, draws):
        raise NotImplementedError

    def start(self, batch, draws, towards="x0"):
        return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)


class Coder(EncodingBridge):
    """Codes are `x @ matrix`, decoded by the transpose."""

    reference = VE()

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix, self.z_dim = matrix, matrix.shape[1]
        self.ends = Ends(spec=Spec((matrix.shape[0],)))

    def encode(self, x0, draws=None, images=None):
        return Condition({"z": x0.flatten(1) @ self.matrix})

    def decode(self, z):
        return z @ self.matrix.T

    def endpoint(self, cond, x0=None, draws=None):
        return cond

    def new_codes(self, cond, draws):
        raise NotImplementedError

    def denoise(self, x, t, cond):
        return x

    def marginal(self, t):
        return self.reference.noised(t)

    def loss(self, batch, draws):
        raise NotImplementedError

    def start(self, batch, draws, towards="x0"):
        raise NotImplementedError


@pytest.fixture(scope="session")
def parts() -> SimpleNamespace:
    """`Stand`, `Denoiser` and `Coder`."""
    return SimpleNamespace(Stand=Stand, Denoiser=Denoiser, Coder=Coder)
