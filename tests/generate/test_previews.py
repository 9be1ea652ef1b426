"""Previews show the same seeds every time and leave no trace in training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from latentsb.errors import CapabilityError
from latentsb.previews import preview


def test_training_is_the_same_to_the_bit_with_and_without_previews(train, tiny, tmp_path):
    often = train(tmp_path / "often", "train.preview_every=128", "preview.n=4")
    digests = dict(often.checkpoint().sha256)
    assert len(digests) == 3
    assert digests == dict(tiny.checkpoint().sha256)
    shown = sorted((often.path / "samples").glob("preview-*.png"))
    assert [int(p.stem.split("-")[-1]) for p in shown] == [0, 128, 256, 384, 512, 640]


def test_a_preview_before_the_prior_is_fitted_fits_one_aside(tiny, tmp_path):
    """At step 0 no prior over z exists; the run samples from one that is fitted in passing."""
    first = min((tiny.path / "samples").glob("preview-*.png"))
    rows = np.asarray(Image.open(first))
    assert rows.std() > 0
    experiment = tiny.experiment(device="cpu")
    experiment.bridge.prior.codes.count.zero_()
    with pytest.raises(CapabilityError, match="no prior over z"):
        preview(experiment, tmp_path / "p.png", stage="bridge")


def test_the_last_preview_is_what_the_run_then_makes(tiny, tmp_path):
    """Rows: samples of the preview's seeds; originals; the autoencoder's; the bridge's."""
    last = max((tiny.path / "samples").glob("preview-*.png"))
    experiment = tiny.experiment(device="cpu")
    assert preview(experiment, tmp_path / "again.png", stage="bridge")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.asarray(Image.open(last)))
    from latentsb.generate import sample
    from latentsb.pictures import grid

    n = tiny.recipe.preview.n
    row = np.asarray(grid(sample(experiment, range(n)).images, columns=n))
    assert np.array_equal(np.asarray(Image.open(last))[: len(row)], row)
