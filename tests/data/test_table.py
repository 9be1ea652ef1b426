"""Labels and attributes of images from a table, for folders and shards alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.data.folder import Folder
from latentsb.data.images import Images
from latentsb.data.table import class_names
from latentsb.data.tar import Tar
from latentsb.errors import ArgumentError, DataError

HEAD = "kind,key,height,width\n"
ROWS = {"x/b": "cat,x/b,1.5,-2", "a": "bee,a,2,0", "x/a": "cat,x/a,0,1e3", "other": "ape,other,9,9"}


def folder(**keys: object) -> Images:
    return Folder(**{"path": Path("d"), "size": 4, "table": Path("t.csv"), **keys})


def tar(**keys: object) -> Images:
    return Tar(**{"paths": Path("d.tar"), "size": 4, "table": Path("t.csv"), **keys})


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("d/x").mkdir(parents=True)
    for k, name in enumerate(("a", "x/a", "x/b")):
        Image.new("RGB", (4, 4), (k, k, k)).save(f"d/{name}.png")
    with tarfile.open("d.tar", "w") as archive:
        for name in ("x/b", "a", "x/a"):
            archive.add(f"d/{name}.png", f"{name}.png")
    write(*ROWS.values())


def write(*rows: str) -> None:
    Path("t.csv").write_text(HEAD + "".join(row + "\n" for row in rows), encoding="utf-8")


both = pytest.mark.parametrize("source", [folder, tar])


@both
def test_columns_go_to_their_images(source: Callable[..., Images]) -> None:
    data = source(labels="kind", attributes=("width", "height"))
    assert data.cond["label"].classes == 3
    assert data.cond["attributes"].shape == (2,)
    assert data.classes == ("ape", "bee", "cat")  # of the whole table
    cond = data.read(np.arange(3)).cond
    for k, name in enumerate(data.names()):
        kind, _, height, width = ROWS[name].split(",")
        assert data.classes[int(cond["label"][k])] == kind
        assert cond["attributes"][k].tolist() == [float(width), float(height)]
    assert data.read(np.array([2])).cond["label"].tolist() == cond["label"][2:].tolist()


@both
def test_numbers_are_classes_as_they_are_and_names_may_be_given(source: Callable[..., Images]) -> None:
    write("7,x/b,0,0", "03,a,0,0", "0,x/a,0,0")
    data = source(labels="kind")
    assert data.cond["label"].classes == 8
    values = dict(zip(data.names(), data.read(np.arange(3)).cond["label"].tolist(), strict=True))
    assert values == {"x/b": 7, "a": 3, "x/a": 0}
    assert source(labels="kind", classes=10).cond["label"].classes == 10
    with pytest.raises(DataError, match="has 8 classes, `classes: 5` promises fewer; write classes: 8"):
        source(labels="kind", classes=5).read(np.arange(1))
    write(*ROWS.values())
    Path("names.txt").write_text("dog\ncat\nbee\n")
    data = source(labels="kind", classes=Path("names.txt"))
    values = dict(zip(data.names(), data.read(np.arange(3)).cond["label"].tolist(), strict=True))
    assert values == {"x/b": 1, "a": 2, "x/a": 1}
    Path("names.txt").write_text("cat\n")
    with pytest.raises(DataError, match="'kind' holds 'bee', which is none of the classes"):
        source(labels="kind", classes=Path("names.txt")).read(np.arange(3))


@both
def test_a_table_belongs_to_what_identifies_the_data(source: Callable[..., Images]) -> None:
    prints = [str(source(attributes=("height",)).fingerprint()), str(source(attributes=("width",)).fingerprint())]
    write(*(row.replace("1.5", "1.25") for row in ROWS.values()))
    prints.append(str(source(attributes=("height",)).fingerprint()))
    assert len(set(prints)) == 3


WRONG = [
    (["cat,x/b,1,2", "bee,a,2,0"], "has no row for 1 of 3 samples, such as 'x/a'"),
    ([*ROWS.values(), "cat,a,1,1"], "line 6 has the key 'a' again"),
    ([*ROWS.values(), "cat,c,1"], "line 6 has another length than the head"),
    ([*ROWS.values(), "cat,c,1,2,3"], "line 6 has another length than the head"),
    (["cat,x/b,,2", "bee,a,2,0", "cat,x/a,0,0"], "'height' is empty for 1 of 3 samples, such as 'x/b'"),
    (["cat,x/b,tall,2", "bee,a,2,0", "cat,x/a,0,0"], "'height' of 'x/b' is 'tall', expected a number"),
    (["cat,x/b,nan,2", "bee,a,2,0", "cat,x/a,0,0"], "'height' of 'x/b' is 'nan', expected a number"),
    (["cat,x/b,1e99,2", "bee,a,2,0", "cat,x/a,0,0"], "'height' of 'x/b' is '1e99', expected a number"),
]


@both
@pytest.mark.parametrize(("rows", "why"), WRONG)
def test_tables_that_are_wrong(source: Callable[..., Images], rows: list[str], why: str) -> None:
    write(*rows)
    with pytest.raises(DataError, match=why):
        source(attributes=("height",)).read(np.arange(3))


@both
def test_columns_that_are_not_there(source: Callable[..., Images]) -> None:
    with pytest.raises(DataError, match=r"no column 'kid'\. Did you mean 'kind'\? It has: kind, height, width"):
        source(labels="kid")
    late = source(labels="kind", classes=3, attributes=("height",))
    Path("t.csv").unlink()
    assert late.cond["attributes"].shape == (1,)
    with pytest.raises(DataError, match="cannot be read as a table"):
        late.read(np.arange(1))
    Path("t.csv").write_text("name,kind\na,b\n")
    with pytest.raises(DataError, match="has no column 'key'; it has: name, kind"):
        source(labels="kind")


def test_columns_need_a_table() -> None:
    with pytest.raises(ArgumentError, match="labels: names a column; say of which file"):
        Folder(path=Path("d"), size=4, labels="kind")
    with pytest.raises(ArgumentError, match="attributes: names a column"):
        Tar(paths=Path("d.tar"), size=4, attributes=("height",))
    with pytest.raises(ArgumentError, match="table: no column of it is used"):
        folder()


def test_names_of_classes_number_sub_folders() -> None:
    Path("d/a.png").unlink()
    Path("names.txt").write_text("\ufeffw\nx\n\ny\n", encoding="utf-8")
    assert class_names(Path("names.txt")) == ("w", "x", "y")
    data = Folder(path=Path("d"), size=4, labels=True, classes=Path("names.txt"))
    assert data.cond["label"].classes == 3
    assert data.read(np.arange(2)).cond["label"].tolist() == [1, 1]
    Path("names.txt").write_text("w\ny\n")
    with pytest.raises(DataError, match="d/x: is none of the classes"):
        len(Folder(path=Path("d"), size=4, labels=True, classes=Path("names.txt")))
    Path("names.txt").write_text("w\nw\n")
    with pytest.raises(DataError, match="names 'w' twice"):
        Folder(path=Path("d"), size=4, labels=True, classes=Path("names.txt"))
    assert Folder(path=Path("gone"), size=4, labels=True, classes=4).cond["label"].classes == 4


def parquet(path: str, **columns: object) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet as file

    file.write_table(pa.table(columns), path)


@both
def test_parquet_is_as_good_as_csv(source: Callable[..., Images]) -> None:
    columns = [row.split(",") for row in ROWS.values()]
    kinds, keys, heights, widths = (list(column) for column in zip(*columns, strict=True))
    numbers = {"height": np.array(heights, np.float32), "width": np.array(widths, np.float64)}
    parquet("t.parquet", kind=kinds, key=keys, **numbers, smiles=[True, False, True, False], many=[[1]] * 4)
    keys_of = {"labels": "kind", "attributes": ("width", "height")}
    csv, other = source(**keys_of), source(**{**keys_of, "table": Path("t.parquet")})
    assert csv.classes == other.classes
    for name, values in csv.read(np.arange(3)).cond.items():
        assert torch.equal(values, other.read(np.arange(3)).cond[name])
    smiles = source(table=Path("t.parquet"), attributes=("smiles",))
    told = dict(zip(smiles.names(), smiles.read(np.arange(3)).cond["attributes"][:, 0].tolist(), strict=True))
    assert told == {"x/b": 1.0, "a": 0.0, "x/a": 1.0}
    with pytest.raises(DataError, match="no column 'many'"):  # neither numbers nor text
        source(table=Path("t.parquet"), attributes=("many",)).read(np.arange(1))
    parquet("t.parquet", key=["a", "x/a", "x/b"], height=[1.0, None, 2.0])
    with pytest.raises(DataError, match="'height' is empty for 1 of 3 samples, such as 'x/a'"):
        source(table=Path("t.parquet"), attributes=("height",)).read(np.arange(1))
    parquet("t.parquet", key=["a", "a"], height=[1.0, 2.0])
    with pytest.raises(DataError, match="row 2 has the key 'a' again"):
        source(table=Path("t.parquet"), attributes=("height",)).read(np.arange(1))
    Path("t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as a table"):
        source(table=Path("t.parquet"), attributes=("height",)).read(np.arange(1))


def test_parquet_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"Parquet needs pyarrow: pip install 'latentsb\[data\]'"):
        folder(table=Path("t.parquet"), attributes=("height",)).read(np.arange(1))


def test_file_names_are_keys_too() -> None:
    """The metadata.csv of an image folder as the Hugging Face Hub knows it."""
    Path("d/metadata.csv").write_text("file_name,height\nx/b.png,3\na.png,1\nx/a.png,2\n")
    data = Folder(path=Path("d"), size=4, table=Path("d/metadata.csv"), attributes=("height",))
    assert data.names() == ["a", "x/a", "x/b"]
    assert data.read(np.arange(3)).cond["attributes"][:, 0].tolist() == [1.0, 2.0, 3.0]
