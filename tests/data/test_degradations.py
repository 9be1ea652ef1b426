"""Degradations in closed form, and pairs that belong to their samples."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2, chisquare

from latentsb.data.arrays import ArraySource, Digits
from latentsb.data.degradations import DEGRADATIONS, JPEG, Bicubic, Blur, Chain, Noise, Pool, UniformBlur
from latentsb.data.degraded import Degraded
from latentsb.data.holes import Centre, FreeForm, freeform
from latentsb.data.source import SOURCES
from latentsb.data.subset import Subset
from latentsb.errors import ArgumentError, RecipeError
from latentsb.experiment import build
from latentsb.randomness import Draws, numpy_generator
from latentsb.recipe import Recipe
from latentsb.tensors import Spec

LINEAR = [Pool(), Pool(factor=2), Bicubic(), Blur(), Blur(std=0.8, radius=3), UniformBlur(), UniformBlur(radius=1)]
OWN = [Noise(std=0.5), FreeForm(), FreeForm(noise=0.5), Centre(noise=1.0)]


def images(n: int = 4, channels: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    """Images in float64 that fill [-1, 1] and are not symmetric in any way."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, channels, height, width)))


def draws(n: int = 4) -> Draws:
    return Draws.seeds(range(n))


def apply(step, x: torch.Tensor) -> torch.Tensor:
    return step.apply(x, draws(len(x)))[0]


def source(n: int = 40, flip: bool = True) -> ArraySource:
    x0, label = images(n, 1, 8, 8).float(), torch.arange(n) % 3
    return ArraySource(x0, cond={"label": label}, classes=3, flip=flip, identity={"data": "test"})


@pytest.mark.parametrize("step", LINEAR)
def test_linear_ones_are_linear_and_keep_constants(step) -> None:
    x, y = images(seed=1), images(seed=2)
    torch.testing.assert_close(apply(step, 2 * x - 3 * y), 2 * apply(step, x) - 3 * apply(step, y), rtol=0, atol=1e-12)
    flat = torch.full_like(x, 0.3)
    torch.testing.assert_close(apply(step, flat), flat, rtol=0, atol=1e-12)
    assert apply(step, x.float()).dtype == torch.float32


@pytest.mark.parametrize("step", [Pool(), Blur(), UniformBlur(), Blur(std=0.8, radius=3)])
def test_pooling_and_blur_are_their_own_adjoint(step) -> None:
    # Symmetric kernels, mirrored at the border: <A x, y> = <x, A y>.
    x, y = images(seed=1), images(seed=2)
    torch.testing.assert_close((apply(step, x) * y).sum(), (x * apply(step, y)).sum(), rtol=1e-12, atol=1e-12)


def test_pooling_is_the_mean_of_blocks_and_a_projection() -> None:
    x = images()
    blocks = x.reshape(4, 3, 4, 4, 6, 4).mean((3, 5))
    assert torch.equal(apply(Pool(), x)[..., ::4, ::4], apply(Pool(), x)[..., 3::4, 3::4])
    torch.testing.assert_close(apply(Pool(), x)[..., ::4, ::4], blocks, rtol=0, atol=1e-14)
    nearest = torch.nn.functional.interpolate(blocks, scale_factor=4, mode="nearest")
    torch.testing.assert_close(apply(Pool(), x), nearest, rtol=0, atol=1e-14)
    torch.testing.assert_close(apply(Pool(), apply(Pool(), x)), apply(Pool(), x), rtol=0, atol=1e-14)


def keys(x: float, a: float = -0.5) -> float:
    """Cubic convolution kernel of Keys 1981, eq. (15) with its a."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_bicubic_is_the_published_kernel_away_from_the_border_and_pillow_s_everywhere() -> None:
    x = images(1, 1, 32, 32)
    found = apply(Bicubic(), x)[0, 0, ::4, ::4]
    kernel = np.array([keys((i - 8 + 0.5) / 4) for i in range(16)])
    kernel /= kernel.sum()
    for row in range(2, 6):
        for column in range(2, 6):
            part = x[0, 0, 4 * row - 6 : 4 * row + 10, 4 * column - 6 : 4 * column + 10].numpy()
            assert found[row, column].item() == pytest.approx(kernel @ part @ kernel, abs=1e-12)
    pillow = Image.fromarray(x[0, 0].float().numpy()).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found.numpy(), np.asarray(pillow), rtol=0, atol=1e-6)


def test_factors_must_divide_the_images() -> None:
    for step in (Pool(factor=3), Bicubic(factor=5)):
        with pytest.raises(ArgumentError, match=r"`factor: \d` does not divide images of 8×8"):
            Degraded(source=source(), degradation=step)


@pytest.mark.parametrize("step", [Blur(), Blur(std=1.3, radius=4), Blur(std=0.5, radius=1), UniformBlur(radius=2)])
def test_blur_has_its_transfer_function(step) -> None:
    # A kernel on an image that is mirrored at half a pixel: cosines cos(pi m (n + 1/2) / N) are its eigenvectors.
    high, wide = 16, 24
    j = np.arange(-step.radius, step.radius + 1)
    kernel = np.exp(-(j**2) / (2 * step.std**2)) if isinstance(step, Blur) else np.ones(len(j))
    kernel /= kernel.sum()

    def transfer(m: int, n: int) -> float:
        return float((kernel * np.cos(math.pi * m * j / n)).sum())

    for m, k in ((0, 0), (1, 0), (0, 3), (5, 7), (15, 23), (9, 2)):
        rows = np.cos(math.pi * m * (np.arange(high) + 0.5) / high)
        columns = np.cos(math.pi * k * (np.arange(wide) + 0.5) / wide)
        mode = torch.from_numpy(rows[:, None] * columns)[None, None]
        expected = transfer(m, high) * transfer(k, wide) * mode
        torch.testing.assert_close(apply(step, mode), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 10, 95])
def test_jpeg_is_what_pillow_writes_and_reads(channels: int, quality: int) -> None:
    smooth = torch.nn.functional.avg_pool2d(images(2, channels, 70, 70), 7, stride=1)
    x = (smooth * 4).clamp(-1, 1).float()
    found = apply(JPEG(quality=quality), x)
    for image, kept in zip(x, found, strict=True):
        pixels = np.rint((image.double().permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, format="JPEG", quality=quality)
        read = np.asarray(Image.open(file), dtype=np.float64).reshape(pixels.shape)
        np.testing.assert_allclose(kept.permute(1, 2, 0).numpy(), read / 127.5 - 1, rtol=0, atol=1e-6)


def test_jpeg_loses_more_at_lower_quality_and_clips() -> None:
    x = torch.nn.functional.avg_pool2d(images(2, 3, 70, 70), 7, stride=1).float() * 4
    error = [(apply(JPEG(quality=q), x.clamp(-1, 1)) - x.clamp(-1, 1)).square().mean().item() for q in (5, 10, 50, 95)]
    assert error == sorted(error, reverse=True)
    assert torch.equal(apply(JPEG(), x * 9), apply(JPEG(), (x * 9).clamp(-1, 1)))
    assert apply(JPEG(), x * 9).abs().max() <= 1
    with pytest.raises(ArgumentError, match="JPEG keeps 1 or 3 channels, the images have 4"):
        JPEG().cond(Spec((4, 8, 8)))


@pytest.mark.parametrize(
    "step",
    [Centre(), Centre(fill=-0.25, side=0.3), Centre(noise=0.7), FreeForm(), FreeForm(noise=0.7, least=0.4, most=0.5)],
)
def test_holes_are_projections_that_keep_what_is_known(step) -> None:
    x, y = images(seed=1), images(seed=2)
    once, told = step.apply(x, draws())
    mask = told["mask"]
    assert mask.shape == (4, 1, 16, 24)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(once * mask, x * mask)
    assert torch.equal(step.apply(once, draws())[0], once)  # twice is once: P P = P
    other = step.apply(y, draws())[0]
    torch.testing.assert_close((once - other), mask * (x - y), rtol=0, atol=0)  # linear part: the mask, its own adjoint
    hole = (1 - mask).expand_as(x).bool()
    if not step.noise:
        assert torch.equal(once[hole], torch.full_like(once[hole], step.fill))
    else:
        residual = (once[hole] - step.fill) / step.noise
        k = len(residual)
        assert abs(residual.mean().item()) < 4 / math.sqrt(k)
        low, high = chi2.ppf([1e-4, 1 - 1e-4], k)
        assert low < residual.square().sum().item() < high


def test_the_hole_in_the_centre_is_that_of_the_papers() -> None:
    for height, width in ((8, 8), (16, 24), (9, 13), (256, 256)):
        _, told = Centre().apply(torch.zeros(1, 1, height, width), draws(1))
        high, wide = round(height / 2), round(width / 2)
        expected = torch.ones(height, width)
        top, left = (height - high) // 2, (width - wide) // 2
        expected[top : top + high, left : left + wide] = 0
        assert torch.equal(told["mask"][0, 0], expected)
    assert expected[64:192, 64:192].max() == 0  # a quarter of 256×256
    assert expected.sum() == 256**2 - 128**2


def test_freeform_holes_have_every_number_of_pixels_equally_often() -> None:
    # 12×10 pixels, 10 to 20 %: 12 to 24 pixels, 13 equally likely numbers.
    n = 1300
    holes = np.stack([freeform(12, 10, 12, 24, 1.0, numpy_generator(k, "test")) for k in range(n)])
    areas = holes.sum((1, 2))
    counts = np.bincount(areas, minlength=25)
    assert counts[:12].sum() == 0
    assert len(counts) == 25
    assert chisquare(counts[12:]).pvalue > 1e-3
    # Nothing in how strokes are drawn prefers a side: coverage is the same on the left and right, above and below.
    for one, other in ((holes[:, :, :5], holes[:, :, 5:]), (holes[:, :6], holes[:, 6:])):
        difference = one.sum((1, 2)) - other.sum((1, 2))
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(n)
    assert len({hole.tobytes() for hole in holes}) > n * 0.99
    assert np.array_equal(freeform(12, 10, 12, 24, 1.0, numpy_generator(7, "test")), holes[7])


def test_freeform_holes_are_strokes() -> None:
    # Where a brush of radius r went, pixels lie together: few of the hole's pixels have no neighbour in it.
    for seed in range(20):
        hole = freeform(64, 48, 300, 600, 3.0, numpy_generator(seed, "test"))
        padded = np.pad(hole, 1)
        near = padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        assert (hole & ~near).sum() <= 2
        assert 300 <= hole.sum() <= 600


def test_a_brush_is_as_wide_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its diameter is a share of the shorter side, and what it touches at once a disc of that diameter."""
    radii: list[float] = []

    def seen(height: int, width: int, low: int, high: int, radius: float, rng: np.random.Generator) -> np.ndarray:
        radii.append(radius)
        return freeform(height, width, low, high, radius, rng)

    monkeypatch.setattr("latentsb.data.holes.freeform", seen)
    for brush, radius in ((0.2, 4.0), (0.05, 1.0), (0.01, 0.5)):
        FreeForm(brush=brush).apply(torch.zeros(1, 1, 40, 60), draws(1))
        assert radii.pop() == pytest.approx(radius)


def test_freeform_shares_that_no_pixels_have_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"least: is 0.3, more than `most: 0.2`"):
        FreeForm(least=0.3)
    with pytest.raises(ArgumentError, match=r"no number of pixels is 0.1 to 0.11 of 4×4"):
        FreeForm(least=0.1, most=0.11).cond(Spec((1, 4, 4)))
    assert FreeForm(least=0.25, most=0.25).cond(Spec((3, 4, 4)))["mask"].shape == (1, 4, 4)
    _, told = FreeForm(least=1.0, most=1.0).apply(torch.zeros(2, 1, 4, 4), draws(2))
    assert told["mask"].sum() == 0


def test_noise_has_its_variance_and_belongs_to_the_sample() -> None:
    pairs = Degraded(source=source(200), degradation=Noise(std=0.3))
    found = pairs.read(np.arange(200))
    noise = (found.x1 - found.x0) / 0.3
    low, high = chi2.ppf([1e-4, 1 - 1e-4], noise.numel())
    assert low < noise.square().sum().item() < high
    mirrored = pairs.read(np.arange(200), np.ones(200, np.int64))
    other = (mirrored.x1 - mirrored.x0) / 0.3
    # Other samples, mirror images and another seed have noise of their own: correlations vanish to 4 / sqrt(n).
    again = Degraded(source=source(200), degradation=Noise(std=0.3), seed=1).read(np.arange(200))
    for unlike in (other, other.flip(-1), noise.roll(1, 0), (again.x1 - again.x0) / 0.3):
        assert abs((noise * unlike).mean().item()) < 4 / math.sqrt(noise.numel())


@pytest.mark.parametrize("step", [*OWN, *LINEAR[:4], JPEG(), Chain(steps=(FreeForm(), Noise()))])
def test_a_sample_is_degraded_alike_whenever_and_with_whatever_it_is_read(step) -> None:
    pairs = Degraded(source=source(40), degradation=step)
    index, variant = np.arange(40), np.arange(40) % 2
    whole = pairs.read(index, variant)
    order = np.random.default_rng(0).permutation(40)
    for part in (order, order[:7], order[-1:], np.array([3, 3, 39])):
        found = pairs.read(index[part], variant[part])
        assert torch.equal(found.x0, whole.x0[part])
        assert torch.equal(found.x1, whole.x1[part])
        assert found.cond.keys() == whole.cond.keys() == pairs.cond.keys()
        for name, values in found.cond.items():
            assert torch.equal(values, whole.cond[name][part])
            assert values.shape[1:] == pairs.cond[name].shape
    held = Subset(pairs, [5, 11])
    assert torch.equal(held.read(np.array([1])).x1, pairs.read(np.array([11])).x1)
    drawn = pairs.draw(index, variant, Draws.step(3, "read", 400, range(40)))
    assert torch.equal(drawn.x1, whole.x1)
    assert torch.equal(pairs.draw_x1(index, variant, Draws.seeds(range(40))), whole.x1)


def test_mirrored_samples_are_degraded_after_they_are_mirrored() -> None:
    pairs = Degraded(source=source(6), degradation=Pool(factor=2))
    plain, mirrored = pairs.read(np.arange(6)), pairs.read(np.arange(6), np.ones(6, np.int64))
    assert torch.equal(mirrored.x0, plain.x0.flip(-1))
    torch.testing.assert_close(mirrored.x1, plain.x1.flip(-1), rtol=0, atol=1e-6)
    holes = Degraded(source=source(6), degradation=FreeForm())
    masks = [holes.read(np.arange(6), np.full(6, v)).cond["mask"] for v in (0, 1)]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0].flip(-1), masks[1])


def test_a_chain_is_its_steps_one_after_the_other() -> None:
    x = images()
    chain = Chain(steps=(Blur(std=1.0), Pool(factor=2)))
    torch.testing.assert_close(apply(chain, x), apply(Pool(factor=2), apply(Blur(std=1.0), x)), rtol=0, atol=0)
    noises = apply(Chain(steps=(Noise(std=1.0), Noise(std=1.0))), x) - x
    assert abs(noises.square().mean().item() - 2) < 4 * 2 * math.sqrt(2 / x.numel())  # each its own: 2, not 4
    with pytest.raises(ArgumentError, match="two steps tell the condition 'mask'"):
        Degraded(source=source(), degradation=Chain(steps=(Centre(), FreeForm())))
    with pytest.raises(ArgumentError, match="expected at least one"):
        Chain(steps=())


def test_what_the_clean_images_bring_stays() -> None:
    pairs = Degraded(source=source(9), degradation=Centre())
    assert (len(pairs), pairs.partners, pairs.two_sided, pairs.paired, pairs.variants) == (9, 9, True, True, 2)
    assert pairs.cond["label"].classes == 3
    assert pairs.read(np.array([4])).cond["label"].tolist() == [1]


def test_what_cannot_be_degraded_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"shape \(2,\), expected images"):
        Degraded(source=SOURCES["moons"](), degradation=Pool())
    with pytest.raises(ArgumentError, match="have an x1 already"):
        Degraded(source=Degraded(source=source(), degradation=Pool()), degradation=Pool())
    masked = ArraySource(images(2).float(), cond={"mask": torch.zeros(2, 1, 16, 24)})
    with pytest.raises(ArgumentError, match="tells the condition 'mask', which the images have"):
        Degraded(source=masked, degradation=Centre())


def test_fingerprints_tell_sources_degradations_and_seeds_apart() -> None:
    steps = [*LINEAR, *OWN, Centre(), Centre(fill=0.0), JPEG(), JPEG(quality=5), Chain(steps=(Pool(), Noise()))]
    found = [Degraded(source=source(), degradation=step).fingerprint() for step in steps]
    found.append(Degraded(source=source(), degradation=Noise(std=0.5), seed=1).fingerprint())
    found.append(Degraded(source=source(39), degradation=Noise(std=0.5)).fingerprint())
    assert len({json.dumps(print_, sort_keys=True) for print_ in found}) == len(found)


def test_every_word_is_tried_here() -> None:
    tried = {type(step) for step in (*LINEAR, *OWN, JPEG(), Chain(steps=(Pool(),)))}
    own = {word for word in DEGRADATIONS.names() if DEGRADATIONS[word].__module__.startswith("latentsb.")}
    assert {DEGRADATIONS[word] for word in own} == tried


def test_a_recipe_gives_the_network_the_mask_and_the_pairs_to_the_bridge() -> None:
    text = """
        data:
          name: degraded
          source: digits
          degradation: {name: chain, steps: [centre, {name: noise, std: 0.1}]}
        held_out: 100
        conditions: [mask]
        bridge: {name: ddbm, network: {name: dit, patch: 2, width: 16, depth: 1, heads: 2}}
        """
    recipe = Recipe.parse(text, label="test")
    experiment = build(recipe)
    assert experiment.bridge.network.uses == {"x1", "mask"}
    assert json.dumps(experiment.source.fingerprint())
    wrong = text.replace("[centre, {name: noise, std: 0.1}]", "[{name: pool, factor: 3}]")
    with pytest.raises(RecipeError, match=r"data.degradation: `factor: 3` does not divide images of 8×8"):
        Recipe.parse(wrong, label="test").data.build()
    digits = Digits()
    found = experiment.source.read(np.array([0]))
    clean = digits.read(experiment.source.rows[:1]).x0
    assert torch.equal(found.x0, clean)
