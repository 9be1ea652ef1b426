"""Retrieval: whether the nearest other code belongs to the same class, for many classes of few images each."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, require
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject, Table
from latentsb.metrics.linear import NUMBERS, Components
from latentsb.ranges import Count, enforce

__all__ = ["Retrieval", "chance", "retrieve"]


@METRICS.register("retrieval")
@dataclass(frozen=True, kw_only=True)
class Retrieval(Metric):
    """Share of held-out images whose nearest other image, by the cosine of their codes, has the same label.

    Leave-one-out among all held-out images; only those whose label occurs twice are asked for, the others stand by as
    wrong answers. Codes are mean codes, and every kind of code is centred by its mean over these images. Beside z stand
    PCA codes of the same length (fitted to training images), the pixels themselves where
    they fit into memory, and chance. `mAP` is the mean
    over queries of the average precision of their ranking.

    Source: Manning, Raghavan and Schütze 2008, Introduction to information retrieval, Sec. 8.4.

    Args:
        images: held-out images, at most.
        fitted_on: training images, at most, that PCA is fitted to.
        batch: images at a time.
        seed: of the choice of images and of PCA.
    """

    images: Count = 5000
    fitted_on: Count = 20_000
    batch: Count = 256
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """The bridge must encode, and the data must have labels."""
        require(subject.bridge, EncodingBridge, "the metric 'retrieval'")
        if not subject.test.labelled:
            raise CapabilityError(f"the metric 'retrieval' needs labels; the {subject.test.name} have none")

    @torch.no_grad()
    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is the share of first answers that are right."""
        self.require(subject)
        bridge = require(subject.bridge, EncodingBridge, "the metric 'retrieval'")
        data = subject.test
        rows = data.rows(self.images, self.seed, "retrieved images")
        linear = Components.fit(subject.train, bridge.z_dim, self.fitted_on, self.seed)
        codes, lines, pixels, labels = [], [], [], []
        with subject.watch("encoding", len(rows)) as advance:
            for first in range(0, len(rows), self.batch):
                chosen = rows[first : first + self.batch]
                items = data.read(chosen)
                x0 = data.read(chosen, latents=True).x0
                seen = items.x0.to(bridge.device) if bridge.needs_images else None
                codes.append(bridge.encode(x0.to(bridge.device), None, seen)["z"].float().cpu())
                lines.append(linear.encode(items.x0))
                if data.source.spec.numel * len(rows) <= NUMBERS:
                    pixels.append(items.x0.flatten(1).float())
                labels.append(items.cond["label"])
                advance(len(chosen))
        label = torch.cat(labels)
        own = f"z, {bridge.z_dim} numbers"
        kinds = {
            own: torch.cat(codes),
            f"PCA, {len(linear.directions)} components": torch.cat(lines),
        }
        kinds |= {"pixels": torch.cat(pixels)} if pixels else {}
        figures = {name: retrieve(found, label) for name, found in kinds.items()}
        guess = chance(label)
        n = int(figures[own]["queries"])
        table = Table(
            f"nearest of {len(label) - 1} other images of the {data.name}, {n} queries",
            ["", "first answer right", "± SE", "mAP"],
            [
                *((name, [f["top1"], _se(f["top1"], n), f["map"]]) for name, f in figures.items()),
                ("chance", [guess, None, None]),
            ],
            better=dict.fromkeys(("first answer right", "mAP"), "higher"),
        )
        protocol: dict[str, Any] = {
            **vars(self),
            "measured_on": data.name,
            "gallery": len(label),
            "queries": n,
            "labels": len(set(label.tolist())),
            "likeness": "cosine, centred by the mean of the gallery",
            "pca_fitted_on": linear.fitted_on,
        }
        return Measured(
            figures[own]["top1"],
            {**{name: f["top1"] for name, f in figures.items() if name != own}, "chance": guess},
            protocol,
            {"count": len(label), "queries": n, "figures": figures, "measured on": data.name},
            of=f"{own}: first answer right",
            error=_se(figures[own]["top1"], n),
            better="higher",
            tables=(table,),
            hidden=frozenset(("figures",)),
        )


def retrieve(codes: Tensor, labels: Tensor, *, batch: int = 512) -> dict[str, float]:
    """Leave-one-out retrieval by the cosine of centred codes.

    Args:
        codes: shape (N, K).
        labels: int64, shape (N,).
        batch: queries at a time.

    Returns:
        `top1`, the share of queries whose nearest other has their label; `map`, their mean average precision; and
        `queries`, how many have a label that occurs twice.

    Raises:
        CapabilityError: if no label occurs twice.
    """
    unit = torch.nn.functional.normalize(codes.double() - codes.double().mean(0), dim=1)
    alike = _alike(labels)
    queries = torch.nonzero(alike > 1).flatten()
    if len(queries) == 0:
        raise CapabilityError("retrieval needs at least two images of one label; here each label occurs once")
    right, precisions = 0.0, []
    for first in range(0, len(queries), batch):
        rows = queries[first : first + batch]
        likeness = unit[rows] @ unit.T
        likeness[torch.arange(len(rows)), rows] = -torch.inf
        order = likeness.argsort(stable=True, dim=1, descending=True)[:, :-1]
        hits = (labels[order] == labels[rows][:, None]).double()
        right += float(hits[:, 0].sum())
        ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        precisions.append((hits * hits.cumsum(1) / ranks).sum(1) / hits.sum(1))
    return {"top1": right / len(queries), "map": float(torch.cat(precisions).mean()), "queries": float(len(queries))}


def chance(labels: Tensor) -> float:
    """Expected share of right first answers of a random order: the mean of `(n_label − 1)/(N − 1)` over queries."""
    others = _alike(labels) - 1
    return float(others[others > 0].mean() / (len(labels) - 1)) if bool((others > 0).any()) else 0.0


def _alike(labels: Tensor) -> Tensor:
    """How many images have the label of each, itself included, float64."""
    counts = Counter(labels.tolist())
    return torch.tensor([counts[label] for label in labels.tolist()], dtype=torch.float64)


def _se(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
