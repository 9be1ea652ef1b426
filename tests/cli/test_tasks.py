"""Commands on images and their codes: what they print, what they leave, and how they refuse."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from latentsb.pictures import save_image
from latentsb.run import Run

STEP = "step-000000002"


@pytest.mark.parametrize(("act", "total"), [("reconstruct", 8), ("interpolate", 4)])
def test_large_images_are_told_one_by_one(command, runs, monkeypatch, act, total):
    told = []

    @contextmanager
    def bar(title, n):
        yield lambda done: told.append((title, done, n))

    monkeypatch.setattr("latentsb.cli.tasks.bar", bar)
    monkeypatch.setattr("latentsb.generate.NUMBERS", 4 * 64)  # four digits
    assert command(act, "runs/coded", "-n", total)[0] == 0
    assert sum(done for _, done, _ in told) == total
    assert {n for *_, n in told} == {total}
    assert len(told) == {"reconstruct": 2, "interpolate": 4}[act]
    assert command("interpolate", "runs/pairs")[2] == (
        "interpolate needs codes, or an x1 that the data lead to; 'ddbm' is given its x1\n"
    )


def test_reconstruct_prints_a_row_for_the_autoencoder_and_a_floor(command, runs):
    code, out, _ = command("reconstruct", "runs/coded", "-n", "20")
    assert code == 0
    assert "20 samples, faithful, 1 network call each" in out
    for row in (r"autoencoder alone +0\.00000 +equal +1\.000", r"bridge +0\.\d{5} +\d+\.\d\d", r"mean image \(floor\)"):
        assert re.search(row, out), row
    stored = json.loads((runs / "runs/coded/reconstructions/step-000000002-faithful.json").read_text())
    assert f"{stored['figures']['bridge']['mse']:.5f}" in out
    _, out, _ = command("reconstruct", "runs/coded", "-n", "20", "--mode", "perceptual")
    assert "20 samples, perceptual, 3 network calls each" in out


def test_files_of_ones_own(command, runs):
    for name in ("a", "b"):
        save_image(
            torch.rand(3, 20, 12, generator=torch.Generator().manual_seed(ord(name))) * 2 - 1, runs / f"{name}.png"
        )
    code, out, _ = command("reconstruct", "runs/coded", "a.png", "b.png")
    assert code == 0
    assert "2 samples, faithful" in out
    assert command("interpolate", "runs/coded", "a.png", "b.png", "--frames", "3")[0] == 0
    stored = json.loads((runs / "runs/coded/interpolations/step-000000002-perceptual.json").read_text())
    assert stored["inputs"] == ["a.png", "b.png"]
    assert stored["frames"] == 3


def test_interpolate_names_the_space(command, runs):
    assert (
        "9 frames per pair, mixed in z (lerp), 3 network calls each"
        in command("interpolate", "runs/coded", "-n", "2")[1]
    )
    code, out, _ = command("interpolate", "runs/classes", "-n", "2")
    assert code == 0
    assert "mixed in x1 (slerp)" in out
    assert (runs / "runs/classes/interpolations/step-000000002-x1.png").exists()


def test_both_ways_of_decoding_stand_side_by_side(command, runs):
    code, out, _ = command("reconstruct", "runs/coded", "-n", "20", "--mode", "both", "--seed", "3")
    assert code == 0
    assert "20 samples, faithful and perceptual" in out
    assert "faithful: 1 network call each; perceptual: 3 network calls each" in out
    stored = json.loads((runs / f"runs/coded/reconstructions/{STEP}-both.json").read_text())["figures"]
    for mode in ("faithful", "perceptual"):
        command("reconstruct", "runs/coded", "-n", "20", "--mode", mode, "--seed", "3")
        alone = json.loads((runs / f"runs/coded/reconstructions/{STEP}-{mode}.json").read_text())["figures"]
        assert stored[f"bridge, {mode}"] == alone["bridge"]
        assert f"{alone['bridge']['psnr']:.2f}" in out
    assert "picture (originals, autoencoder alone, bridge, faithful, bridge, perceptual)" in out


def test_a_sheet_and_another_way(command, runs):
    code, out, _ = command("interpolate", "runs/coded", "--grid", "3x4", "--along", "slerp", "--mode", "faithful")
    assert code == 0
    assert "3 × 4 frames between four images, mixed in z (slerp), 1 network call each" in out
    stored = json.loads((runs / f"runs/coded/interpolations/{STEP}-faithful-slerp-grid.json").read_text())
    assert stored["frames"] == [3, 4]
    assert len(stored["inputs"]) == 4


def test_an_edit_says_what_its_direction_is_worth(command, runs):
    code, out, _ = command("edit", "runs/coded", "--attribute", "3", "--strengths", "-1,0,1", "-n", "4")
    assert code == 0, out
    found = re.search(r"^class 3: AUROC (\d\.\d+) ± (\d\.\d+) on 359 codes of a fifth of the training data", out)
    assert found, out
    stored = json.loads((runs / f"runs/coded/edits/{STEP}-class_3-ridge-perceptual.json").read_text())
    assert stored["worth"]["value"] == pytest.approx(float(found[1]), abs=5e-4)
    assert stored["strengths"] == [-1.0, 0.0, 1.0]
    assert (stored["step"], len(stored["z_moves_by"])) == (2, 4)
    assert command("report", "runs/coded")[0] == 0
    assert "edits of" in (runs / "runs/coded/report.html").read_text()
    assert (stored["fitted_on"], stored["x1"], len(stored["places"])) == (1438, "made anew", 4)
    assert ("warning:" in out) == (stored["worth"]["value"] < 0.6)
    kept = ("edit", "runs/coded", "-a", "3", "--keep-endpoint", "--rule", "means", "--mode", "faithful")
    assert "5 strengths, x1 kept, faithful, 1 network call each" in command(*kept)[1]
    assert (runs / f"runs/coded/edits/{STEP}-class_3-means-faithful-kept_x1.png").is_file()


def test_a_direction_that_means_nothing_is_told(command, monkeypatch):
    from latentsb.directions import POOR

    monkeypatch.setitem(POOR, "AUROC", 1.0)
    out = command("edit", "runs/coded", "-a", "3", "-n", "1")[1]
    assert "warning: this direction says next to nothing of the attribute; nor do the pictures" in out


def test_codes_of_all_data_and_of_files(command, runs):
    code, out, _ = command("encode-z", "runs/coded")
    assert code == 0
    assert f"1,797 codes of 4 numbers with label: runs/coded/codes/{STEP}-train.npz" in out
    with np.load(runs / f"runs/coded/codes/{STEP}-train.npz", allow_pickle=False) as held:
        whole = {name: held[name] for name in held.files}
    source = Run.open(runs / "runs/coded").experiment(device="cpu").source
    items = source.read(np.arange(5))
    assert np.array_equal(whole["label"][:5], items.cond["label"].numpy())
    assert np.array_equal(whole["index"], np.arange(1797))
    found = Run.open(runs / "runs/coded").encode(items.x0)
    torch.testing.assert_close(torch.from_numpy(whole["z"][:5]), found, rtol=1e-4, atol=1e-5)
    save_image(items.x0[0], runs / "digit.png")
    assert command("encode-z", "runs/coded", "digit.png", "-o", "one.npz")[0] == 0
    with np.load(runs / "one.npz", allow_pickle=False) as one:
        # Eight bits lose half a grey level of 127.5.
        np.testing.assert_allclose(one["z"][0], whole["z"][0], atol=0.05)
        assert one["name"].tolist() == ["digit.png"]
    assert json.loads((runs / "one.npz.json").read_text())["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["edit", "runs/coded", "-a", "10"], 2, r"^--attribute: found 10, expected 0 to 9$"),
        (["edit", "runs/coded", "-a", "smiling"], 2, r"^--attribute: found 'smiling', expected a number from 0 to 9$"),
        (["edit", "runs/coded"], 2, r"missing option '-a' / '--attribute'"),
        (["edit", "runs/coded", "-a", "1", "--strengths", "much"], 2, r"^--strengths: found 'much', expected numbers"),
        (["edit", "runs/coded", "-a", "1", "--rule", "rigde"], 2, r"Did you mean 'ridge'"),
        (["edit", "runs/classes", "-a", "1"], 7, r"edit needs an EncodingBridge; 'flow' is not one"),
        (["encode-z", "runs/classes"], 7, r"encode-z needs an EncodingBridge; 'flow' is not one"),
        (
            ["encode-z", "runs/coded", "-o", "z.csv"],
            2,
            r"^--output: found the ending '.csv', expected .npz or .parquet$",
        ),
        (["encode-z", "runs/coded", "--split", "held-out"], 2, r"^--split: this run holds out no data"),
        (["encode-z", "runs/coded", "--draw"], 7, r"^draw: these codes carry no noise"),
        (
            ["interpolate", "runs/coded", "--grid", "5"],
            2,
            r"^--grid: found '5', expected rows and columns, such as 5x7$",
        ),
        (["interpolate", "runs/coded", "--grid", "1x7"], 2, r"^--grid: found '1x7', expected at least the corners"),
        (["interpolate", "runs/coded", "a", "b", "--grid", "2x2"], 2, r"found 2, expected the four corners"),
        (["interpolate", "runs/coded", "--along", "lurp"], 2, r"no blend is called 'lurp'. Did you mean 'lerp'"),
        (
            ["reconstruct", "runs/coded", "--endpoint", "zero"],
            7,
            r"--endpoint needs an EndpointBridge; 'dbae' is not one",
        ),
    ],
)
def test_what_cannot_be_is_one_line(command, runs, arguments, code, told):
    left, _, err = command(*arguments)
    assert left == code, err
    assert re.search(told, err, re.MULTILINE), err
    assert len(err.splitlines()) == 1
    assert list(runs.rglob(".*.partial")) == []


def test_all_files_that_cannot_be_read_are_told(command, runs):
    (runs / "bad.png").write_text("no picture")
    code, _, err = command("reconstruct", "runs/coded", "bad.png", "nothere.png")
    assert code == 3
    assert [line.split(":")[0] for line in err.splitlines()] == ["bad.png", "nothere.png"]
