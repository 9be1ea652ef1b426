"""The methods of the benches: a recipe without data each, in which `$WORD`s stand for the numbers of a problem.

`$SIGMA` and `$EPSILON` of the Brownian reference, `$STEPS` of every simulation, `$NETWORK` of each drift (all methods
have the same), `$IMAGES` in all and `$TURN` in one turn of an alternating method, `$SEED`, `$DIM`, `$COMPONENTS`,
and `$TOWARDS`, the end that is made.
"""

from __future__ import annotations

from typing import Any

__all__ = ["METHODS", "TRAIN", "words"]

TRAIN = """
seed: $SEED
solver: {name: euler_maruyama, steps: $STEPS, noiseless_last: false}
train: {images: $IMAGES, batch: 128, lr: 1e-3, warmup: 12_800, log_every: $LOG, save_every: $TURN,
  preview_every: 1_000_000_000, workers: 0}
preview: {n: 1}
"""
"""What all methods share, if they do not say otherwise."""

REFERENCE = "reference: {name: brownian, sigma: $SIGMA}"
MADE = "towards: $TOWARDS"
ENTROPIC = f"{{name: minibatch_ot, {REFERENCE}}}"
SHARED = f"network: $NETWORK, {REFERENCE}, dropout: 0"
SIMULATION = "simulation: {name: euler_maruyama, steps: $STEPS, noiseless_last: false}"
ODE = "solver: {name: euler, steps: $STEPS}"

METHODS: dict[str, str] = {
    "dsbm_imf": f"bridge: {{name: dsbm, {SHARED}, {SIMULATION}, images: $TURN}}",
    "dsbm_ipf": f"bridge: {{name: dsbm, coupling: {{name: reference}}, {SHARED}, {SIMULATION}, images: $TURN}}",
    "dsbm_ot": f"bridge: {{name: dsbm, coupling: {ENTROPIC}, {SHARED}, {SIMULATION}, images: $TURN}}",
    "dsb": f"bridge: {{name: dsb, objective: {{name: original}}, {SHARED}, steps: $STEPS, half_step: $TURN}}",
    "sdsb": f"bridge: {{name: dsb, {SHARED}, steps: $STEPS, half_step: $TURN}}",
    "fbsde": f"bridge: {{name: fbsde, objective: {{name: alternate, turn: $TURN, refresh: $TURN}}, {SHARED}, "
    "steps: $STEPS}",
    "sf2m": f"bridge: {{name: sf2m, {SHARED}}}",
    "lightsb": f"bridge: {{name: lightsb, {REFERENCE}, {MADE}, components: $COMPONENTS}}\ntrain: {{lr: 1e-2}}",
    "lightsb_m": f"bridge: {{name: lightsb, matching: independent, {REFERENCE}, {MADE}, components: $COMPONENTS}}"
    "\ntrain: {lr: 1e-2}",
    "flow": f"bridge: {{name: flow, network: $NETWORK, dropout: 0}}\n{ODE}",
    "flow_ot": f"bridge: {{name: flow, coupling: minibatch_ot, network: $NETWORK, dropout: 0}}\n{ODE}",
}
"""What each method adds to the recipe of a bench."""


def words(
    *, dim: int, sigma: float, steps: int, images: int, turns: int, width: int, components: int, towards: str = "x1"
) -> dict[str, Any]:
    """What the words stand for, but for the seed.

    Args:
        dim: of the vectors.
        sigma: of the Brownian reference.
        steps: of every simulation.
        images: of training, of every method.
        turns: into which alternating methods divide them.
        width: of the network.
        components: of mixtures.
        towards: the end that a method makes which makes only one.
    """
    return {
        "DIM": dim,
        "SIGMA": sigma,
        "EPSILON": sigma**2,
        "STEPS": steps,
        "IMAGES": images,
        "TURN": max(1, images // turns),
        "LOG": max(1, images // 50),
        "NETWORK": f"{{name: mlp, width: {width}, depth: 2}}",
        "COMPONENTS": components,
        "TOWARDS": towards,
    }
