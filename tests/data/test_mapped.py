"""Arrays on disk: the same numbers from every container, nothing loaded whole, nothing unclean let in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentsb.data.mapped import Arrays
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError, DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4, 6, 6)).astype(np.float32)
Y = RNG.integers(5, size=11)
A = RNG.normal(size=(11, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def put(place: str, **arrays: np.ndarray) -> Path:
    """Write arrays in the container that the name tells."""
    path = Path(place)
    if path.suffix == ".npy":
        np.save(path, arrays["x0"])
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}, path)
    else:
        path.mkdir()
        for name, value in arrays.items():
            np.save(path / f"{name}.npy", value)
    return path


@pytest.mark.parametrize("place", ["d", "d.npz", "d.safetensors", "d.npy"])
def test_every_container_gives_the_same_numbers(place: str) -> None:
    named = {} if place == "d.npy" else {"labels": "y", "attributes": "a"}
    source = Arrays(paths=put(place, x0=X, y=Y, a=A), **named)
    index = np.array([10, 0, 3, 4, 5, 3])
    found = source.read(index)
    assert (len(source), source.spec.shape, found.x0.dtype) == (11, (4, 6, 6), torch.float32)
    np.testing.assert_array_equal(found.x0.numpy(), X[index])
    if named:
        np.testing.assert_array_equal(found.cond["label"].numpy(), Y[index])
        np.testing.assert_array_equal(found.cond["attributes"].numpy(), A[index])
        assert source.cond["label"].classes == Y.max() + 1
        assert source.cond["attributes"].shape == (2,)


def test_several_places_are_one_after_the_other() -> None:
    whole = put("whole", x0=X)
    for k, part in enumerate(np.split(X, [3, 4])):
        put(f"part-{k}.safetensors", x0=part)
    parts = Arrays(paths=Path("part-*.safetensors"))
    index = RNG.permutation(11)
    torch.testing.assert_close(parts.read(index).x0, Arrays(paths=whole).read(index).x0, rtol=0, atol=0)
    half = X[:5].astype(np.float16)
    mixed = Arrays(paths=(put("a.npy", x0=half), put("b.npz", x0=X[5:])))
    order = RNG.permutation(11)
    expected = np.concatenate([half.astype(np.float32), X[5:]])  # beside half precision, single stays what it is
    np.testing.assert_array_equal(mixed.read(order).x0.numpy(), expected[order])


def test_16_bits_from_several_places() -> None:
    whole = RNG.integers(2**16, size=(7, 3, 4, 5)).astype(np.uint16)
    parts = Arrays(paths=tuple(put(f"{k}.npy", x0=part) for k, part in enumerate(np.split(whole, [3, 4]))))
    index = np.array([6, 0, 3, 3, 1, 5])
    np.testing.assert_allclose(parts.read(index).x0.numpy(), whole[index] / 32767.5 - 1.0, atol=2e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", ">f4", np.float64])
def test_types(dtype: object) -> None:
    if np.dtype(dtype).kind == "u":  # type: ignore[call-overload]
        top = np.iinfo(dtype).max  # type: ignore[call-overload]
        stored = RNG.integers(top + 1, size=(3, 2)).astype(dtype)  # type: ignore[call-overload]
        expected = stored.astype(np.float64) / (top / 2) - 1
    else:
        stored = RNG.normal(size=(3, 2)).astype(dtype)  # type: ignore[call-overload]
        expected = stored
    found = Arrays(paths=put("t.npy", x0=stored)).read(np.arange(3)).x0
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-7, rtol=1e-7)


def test_half_precision_of_the_brain_kind() -> None:
    x = torch.from_numpy(X).bfloat16()
    save_file({"x0": x}, "b.safetensors")
    torch.testing.assert_close(Arrays(paths=Path("b.safetensors")).read(np.arange(11)).x0, x.float(), rtol=0, atol=0)


def test_channels_stand_where_the_layout_says() -> None:
    square = RNG.normal(size=(3, 8, 8, 8)).astype(np.float32)
    put("square.npy", x0=square)
    with pytest.raises(DataError, match="cannot tell where the channels of 'x0' stand"):
        Arrays(paths=Path("square.npy"))
    last = Arrays(paths=Path("square.npy"), layout="NHWC").read(np.arange(3)).x0
    np.testing.assert_array_equal(last.numpy(), square.transpose(0, 3, 1, 2))
    first = Arrays(paths=Path("square.npy"), layout="NCHW").read(np.arange(3)).x0
    np.testing.assert_array_equal(first.numpy(), square)
    found = Arrays(paths=put("last.npy", x0=X.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(found.read(np.arange(11)).x0.numpy(), X)


def test_two_ends_and_latents_of_mirrored_images() -> None:
    path = put("d", x0=X, x1=X + 1, flipped=-X)
    pairs = Arrays(paths=path, x1="x1", paired=True)
    found = pairs.read(np.array([4, 2]))
    assert found.x1 is not None
    torch.testing.assert_close(found.x1, found.x0 + 1)
    assert (pairs.two_sided, pairs.paired, pairs.partners) == (True, True, 11)
    with pytest.raises(DataError, match="equal numbers are needed"):
        Arrays(paths=put("e", x0=X, x1=X[:4]), x1="x1", paired=True)
    assert Arrays(paths=Path("e"), x1="x1").partners == 4
    flips = Arrays(paths=path, flip="flipped")
    sides = np.array([0, 1, 1, 0])
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0]).reshape(-1, 1, 1, 1)
    index = np.array([9, 3, 0, 7])
    torch.testing.assert_close(flips.read(index, sides).x0, torch.from_numpy(X[index]) * signs)
    mirrored = Arrays(paths=path, flip=True).read(np.arange(4), sides).x0
    np.testing.assert_array_equal(mirrored[1].numpy(), X[1, :, :, ::-1])
    assert Stream(flips, 0, 4).batch(0).x0 is not None


def spoilt(at: int, value: float) -> np.ndarray:
    found = X.copy()
    found[at, 1, 2, 3] = value
    return found


REFUSED = [
    ({"x0": spoilt(7, np.nan)}, {}, "'x0' is not finite in 1 of 11 samples, the first at 7"),
    ({"x0": spoilt(2, np.inf)}, {}, "'x0' is not finite in 1 of 11 samples, the first at 2"),
    ({"x0": X, "y": Y - 5}, {"labels": "y"}, "holds the label -"),
    ({"x0": X, "y": Y}, {"labels": "y", "classes": 2}, "`classes` allows 0 to 1"),
    ({"x0": X, "y": Y[:4]}, {"labels": "y"}, "equal numbers are needed"),
    ({"x0": X, "y": A}, {"labels": "y"}, "expected to hold an integer"),
    ({"x0": X.astype(np.int32)}, {}, "type int32, expected uint8, uint16 or a float"),
    ({"x0": X}, {"shape": (4, 5, 5)}, r"samples of shape \(4, 6, 6\), expected \(4, 5, 5\)"),
    ({"x0": X}, {"x1": "x2"}, r"has no array 'x2'\. It has: x0; set data\.x1="),
]


@pytest.mark.parametrize("place", ["d", "d.npz", "d.safetensors"])
@pytest.mark.parametrize(("arrays", "keys", "why"), REFUSED)
def test_what_is_refused(place: str, arrays: dict[str, np.ndarray], keys: dict[str, object], why: str) -> None:
    put(place, **arrays)
    with pytest.raises(DataError, match=why):
        Arrays(paths=Path(place), **keys).read(np.arange(1))  # type: ignore[arg-type]


def test_objects_and_damaged_files_are_refused() -> None:
    np.save("o.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez("o.npz", x0=np.array([{}, 1], dtype=object))
    whole = {place: put(place, x0=X).read_bytes() for place in ("c.npy", "c.npz", "c.safetensors")}
    for place, data in whole.items():
        for cut in (0, 6, len(data) // 2, len(data) - 1):
            Path(f"{cut}{place}").write_bytes(data[:cut])
            with pytest.raises(DataError):
                len(Arrays(paths=Path(f"{cut}{place}")))
    for place in ("o.npy", "o.npz"):
        with pytest.raises(DataError, match=r"Python objects|allow_pickle=False"):
            len(Arrays(paths=Path(place)))
    with pytest.raises(DataError, match="expected a folder"):
        len(Arrays(paths=put("x.npy", x0=X).rename("x.pt")))


def test_shapes_are_known_without_the_data_and_changes_are_told() -> None:
    source = Arrays(paths=Path("gone/*.npy"), shape=(4, 6, 6), labels="y", classes=5)
    assert (source.spec.shape, source.cond["label"].classes) == ((4, 6, 6), 5)
    with pytest.raises(DataError, match=r"data\.paths: no file matches"):
        source.require()
    path = put("x.npy", x0=X)
    source = Arrays(paths=path)
    before = source.fingerprint()
    assert source.read(np.arange(2)).x0 is not None
    np.save(path, X + 1)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="was changed after it was checked"):
        source.read(np.arange(2))
    assert Arrays(paths=path).fingerprint() != before
    for wrong in ({"classes": 3}, {"paired": True}, {"flip": "f", "x1": "x1"}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            Arrays(paths=path, **wrong)  # type: ignore[arg-type]


def test_little_of_a_large_array_is_in_memory() -> None:
    """Two gigabytes that are a hole in the file: reading a few rows of them needs few bytes."""
    import tracemalloc

    large = np.lib.format.open_memmap("large.npy", mode="w+", dtype=np.uint8, shape=(2**15, 2**16))
    large[77] = 255
    del large
    source = Arrays(paths=Path("large.npy"))
    tracemalloc.start()
    source.__dict__["known"] = type("Known", (), {"require": lambda self: None})()  # its checksum would take seconds
    found = source.read(np.array([77, 2**15 - 1])).x0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.mean(1).tolist() == [1.0, -1.0]
    assert peak < 2**22
