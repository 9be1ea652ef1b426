"""Sprites against published counts, a renderer that asks every pixel of the image, and their own factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline

from latentsb.data.sprites import OUTLINE, Sprites
from latentsb.data.subset import split
from latentsb.errors import ArgumentError, RecipeError
from latentsb.recipe import Recipe

GREY = Sprites()
NAMES = [factor.name for factor in GREY.all_factors]
RNG = np.random.default_rng(0)


def classes(**named) -> np.ndarray:
    return np.array([[named.get(name.replace(" ", "_"), 0) for name in NAMES]])


def lit(**named) -> np.ndarray:
    return GREY.render(classes(**named))[0, 0] > 0


def asked(row: np.ndarray, side: int, *, shift: float = 0.5) -> np.ndarray:
    """The rules, at every pixel of the frame; the heart by matplotlib's test of points in polygons."""
    _, _, shape, scale, turn, across, down = row
    cx, cy = 16 + 32 * across / 31, 16 + 32 * down / 31
    angle, size = 2 * math.pi * turn / 39, 0.5 + 0.1 * scale
    centres = (np.arange(side) + shift) * 64 / side
    dx, dy = np.meshgrid((centres - cx) / size, (centres - cy) / size)
    u = math.cos(angle) * dx - math.sin(angle) * dy
    v = math.sin(angle) * dx + math.cos(angle) * dy
    if shape == 0:
        return np.maximum(abs(u), abs(v)) <= 9.6
    if shape == 1:
        return (u / (9.6 * 3**0.25)) ** 2 + (v / (9.6 / 3**0.25)) ** 2 <= 1
    points = np.stack([u.ravel(), v.ravel()], 1)
    return Outline(OUTLINE, closed=False).contains_points(points).reshape(side, side)


def test_index_and_classes_are_inverses():
    assert GREY.sizes == (1, 1, 3, 6, 40, 32, 32)
    assert len(GREY) == 737_280
    index = RNG.integers(len(GREY), size=1000)
    rows = GREY.classes_of(index)
    assert (GREY.index_of(rows) == index).all()
    assert (rows[:, 1:] @ [737_280, 245_760, 40_960, 1024, 32, 1] == index).all()


@pytest.mark.parametrize(("shape", "scale", "pixels"), [(0, 0, 100), (0, 3, 256), (0, 5, 400), (1, 0, 76), (1, 5, 288)])
def test_published_numbers_of_pixels(shape, scale, pixels):
    assert lit(shape=shape, scale=scale).sum() == pixels


def test_the_first_image():
    first = GREY.read(np.array([0]))
    rows, columns = np.nonzero(first.x0[0, 0].numpy() > 0)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (16, 16)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (11, 20, 11, 20)
    assert first.x0.unique().tolist() == [-1, 1]
    assert first.cond["attributes"].tolist() == [[1, 0.5, 0, 0, 0]]


@pytest.mark.parametrize("side", [32, 64, 96])
def test_every_pixel_by_the_rules(side):
    source = Sprites(size=side)
    rows = source.classes_of(RNG.integers(len(source), size=300))
    found = source.render(rows)[:, 0] > 0
    wrong = sum(int((image ^ asked(row, side)).sum()) for image, row in zip(found, rows, strict=True))
    assert wrong == 0


def test_turning_sense_and_axes():
    """At a small turn the long axis of the ellipse falls to the left: `v = sin(o) dx + cos(o) dy` is zero along it."""
    rows, columns = np.nonzero(lit(shape=1, scale=5, orientation=4, position_x=15, position_y=15))
    covariance = np.cov(columns, rows)
    assert covariance[0, 1] / covariance[0, 0] == pytest.approx(-math.tan(2 * math.pi * 4 / 39) * 2 / 3, rel=0.35)
    right = np.nonzero(lit(position_x=31))[1].mean() - np.nonzero(lit())[1].mean()
    low = np.nonzero(lit(position_y=31))[0].mean() - np.nonzero(lit())[0].mean()
    assert (right, low) == (32, 32)


def test_symmetries():
    for k in range(3):
        a, b = (GREY.render(classes(shape=k, scale=3, orientation=o)) for o in (0, 39))
        assert (a == b).all()  # 0 and 2π
    square, quarter = (asked(np.array([0, 0, 0, 5, o, 15, 15]), 64) for o in (3.0, 3.0 + 39 / 4))
    assert (square == quarter).all()
    ellipse, half = (asked(np.array([0, 0, 1, 5, o, 15, 15]), 64) for o in (3.0, 3.0 + 39 / 2))
    assert (ellipse == half).all()


def test_nothing_near_the_border():
    """The farthest corner is 9.6 √2 = 13.58 from its centre, so that rows 2 and 61 get one pixel of a few squares."""
    grid = [[k, 5, o, x, y] for k in range(3) for o in range(40) for x in range(32) for y in (0, 31)]
    rows = np.pad(np.array(grid), ((0, 0), (2, 0)))
    found = GREY.render(rows)[:, 0] > 0
    beyond = np.flatnonzero(found[:, [2, 61]].any((1, 2)))
    assert 0 < len(beyond) < 0.01 * len(rows)
    assert (rows[beyond, 2] == 0).all()
    assert found[:, [2, 61]].sum() == len(beyond)
    assert not found[:, [0, 1, 62, 63]].any()
    assert not found[:, :, [0, 1, 62, 63]].any()


def test_the_share_of_lit_pixels():
    """As many as the area: centres of pixels are a grid, on which positions and turns put a shape anyhow."""
    x, y = OUTLINE.T
    heart = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    areas = np.array([(2 * 9.6) ** 2, math.pi * 9.6**2, heart])
    rows = GREY.classes_of(RNG.permutation(len(GREY))[:6000])
    size = areas[rows[:, 2]] * np.linspace(0.5, 1, 6)[rows[:, 3]] ** 2
    more = (GREY.render(rows) > 0).sum((1, 2, 3)) / size - 1
    assert abs(more.mean()) < 4 * more.std() / math.sqrt(len(more))
    assert areas.mean() * (np.linspace(0.5, 1, 6) ** 2).mean() / 64**2 == pytest.approx(0.0425, abs=5e-5)


def test_smooth_edges_are_shares_of_points():
    source = Sprites(size=32, smooth=True)
    rows = source.classes_of(RNG.integers(len(source), size=60))
    fine = np.stack([asked(row, 128) for row in rows]).reshape(-1, 32, 4, 32, 4).mean((2, 4))
    assert (source.render(rows)[:, 0] == np.rint(fine * 255)).all()
    # The mean brightness is that of the fine image, up to the rounding to bytes.
    assert (source.render(rows) / 255).mean() == pytest.approx(fine.mean(), abs=0.5 / 255)


def test_colours_and_backgrounds():
    source = Sprites(colours=3, backgrounds=2)
    assert source.spec.shape == (3, 64, 64)
    assert [f.name for f in source.factors] == [
        "background",
        "colour",
        "shape",
        "scale",
        "orientation",
        "position x",
        "position y",
    ]
    rows = source.classes_of(RNG.integers(len(source), size=200))
    images, shapes = source.render(rows), GREY.render(np.pad(rows[:, 2:], ((0, 0), (2, 0))))[:, 0] > 0
    pure = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    dim = np.array([[128, 0, 0], [0, 128, 128]])
    for image, inside, row in zip(images, shapes, rows, strict=True):
        assert (image[:, inside].T == pure[row[1]]).all()
        assert (image[:, ~inside].T == dim[row[0]]).all()
    assert (Sprites(colours=3).render(rows * [0, 1, 1, 1, 1, 1, 1])[:, :, 0, 0] == 0).all()


def test_attributes_are_values_and_factors_give_their_classes():
    source = Sprites(n=500, seed=3, colours=5)
    items = source.read(np.arange(500))
    truth = source.classes_of(source.chosen)
    assert source.cond["attributes"].shape == (6,) == (len(source.factors),)
    assert source.words("attributes") == ("colour", "shape", "scale", "orientation", "position x", "position y")
    for k, factor in enumerate(source.factors):
        assert (factor.classes(items.cond["attributes"][:, k]).numpy() == truth[:, k + 1]).all()
    held = split(source, 0.1, 0)[1]
    assert held.factors == source.factors


def test_a_subset_is_chosen_by_seed_without_repetition():
    few = [Sprites(n=5000, seed=seed) for seed in (0, 0, 1)]
    assert (few[0].chosen == few[1].chosen).all()
    assert few[0].fingerprint() == few[1].fingerprint() != few[2].fingerprint()
    assert len(set(few[0].chosen.tolist())) == len(few[0]) == 5000
    shared = len(set(few[0].chosen.tolist()) & set(few[2].chosen.tolist()))
    mean = 5000**2 / len(GREY)  # of a hypergeometric law, whose variance is a little smaller
    assert abs(shared - mean) < 4 * math.sqrt(mean)
    one = few[0].read(np.array([7]))
    assert torch.equal(one.x0, few[0].read(np.arange(10)).x0[7:8])


def test_sampled_classes_hold_what_is_fixed():
    rows = GREY.sample(4000, fixed={"shape": 2, "scale": 5}, seed=1)
    assert (rows[:, 2:4] == [2, 5]).all()
    turns = np.bincount(rows[:, 4], minlength=40)
    assert (abs(turns - 100) < 5 * 10).all()  # binomial(4000, 1/40)
    with pytest.raises(ArgumentError, match="position x"):
        GREY.sample(1, fixed={"angle": 0})


@pytest.mark.parametrize(("given", "said"), [("size=48", "multiple of 32"), ("n=737281", "737,280")])
def test_what_cannot_be_is_told(given, said):
    text = "data: {name: sprites}\nbridge: {name: flow, network: {name: mlp, width: 8}}\n"
    with pytest.raises(RecipeError, match=said) as caught:
        Recipe.parse(text, [f"data.{given}"]).data.build()
    assert "data." in str(caught.value)
