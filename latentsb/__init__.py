"""Generative bridges in latent space.

`load_run("runs/x")` opens a trained run; the registries (`BRIDGES`, `AUTOENCODERS`, …) take new parts. Names are
imported when they are first used, so that `import latentsb` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentsb.autoencoder import AUTOENCODERS, Autoencoder
    from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge, State
    from latentsb.codes import encode
    from latentsb.edits import direction_of, edit
    from latentsb.errors import ArgumentError, CapabilityError, Error, RecipeError
    from latentsb.generate import reconstruct, sample
    from latentsb.laws import Ends
    from latentsb.networks.base import NETWORKS, Network
    from latentsb.process.marginal import Marginal
    from latentsb.process.reference import REFERENCES, ScalarReference
    from latentsb.randomness import Draws
    from latentsb.registry import Build
    from latentsb.run import Run, load_run
    from latentsb.solvers.base import SOLVERS, Solver
    from latentsb.tensors import Batch, Condition, Spec
    from latentsb.trainable import Loss, Phase, Trainable
    from latentsb.walks import interpolate, interpolate_sheet

_HOMES = {
    "latentsb.autoencoder": ("AUTOENCODERS", "Autoencoder"),
    "latentsb.bridge": ("BRIDGES", "Bridge", "DenoisingBridge", "EncodingBridge", "State"),
    "latentsb.codes": ("encode",),
    "latentsb.edits": ("direction_of", "edit"),
    "latentsb.errors": ("ArgumentError", "CapabilityError", "Error", "RecipeError"),
    "latentsb.generate": ("reconstruct", "sample"),
    "latentsb.laws": ("Ends",),
    "latentsb.networks.base": ("NETWORKS", "Network"),
    "latentsb.process.marginal": ("Marginal",),
    "latentsb.process.reference": ("REFERENCES", "ScalarReference"),
    "latentsb.randomness": ("Draws",),
    "latentsb.registry": ("Build",),
    "latentsb.run": ("Run", "load_run"),
    "latentsb.solvers.base": ("SOLVERS", "Solver"),
    "latentsb.tensors": ("Batch", "Condition", "Spec"),
    "latentsb.trainable": ("Loss", "Phase", "Trainable"),
    "latentsb.walks": ("interpolate", "interpolate_sheet"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AUTOENCODERS",
    "BRIDGES",
    "NETWORKS",
    "REFERENCES",
    "SOLVERS",
    "ArgumentError",
    "Autoencoder",
    "Batch",
    "Bridge",
    "Build",
    "CapabilityError",
    "Condition",
    "DenoisingBridge",
    "Draws",
    "EncodingBridge",
    "Ends",
    "Error",
    "Loss",
    "Marginal",
    "Network",
    "Phase",
    "RecipeError",
    "Run",
    "ScalarReference",
    "Solver",
    "Spec",
    "State",
    "Trainable",
    "__version__",
    "direction_of",
    "edit",
    "encode",
    "interpolate",
    "interpolate_sheet",
    "load_run",
    "reconstruct",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'latentsb' has no attribute '{name}'")
