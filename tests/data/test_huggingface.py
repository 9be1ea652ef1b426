"""Hugging Face data sets on disk: the pixels and columns that were put in, and no step beyond this machine."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentsb.data.huggingface import HuggingFace
from latentsb.data.pairs import Paired
from latentsb.errors import DataError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIXELS = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3), dtype=np.uint8)
AGES = [0.5, 1.5, 2.0, 3.25, 4.0, 5.0]


def encoded(pixels: np.ndarray) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def rows(**more: object) -> object:
    names = datasets.ClassLabel(names=["dog", "cat"])
    columns = {
        "image": [encoded(pixels) for pixels in PIXELS],
        "dark": [encoded(255 - pixels) for pixels in PIXELS],
        "kind": [0, 1, 1, 0, 1, 0],
        "word": list("bacabb"),
        "number": [3, 0, 1, 1, 0, 2],
        "age": AGES,
        **more,
    }
    found = datasets.Dataset.from_dict(columns)
    image = datasets.Image()
    return found.cast_column("image", image).cast_column("dark", image).cast_column("kind", names)


def saved(place: str, found: object) -> Path:
    if place.endswith(".parquet"):
        Path(place).parent.mkdir(exist_ok=True)
        found.to_parquet(place)  # type: ignore[attr-defined]
    else:
        found.save_to_disk(place)  # type: ignore[attr-defined]
    return Path(place)


def source(path: Path | str, **keys: object) -> HuggingFace:
    return HuggingFace(path=Path(path), size=(4, 5), fit="exact", **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["disk", "p/data.parquet"])
def test_pixels_and_columns_are_those_put_in(place: str) -> None:
    path = saved(place, rows())
    found = source(path, labels="kind", attributes=("age", "number"))
    assert (found.classes, found.cond["label"].classes, found.spec.shape) == (("dog", "cat"), 2, (3, 4, 5))
    read = found.read(np.array([5, 0, 2]))
    np.testing.assert_array_equal(np.rint((read.x0.numpy() + 1) * 127.5), PIXELS[[5, 0, 2]].transpose(0, 3, 1, 2))
    assert read.cond["label"].tolist() == [0, 0, 1]
    assert read.cond["attributes"].tolist() == [[5.0, 2.0], [0.5, 3.0], [2.0, 1.0]]
    assert source(path, labels="word").classes == ("a", "b", "c")
    assert source(path, labels="word").read(np.arange(6)).cond["label"].tolist() == [1, 0, 2, 0, 1, 1]
    assert source(path, labels="number", classes=9).cond["label"].classes == 9
    assert source(path, labels="number").read(np.arange(6)).cond["label"].tolist() == [3, 0, 1, 1, 0, 2]
    Path("names.txt").write_text("bird\ncat\ndog\n")
    assert source(path, labels="kind", classes=Path("names.txt")).read(np.arange(3)).cond["label"].tolist() == [2, 1, 1]
    pairs = Paired(x0=source(path), x1=source(path, image="dark"))
    both = pairs.read(np.arange(6))
    assert both.x1 is not None
    assert (both.x0 + both.x1).abs().max() < 1e-6


def test_large_numbers_are_words() -> None:
    """Of serial numbers there are as many classes as differ, not all that are smaller."""
    serial = [10**12 + k % 2 for k in range(6)]
    found = source(saved("large", rows(serial=serial)), labels="serial")
    assert found.classes == ("1000000000000", "1000000000001")
    assert found.read(np.arange(6)).cond["label"].tolist() == [0, 1, 0, 1, 0, 1]


def test_content_tells_data_apart_and_not_their_place() -> None:
    found = rows()
    one, two = source(saved("a", found)), source(saved("b", found))
    assert one.fingerprint() == two.fingerprint()
    other = rows(age=[9.0] * 6)
    assert source(saved("c", other)).fingerprint() != one.fingerprint()
    assert source("a", labels="kind").fingerprint() != one.fingerprint()
    assert len(one.contents()) == 1


def test_splits() -> None:
    found = rows()
    datasets.DatasetDict({"train": found, "test": found.select([4, 2])}).save_to_disk("dict")  # type: ignore[attr-defined]
    saved("hub/train-00000-of-00002.parquet", found.select(range(4)))  # type: ignore[attr-defined]
    saved("hub/train-00001-of-00002.parquet", found.select([4, 5]))  # type: ignore[attr-defined]
    saved("hub/test-00000-of-00001.parquet", found.select([4, 2]))  # type: ignore[attr-defined]
    for path in ("dict", "hub"):
        assert len(source(path, split="train")) == 6
        test = source(path, split="test").read(np.arange(2)).x0.numpy()
        np.testing.assert_array_equal(np.rint((test + 1) * 127.5), PIXELS[[4, 2]].transpose(0, 3, 1, 2))
        with pytest.raises(DataError, match=r"say which split: data\.split=… It has: test, train"):
            len(source(path))
        with pytest.raises(DataError, match=r"no split 'trian'\. Did you mean 'train'\?"):
            len(source(path, split="trian"))
    with pytest.raises(DataError, match=r"no split 'train'\. It has: none"):
        len(source(saved("alone", found), split="train"))


def test_unreadable_images_are_told_by_row_and_files_elsewhere_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save("secret.png")
    images = [encoded(pixels) for pixels in PIXELS]
    images[1] = {"bytes": b"no image", "path": None}
    images[3] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    images[4] = {"bytes": None, "path": "https://example.org/a.png"}
    # Written without the library, which would put files elsewhere into its own, or ask for them.
    parquet.write_table(pa.table({"image": images, "kind": [0, 1, 1, 0, 1, 0], "age": AGES}), "bad.parquet")
    path = Path("bad.parquet")
    with pytest.raises(DataError, match=r"3 of 6 images are unreadable") as caught:
        len(source(path))
    told = str(caught.value)
    assert "row 1: is no image of a known format" in told
    assert "row 3: its image lies in another file" in told
    assert "row 4: its image lies in another file (https" in told
    left = source(path, bad=0.5, labels="kind", attributes=("age",))
    read = left.read(np.arange(3))
    assert (read.cond["label"].tolist(), read.cond["attributes"][:, 0].tolist()) == ([0, 1, 0], [0.5, 2.0, 5.0])
    assert left.names() == ["0", "2", "5"]
    assert set(left.problems()) == {"row 1", "row 3", "row 4"}
    assert source(path, bad=0.5).checked[1] == left.checked[1]  # recalled


def test_what_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("disk", rows(age=[1.0, None, 2.0, 3.0, 4.0, 5.0]))
    with pytest.raises(DataError, match=r"no column 'imag'\. Did you mean 'image'\?"):
        len(source(path, image="imag"))
    with pytest.raises(DataError, match=r"column 'word' holds no images|unreadable"):
        len(source(path, image="word"))
    with pytest.raises(DataError, match="'age' of row 1 is None, expected a number"):
        source(path, attributes=("age",)).read(np.arange(1))
    with pytest.raises(DataError, match=r"there is no such folder or file .*nothing is downloaded"):
        source("beans").require()
    Path("photos").mkdir()
    with pytest.raises(DataError, match=r"images in folders are data `folder`"):
        len(source("photos"))
    late = source("disk", labels="kind", classes=2)  # shapes need neither the data nor the library
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert late.cond["label"].classes == 2
    with pytest.raises(DataError, match=r"need the library datasets: pip install 'latentsb\[data\]'"):
        late.require()
