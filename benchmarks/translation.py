"""Digits 0-4 made from held-out digits 5-9, and the other way, by a run of `digits_dsbm`, beside other couplings.

python benchmarks/translation.py runs/digits_dsbm

In the latents of the run: W2 of the results from the held-out digits of the end that is reached (optimal assignment),
the share that a logistic regression on the training digits of that end recognises with more than .9, and the mean
squared way from each source to its result. Beside the run: training digits drawn without regard to the source, draws
from the entropic plan between the normal laws of the training latents, held-out digits as they are, and the
shortest way to the same number of training digits (optimal assignment). Means over seeds with standard errors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from latentsb.bench.toys import wasserstein, way
from latentsb.data.arrays import Digits
from latentsb.oracles.gaussian import entropic_plan
from latentsb.oracles.normal import Normal
from latentsb.oracles.static import draw_from
from latentsb.process.transport import assign, costs
from latentsb.randomness import Draws
from latentsb.run import Run
from latentsb.translate import translate

SURE = 0.9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    experiment = Run.open(asked.run).experiment(device="cpu")
    parts = {}
    for name, part in (("train", experiment.source), ("held", experiment.held)):
        near = part.read(np.arange(len(part)))
        far = part.draw_x1(np.arange(part.partners), None, Draws.seeds(range(part.partners)))
        for end, images in (("x0", near.x0), ("x1", far)):
            parts[name, end] = images, experiment.autoencoder.encode(images).detach()
    digits = Digits()  # the other end brings no labels: each image is found again among all digits
    label = {image.numpy().tobytes(): int(k) for image, k in zip(digits.samples, digits.values["label"], strict=True)}
    print("| towards | | W2 | recognised | mean squared way |")
    print("|---|---|---|---|---|")
    for towards, other in (("x0", "x1"), ("x1", "x0")):
        images, source = parts["held", other]
        _, target = parts["held", towards]
        seen, known = parts["train", towards]
        labels = [label[image.numpy().tobytes()] for image in seen]
        classifier = LogisticRegression(max_iter=2000).fit(known.double().numpy(), labels)
        n = len(source)

        def run(seed: int, images: Tensor = images, towards: str = towards) -> Tensor:
            return translate(experiment, images, towards=towards, seed=10_000 * seed).latents

        def unrelated(seed: int, known: Tensor = known, n: int = n) -> Tensor:
            return known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:n]]

        near, far = (Normal.fitted(parts["train", end][1].double()) for end in (other, towards))
        draw = draw_from(entropic_plan(near, far, experiment.bridge.reference))

        def plan(seed: int, source: Tensor = source, draw: Callable = draw, n: int = n) -> Tensor:
            return draw(source, Draws.block(seed, "plan", 0, n))

        def nearest(seed: int, source: Tensor = source, other: Callable = unrelated) -> Tensor:
            x = other(seed)
            return x[assign(costs(source, x))]

        arms = {"the run": run, "independent coupling": unrelated, "normal entropic plan": plan}
        arms |= {"optimal transport": nearest, "source as it is": lambda seed, source=source: source}
        for name, make in arms.items():
            figures = []
            for seed in range(asked.seeds):
                x = make(seed)
                sure = classifier.predict_proba(x.double().numpy()).max(1) > SURE
                figures.append((wasserstein(x, target), sure.mean(), way(x, source)))
            mean, error = np.mean(figures, 0), np.std(figures, 0, ddof=1) / asked.seeds**0.5
            cells = " | ".join(f"{m:.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True))
            print(f"| {towards} | {name} | {cells} |")


if __name__ == "__main__":
    main()
