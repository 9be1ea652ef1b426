"""The sections of a recipe that are not parts: training, stages, previews.

Counts of progress are in images, so that they mean the same for every batch size. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from latentsb.errors import ArgumentError
from latentsb.ranges import Count, NonNegative, NonNegativeInt, OpenFraction, Positive
from latentsb.recipe.annotations import Form

__all__ = ["Duration", "Ema", "Preview", "Seed", "Stage", "TrainSettings", "seconds"]

UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
DURATION = re.compile(r"(?:(?P<d>[0-9.]+)d)?(?:(?P<h>[0-9.]+)h)?(?:(?P<m>[0-9.]+)m)?(?:(?P<s>[0-9.]+)s)?")


def seconds(value: Any) -> Any:
    """Seconds of a duration such as `90s`, `15m`, `2h` or `1h30m`; other values are returned as they are."""
    if not isinstance(value, str):
        return value
    found = DURATION.fullmatch(value.replace(" ", ""))
    if found is None or not any(found.groups()):
        return value
    try:
        return sum(float(number) * UNITS[unit] for unit, number in found.groupdict().items() if number)
    except ValueError:
        return value


Duration = Annotated[
    float,
    Gt(0),
    BeforeValidator(seconds),
    Form("a duration such as 90s, 15m, 2h"),
    WithJsonSchema({"type": ["number", "string"]}),
]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Momentum = Annotated[float, Ge(0), Lt(1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ema(_Section):
    """The moving average of the weights that samples are made with; exactly one of the two kinds."""

    half_life: Count | None = Field(
        default=None, description="exponential average; images after which a weight counts half"
    )
    power: OpenFraction | None = Field(
        default=None,
        description="power-function average; its relative width (Karras et al. 2024, Eq. 123), 0.05 to 0.2",
    )

    def model_post_init(self, context: Any) -> None:
        """Check that one kind of average is asked for.

        Raises:
            ArgumentError: if both kinds or none are given.
        """
        if (self.half_life is None) == (self.power is None):
            raise ArgumentError("half_life", "give either half_life or power; `ema: null` for no average")


class TrainSettings(_Section):
    """How a stage is trained. All keys may stand under `train:`, and each may be changed by a stage."""

    images: Count = Field(default=1_000_000, description="total number of images (with repetition) of the stage")
    batch: Count = Field(default=128, description="images per step, over all processes together")
    micro_batch: Count | None = Field(
        default=None, description="images per forward pass and process; null: all rows of the process at once"
    )
    lr: Positive = Field(default=3e-4, description="peak learning rate of AdamW")
    warmup: NonNegativeInt = Field(default=10_000, description="images over which the learning rate rises linearly")
    weight_decay: NonNegative = Field(default=0.0, description="decoupled weight decay")
    betas: tuple[Momentum, Momentum] = Field(default=(0.9, 0.99), description="decay rates of AdamW's two moments")
    clip: Positive | None = Field(default=1.0, description="largest global norm of the gradient; null: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    ema: Ema | None = Field(default=Ema(power=0.1), description="moving average of the weights; null: none")
    log_every: Count = Field(default=2_000, description="images between two lines of the log")
    save_every: Count = Field(default=100_000, description="images between two checkpoints")
    preview_every: Count = Field(default=100_000, description="images between two preview grids")
    keep: Annotated[int, Ge(2)] = Field(default=2, description="checkpoints that are kept")
    max_time: Duration | None = Field(default=None, description="save and leave after this time: 90s, 15m, 2h; seconds")
    compile: bool = Field(default=False, description="torch.compile of the networks")
    checkpointing: bool = Field(default=False, description="recompute activations: less memory, about a third slower")
    attention: Literal["auto", "sdpa", "xformers", "math"] = Field(default="auto", description="attention backend")
    workers: NonNegativeInt = Field(default=2, description="threads that read data ahead")
    deterministic: bool = Field(default=False, description="torch's deterministic algorithms, also on CUDA")
    max_bad: NonNegativeInt = Field(
        default=3, description="consecutive non-finite steps that are skipped before stopping"
    )


class Preview(_Section):
    """The picture that shows how training goes; the same samples every time."""

    n: Count = Field(default=16, description="samples in a grid; the first n images beside them")
    seed: Seed = Field(default=0, description="seed of the first sample")


@dataclass(frozen=True)
class Stage:
    """One training run in a row of several.

    Args:
        train: what is trained: `autoencoder`, `bridge`, or a part of the bridge such as `bridge.prior`.
        settings: the shared `train:` settings with the stage's own keys over them.
        changes: the stage's own keys, as given.
    """

    train: str
    settings: TrainSettings
    changes: dict[str, Any] = field(default_factory=dict)
