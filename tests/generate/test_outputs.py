"""Sample folders go on where they stopped, hold one protocol, and lose nothing but half a grey level."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentsb.errors import ArgumentError, CapabilityError, DataError, DiskError
from latentsb.evaluate import evaluate
from latentsb.generate import partners, sample, starts
from latentsb.outputs import sample_folder
from latentsb.pictures import from_uint8, grid, image_of, save_image, to_uint8
from latentsb.run import load_run
from latentsb.tasks import inputs_of, write_interpolation, write_reconstruction


@pytest.fixture(scope="module")
def experiment(tiny):
    return tiny.experiment(device="cpu")


def digest(folder):
    return {p.name: p.read_bytes() for p in folder.glob("0*.png")}


def test_every_grey_level_survives_writing_and_reading(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    numbers = from_uint8(levels)
    assert numbers.min() == -1
    assert numbers.max() == 1
    assert np.array_equal(to_uint8(numbers), levels)
    save_image(numbers, tmp_path / "levels.png")
    from PIL import Image

    with Image.open(tmp_path / "levels.png") as image:
        assert np.array_equal(np.asarray(image), levels[..., 0])


def test_numbers_beyond_the_range_are_clamped_and_others_round_to_the_nearest_level():
    numbers = torch.tensor([-7.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 7.0]).reshape(1, 2, 2)
    assert to_uint8(numbers).ravel().tolist() == [0, 0, 1, 255]


def test_a_grid_puts_the_pictures_row_by_row():
    pictures = torch.stack([torch.full((1, 4, 4), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(grid(pictures, columns=2, scale=1))
    assert sheet.shape == (4 + 1 + 4, 4 + 1 + 4, 3)
    assert sheet[0, 0].tolist() == [0, 0, 0]
    assert sheet[0, 8].tolist() == [128, 128, 128]
    assert sheet[8, 0].tolist() == [255, 255, 255]
    assert image_of(torch.zeros(16, 4, 4)).mode == "L"
    assert image_of(torch.zeros(4, 4, 4)).mode == "RGBA"


def test_samples_go_on_after_a_kill_and_are_those_of_an_unbroken_command(tiny, experiment, tmp_path):
    whole = sample_folder(tiny, experiment, 12, folder=tmp_path / "whole", batch=4)
    assert (whole.fresh, whole.samples.shape) == (12, (12, 1, 8, 8))

    class Killed(Exception):
        pass

    done = []

    def die(n):
        done.append(n)
        if len(done) == 2:
            raise Killed

    with pytest.raises(Killed):
        sample_folder(tiny, experiment, 12, folder=tmp_path / "broken", batch=4, progress=die)
    assert len(digest(tmp_path / "broken")) == 4
    (tmp_path / "broken" / ".000007.png.partial").write_bytes(b"half")
    rest = sample_folder(tiny, experiment, 12, folder=tmp_path / "broken", batch=4)
    assert rest.fresh == 8
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    assert sample_folder(tiny, experiment, 12, folder=tmp_path / "broken").fresh == 0
    more = sample_folder(tiny, experiment, 20, folder=tmp_path / "broken", batch=4)
    assert more.fresh == 8
    assert more.protocol["count"] == 20
    later = sample_folder(tiny, experiment, 4, seed=30, folder=tmp_path / "broken")
    assert later.fresh == 4
    # What is read back is what was drawn, to half a level of 2/255.
    drawn = sample(experiment, range(30, 34)).images.clamp(-1, 1)
    assert float((later.samples - drawn).abs().max()) <= 1 / 255 + 1e-6


def test_the_protocol_lies_beside_and_another_one_is_refused(tiny, experiment, tmp_path):
    made = sample_folder(tiny, experiment, 3, folder=tmp_path / "s")
    stored = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert stored == json.loads(json.dumps(made.protocol))
    assert stored["solver"]["name"] == "dpmpp"
    assert stored["calls"] == 4
    assert stored["step"] == 10
    assert "Gaussian fitted to 1797 encodings" in stored["notes"][0]
    with pytest.raises(DataError, match=r"another protocol: label was None, now 3"):
        sample_folder(tiny, experiment, 3, folder=tmp_path / "s", label=3)
    other = replace(experiment.solver, steps=2)
    with pytest.raises(DataError, match=r"another protocol: solver was"):
        sample_folder(tiny, experiment, 3, folder=tmp_path / "s", solver=other)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "000001.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds pictures but no samples.json"):
        sample_folder(tiny, experiment, 3, folder=tmp_path / "foreign")
    assert (tmp_path / "foreign" / "000001.png").read_bytes() == b"mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        sample_folder(tiny, experiment, 1, folder=tmp_path / "file" / "below")
    with pytest.raises(ArgumentError, match="label: found 10, expected 0 to 9"):
        sample_folder(tiny, experiment, 1, label=10)
    assert not (tiny.path / "samples" / "step-000000010-label-10").exists()


def test_folders_of_other_ways_of_sampling_have_other_names(tiny, experiment):
    other = replace(experiment.solver, steps=2)
    asked = [{}, {"label": 3}, {"guidance": 2.0}, {"solver": other}, {"seed": 5}]
    paths = [sample_folder(tiny, experiment, 1, **a).path.name for a in asked]
    assert paths[:3] == ["step-000000010", "step-000000010-label-3", "step-000000010-guidance-2"]
    assert paths[3].startswith("step-000000010-dpmpp-")
    assert paths[4] == paths[0]


def test_samples_from_pairs_start_from_held_out_ones_and_lie_between_x1_and_x0(train, tmp_path):
    """x1 = −x0 and a network that has learned nothing yet: whatever it makes stands between the two."""
    rng = np.random.default_rng(0)
    x0 = rng.uniform(-1, 1, (20, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "pairs.npz", x0=x0, x1=-x0)
    run = train(
        tmp_path / "run",
        f"data={{name: npz, path: {tmp_path / 'pairs.npz'}, x1: x1, paired: true, layout: NCHW}}",
        "held_out=4",
        "conditions=[]",
        "bridge={name: ddbm, network: {name: mlp, width: 8, depth: 1}}",
        "solver={name: dpmpp, steps: 2}",
        "train.images=16",
    )
    found = run.experiment(device="cpu")
    seeds = range(5)
    given = partners(found, seeds)
    assert torch.equal(given.x0, found.held.read(np.array([0, 1, 2, 3, 0])).x0)
    assert torch.equal(starts(found, seeds).x1, given.x1)
    made = sample_folder(run, found, 5)
    rows = torch.cat([given.x1, made.samples, given.x0])
    from PIL import Image

    with Image.open(made.path / "pairs.png") as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(grid(rows, columns=5)))


def test_vectors_are_kept_in_one_table(train, tmp_path):
    run = train(
        tmp_path / "points", "data=gaussian", "conditions=[]", "train.images=64", "solver=heun", "bridge.z_dim=1"
    )
    experiment = run.experiment(device="cpu")
    first = sample_folder(run, experiment, 5, seed=2)
    assert first.samples.shape == (5, 2)
    more = sample_folder(run, experiment, 8)
    assert more.fresh == 3
    with np.load(more.path / "samples.npz") as held:
        assert held["seed"].tolist() == list(range(8))
        assert np.array_equal(held["x"][2:7], first.samples.numpy())
    figures = write_reconstruction(run, experiment, inputs_of(experiment, [], 20, 0))["figures"]
    assert figures["autoencoder alone"] == {"mse": 0.0}
    assert write_interpolation(run, experiment, inputs_of(experiment, [], 4, 0))["picture"].exists()


def test_reconstruction_figures_are_those_of_their_definitions(tiny, experiment):
    inputs = inputs_of(experiment, [], 30, 1)
    made = write_reconstruction(tiny, experiment, inputs)
    from latentsb.generate import reconstruct

    found = reconstruct(experiment, inputs.images, cond=inputs.cond)
    square = ((found.bridge - inputs.images) / 2).square().flatten(1).mean(1).double()
    assert made["figures"]["bridge"]["mse"] == pytest.approx(float(square.mean()), rel=1e-5)
    assert made["figures"]["bridge"]["psnr"] == pytest.approx(float((-10 * square.log10()).mean()), rel=1e-5)
    floor = (inputs.images / 2).double().var(0, unbiased=False).mean()
    assert made["figures"]["mean image (floor)"]["mse"] == pytest.approx(float(floor), rel=1e-5)
    assert made["figures"]["autoencoder alone"] == {"mse": 0.0, "psnr": None, "ssim": pytest.approx(1.0)}
    stored = json.loads(made["picture"].with_suffix(".json").read_text())
    assert stored["inputs"] == list(inputs.names)
    assert not any(isinstance(v, float) and not math.isfinite(v) for v in stored["figures"]["bridge"].values())


def test_files_are_read_as_the_data_was(experiment, tmp_path):
    levels = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    save_image(levels, tmp_path / "grey.png")
    save_image(levels.expand(3, 8, 8), tmp_path / "colour.png")
    wide = torch.cat([torch.full((1, 16, 8), -1.0), torch.zeros(1, 16, 16), torch.full((1, 16, 8), 1.0)], 2)
    save_image(wide, tmp_path / "wide.png")
    found = inputs_of(experiment, [tmp_path / f"{n}.png" for n in ("grey", "colour", "wide")], 0, 0)
    assert found.images.shape == (3, 1, 8, 8)
    assert float((found.images[:2] - levels).abs().max()) <= 1 / 255 + 1e-6
    # The largest centred square of the wide one is its grey middle; the kernel reaches two pixels beyond it.
    assert float((found.images[2, ..., 2:6] - 1 / 255).abs().max()) < 1e-6
    (tmp_path / "no.png").write_text("not an image")
    for name, why in (("none.png", "there is no such file"), ("no.png", "is no image of a known format")):
        with pytest.raises(DataError, match=f"{name}: .*{why}"):
            inputs_of(experiment, [tmp_path / name], 0, 0)
    with pytest.raises(ArgumentError, match="found 1798, expected at most 1797"):
        inputs_of(experiment, [], 1798, 0)


def test_points_have_no_files(exact, tmp_path):
    save_image(torch.zeros(1, 8, 8), tmp_path / "a.png")
    with pytest.raises(DataError, match="image files are no samples of these data"):
        inputs_of(exact.flow, [tmp_path / "a.png"], 0, 0)


def test_figures_are_stored_with_their_floors(tiny, experiment):
    found = evaluate(tiny, experiment, ["recognised"], 20)["recognised"]
    stored = json.loads((tiny.path / "evaluations" / "step-000000010-recognised.json").read_text())
    assert stored["value"] == found.value
    assert stored["floors"] == dict(found.floors)
    assert stored["count"] == 20


def test_a_metric_that_lacks_labels_says_so_before_samples_are_drawn(train, tmp_path):
    run = train(tmp_path / "points", "data=gaussian", "conditions=[]", "train.images=64", "bridge.z_dim=1")
    with pytest.raises(CapabilityError, match="needs labelled data"):
        evaluate(run, run.experiment(device="cpu"), ["recognised"], 5)
    assert not list(run.path.glob("samples/step*"))


def test_the_python_interface_is_the_command(tiny, experiment, tmp_path):
    run = load_run(tiny.path)
    made = run.sample(6, seed=2)
    drawn = sample_folder(tiny, experiment, 6, seed=2, folder=tmp_path / "s")
    assert np.array_equal(to_uint8(made.images), to_uint8(drawn.samples))
    assert made.save(tmp_path / "new" / "grid.png").exists()
    assert np.array_equal(np.asarray(made.picture()).shape, np.asarray(grid(made.images)).shape)
    with np.load(made.save(tmp_path / "s.npz"), allow_pickle=False) as held:
        assert held["seeds"].tolist() == [2, 3, 4, 5, 6, 7]
        assert np.array_equal(held["images"], made.images.numpy())
        assert held["label"].tolist() == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ArgumentError, match=r"found the ending '.gif'"):
        made.save(tmp_path / "s.gif")
    images = experiment.source.read(np.arange(4)).x0
    found = run.reconstruct(images)
    assert found.z.shape == (4, 4)
    assert len(found) == 4
    walked = run.interpolate(images, frames=3)
    assert walked.frames.shape == (2, 3, 1, 8, 8)
    # A row holds both originals and three frames; cells are 64 pixels wide, 4 apart.
    assert walked.picture().size == (5 * 68 - 4, 2 * 68 - 4)
    assert found.picture().size == (4 * 68 - 4, 3 * 68 - 4)
