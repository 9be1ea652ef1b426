"""Pictures that are not square: each comes back from its place in a grid, and photographs as they were."""

import numpy as np
import pytest
import torch

from latentsb.pictures import from_uint8, grid, image_of


@pytest.mark.parametrize("size", [(6, 10), (10, 6), (3, 70), (70, 3)])
@pytest.mark.parametrize("columns", [None, 2, 5])
def test_every_picture_of_a_grid_is_in_its_place(size, columns):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    sheet = np.asarray(grid(from_uint8(pixels), columns, scale=2))
    across = columns or 3
    rows = -(-5 // across)
    assert sheet.shape == (rows * (2 * height + 1) - 1, across * (2 * width + 1) - 1, 3)
    for k in range(5):
        y, x = k // across * (2 * height + 1), k % across * (2 * width + 1)
        assert (sheet[y : y + 2 * height : 2, x : x + 2 * width : 2] == pixels[k]).all()
    assert image_of(from_uint8(pixels)[0]).size == (width, height)


def test_a_photograph_keeps_its_orientation():
    datasets = pytest.importorskip("sklearn.datasets")
    for photograph in datasets.load_sample_images().images:
        images = from_uint8(photograph)
        assert images.shape == (3, 427, 640)
        assert torch.equal(images[:, 0, -1], from_uint8(photograph[:1, -1:])[:, 0, 0])  # upper right
        assert (np.asarray(image_of(images)) == photograph).all()
