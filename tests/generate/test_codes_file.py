"""Files of codes: what is in them, that they do not depend on the batch, and that no half of one is left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.codefiles import check_ending, write_codes
from latentsb.codes import Codes, encode, encode_rows
from latentsb.data.subset import split
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.tasks import write_code_file

PAGE = (Path(__file__).parents[2] / "docs" / "codes.md").read_text()
WORDS = {"attributes": ("smiling", "label"), "label": ("cat", "dog")}


def parts(n: int = 7, size: int = 3):
    """Codes in batches, whose numbers tell their row."""
    z = torch.arange(n * 4, dtype=torch.float32).reshape(n, 4)
    for first in range(0, n, size):
        rows = np.arange(first, min(first + size, n))
        cond = {
            "label": torch.from_numpy(rows % 2),
            "attributes": torch.from_numpy(rows[:, None] * [1.0, 10.0]).float(),
        }
        yield Codes(z[rows], rows + 100, cond, tuple(f"{'x' * k}.png" for k in rows))


@pytest.fixture(scope="module")
def experiment(tiny):
    return tiny.experiment(device="cpu")


def test_npz_holds_every_row_in_its_order(tmp_path):
    write_codes(tmp_path / "z.npz", parts(), 7, WORDS, {"seed": 3})
    with np.load(tmp_path / "z.npz", allow_pickle=False) as held:
        assert np.array_equal(held["z"], np.arange(28, dtype=np.float32).reshape(7, 4))
        assert held["z"].dtype == np.float32
        assert held["index"].tolist() == list(range(100, 107))
        assert held["name"].tolist() == [f"{'x' * k}.png" for k in range(7)]
        assert held["label"].tolist() == [k % 2 for k in range(7)]
        assert held["attributes"][:, 1].tolist() == [10.0 * k for k in range(7)]
        assert held["attributes_words"].tolist() == ["smiling", "label"]
        assert held["label_words"].tolist() == ["cat", "dog"]
        assert json.loads(str(held["protocol"])) == {"seed": 3}


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_codes(tmp_path / "z.parquet", parts(), 7, WORDS, {"seed": 3})
    table = parquet.read_table(tmp_path / "z.parquet")
    assert table.column_names == ["z", "index", "name", "label", "smiling", "attribute_label"]
    z = np.stack(table["z"].to_numpy())
    assert np.array_equal(z, np.arange(28, dtype=np.float32).reshape(7, 4))
    assert table["index"].to_pylist() == list(range(100, 107))
    assert table["attribute_label"].to_pylist() == [10.0 * k for k in range(7)]
    assert table["label"].to_pylist() == [k % 2 for k in range(7)]
    assert json.loads(table.schema.metadata[b"latentsb"]) == {"seed": 3}
    assert json.loads(table.schema.metadata[b"latentsb.classes"]) == ["cat", "dog"]


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_an_interruption_leaves_what_was_there(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")

    def broken():
        yield from list(parts())[:2]
        raise KeyboardInterrupt

    path = tmp_path / f"z{ending}"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_codes(path, broken(), 7, WORDS, {})
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_ending_and_a_missing_library_are_told(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"output: found the ending '\.csv', expected \.npz or \.parquet"):
        check_ending(tmp_path / "z.csv")
    monkeypatch.setattr("latentsb.codefiles.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"Parquet needs pyarrow: pip install 'latentsb\[data\]'"):
        check_ending(tmp_path / "z.parquet")


def test_codes_do_not_depend_on_the_batch_and_are_those_of_the_images(experiment):
    rows = np.array([5, 2, 900, 3, 4])
    found = [torch.cat([p.z for p in encode_rows(experiment, experiment.source, rows, batch=b)]) for b in (2, 5)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    images = experiment.source.read(rows).x0
    torch.testing.assert_close(encode(experiment, images, batch=3), found[1], rtol=1e-5, atol=1e-6)
    first = next(iter(encode_rows(experiment, experiment.source, rows, batch=3)))
    assert first.index.tolist() == [5, 2, 900]
    assert torch.equal(first.cond["label"], experiment.source.read(rows[:3]).cond["label"])


def test_rows_of_a_part_are_named_by_their_place_in_the_whole(experiment):
    train, held = split(experiment.source, 100, 0)
    for part in (train, held):
        found = next(iter(encode_rows(experiment, part, np.arange(3))))
        assert found.index.tolist() == part.rows[:3].tolist()
        torch.testing.assert_close(found.z, encode(experiment, experiment.source.read(found.index).x0))


def test_drawn_codes_belong_to_their_sample(train, tmp_path):
    run = train(tmp_path / "noisy", "bridge.channel=clamped", "train.images=64", "held_out=50")
    made = run.experiment(device="cpu")
    source, rows = made.source, np.array([7, 1, 30])
    together = torch.cat([p.z for p in encode_rows(made, source, rows, draw=True, seed=2)])
    alone = torch.cat([p.z for p in encode_rows(made, source, rows[::-1].copy(), draw=True, seed=2, batch=1)])
    torch.testing.assert_close(alone.flip(0), together, rtol=1e-5, atol=1e-6)
    law = made.bridge.code_law(made.autoencoder.encode(source.read(rows).x0))
    # Noise of unit size about the mean; no draw of 12 standard normal numbers lies beyond 5.
    noise = ((together - law.mean) / law.sigma).abs()
    assert 0 < float(noise.detach().min())
    assert float(noise.detach().max()) < 5
    assert not torch.allclose(together, torch.cat([p.z for p in encode_rows(made, source, rows, draw=True, seed=3)]))
    facts = write_code_file(run, made, [], split="held-out", output=tmp_path / "held.npz", draw=True)
    assert (facts["count"], facts["z_dim"], facts["beside"]) == (50, 4, ["label"])
    with np.load(tmp_path / "held.npz", allow_pickle=False) as held:
        assert np.array_equal(held["index"], made.held.rows)


def test_codes_without_noise_are_not_drawn(experiment):
    with pytest.raises(CapabilityError, match="these codes carry no noise"):
        encode(experiment, experiment.source.read(np.arange(2)).x0, draw=True)


def test_the_python_of_the_page_runs(tiny, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "z16").symlink_to(tiny.path)
    names: dict = {}
    exec(code, names)
    assert names["sheet"].frames.shape == (1, 3, 3, 1, 8, 8)
    assert names["edits"].edited.shape == (4, 3, 1, 8, 8)
    assert names["threes"].project(names["z"]).shape == (4,)
    # The original and three strengths, with a line above them.
    assert names["edits"].picture().size == (4 * 64 + 3 * 4, 18 + 4 * 64 + 3 * 4)
    assert (tmp_path / "edits.png").is_file()
