import numpy as np
import torch

from latentsb.data.arrays import ArraySource
from latentsb.metrics.base import Data
from latentsb.metrics.gaussian import WHOLE, Fourier, fit


def test_an_image_and_its_mirror_image_are_never_parted():
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    data = Data(ArraySource(x, flip=True), lambda: ArraySource(x, flip=True), held_out=False)
    rows = np.arange(12)
    (seen,) = data.batches(rows)
    assert torch.equal(seen[0::2], x)
    assert torch.equal(seen[1::2], x.flip(-1))
    one = fit(data.batches(rows, batch=5), (2, 4, 4), [0.5], together=2)
    other = fit(data.batches(rows, batch=12), (2, 4, 4), [0.5], together=2)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for strength in one:
        assert torch.allclose(one[strength][0].denoise(y, 0.5), other[strength][0].denoise(y, 0.5), atol=1e-12)
    # The law knows no left and right.
    shown = one[Fourier.word][0].denoise(y, 0.5)
    assert torch.allclose(one[Fourier.word][0].denoise(y.flip(-1), 0.5), shown.flip(-1), atol=1e-10)


def test_copies_that_belong_together_change_nothing():
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    twice = x.repeat_interleave(2, dim=0)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    once, kept, parted = (
        fit([batch], (2, 4, 4), [0.5], together=together)[WHOLE][0]
        for batch, together in ((x, 1), (twice, 2), (twice, 1))
    )
    assert torch.allclose(kept.denoise(y, 0.5), once.denoise(y, 0.5), atol=1e-12)
    assert parted.shrinkage < once.shrinkage  # each was tested on copies of what it was fitted to
