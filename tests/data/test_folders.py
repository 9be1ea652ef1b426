"""Two folders in one line, pairs that share a folder or a shard, and an order that no reader or process changes."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.data.folder import Folder
from latentsb.data.folders import Folders
from latentsb.data.mapped import Arrays
from latentsb.data.pairs import Paired, Unpaired
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.data.tar import Tar
from latentsb.errors import ArgumentError, DataError, RecipeError
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.translate import named_end

BRIDGE = "bridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}\n"


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of grey levels 0 to 5, paintings of 100 to 108; in `both` pairs whose partner is 50 levels brighter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, base, n in (("photos", 0, 6), ("paintings", 100, 9)):
        Path(name).mkdir()
        for k in range(n):
            grey(base + k).save(f"{name}/{k}.png")
    Path("both").mkdir()
    for k in range(5):
        grey(10 * k).save(f"both/{k}.x0.png")
        grey(10 * k + 50).save(f"both/{k}.x1.PNG")
    for name in ("both.tar", "both.tar.gz"):
        with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as tar:
            for path in sorted(Path("both").iterdir(), reverse=True):
                tar.add(path, path.name)


def grey(level: int) -> Image.Image:
    return Image.new("L", (4, 4), level)


def levels(x: torch.Tensor | None) -> list[int]:
    assert x is not None
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def recipe(data: str, *overrides: str) -> Recipe:
    return Recipe.parse(data + BRIDGE, overrides, label="test")


def test_source_and_target_alone_are_two_folders() -> None:
    for made in (
        recipe("data: {source: photos, target: paintings, size: 4, channels: 1}\n"),
        recipe("data: {size: 4, channels: 1}\n", "data.source=photos", "data.target=paintings"),
        recipe("", "data.source=photos", "data.target=paintings", "data.size=4", "data.channels=1"),
    ):
        data = made.data.build()
        assert isinstance(data, Folders)
        assert isinstance(data, Unpaired)
        assert (len(data), data.partners, data.paired) == (9, 6, False)
        found = data.read(np.arange(9))
        assert levels(found.x0) == list(range(100, 109))  # the target is x0
        assert levels(found.x1) == [0, 1, 2, 3, 4, 5, 0, 1, 2]  # the source is x1
        assert made.resolved()["data"]["name"] == "folders"
        assert Recipe.parse(made.resolved_text(), label="test") == made
        experiment = build(made)
        assert named_end(experiment, [Path("photos/1.png"), Path("photos")]) == "x1"
        assert named_end(experiment, [Path("paintings")]) == "x0"
        assert named_end(experiment, [Path("both")]) is None
    near, far = (f"{{name: folder, path: {path}, size: 4, channels: 1}}" for path in ("paintings", "photos"))
    long = f"data: {{name: unpaired, x0: {near}, x1: {far}}}\n"
    assert recipe(long).data.build().fingerprint() == data.fingerprint()


def test_what_is_wrong_with_two_folders_names_their_own_key() -> None:
    for key, other in (("source", "target"), ("target", "source")):
        made = recipe(
            f"data: {{{key}: gone, {other}: photos, size: 4}}\nheld_out: {{{key}: lost, {other}: photos, size: 4}}\n"
        )
        with pytest.raises(DataError, match=rf"^gone: there is no such folder .*: data\.{key}=…$"):
            made.data.build().require()
        with pytest.raises(DataError, match=rf"^lost: there is no such folder .*: held_out\.{key}=…$"):
            made.held_out.build().read(np.arange(1))  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"data\.name: missing; known:"):
        recipe("data: {source: photos, size: 4}\n")
    with pytest.raises(RecipeError, match=r"data\.fits: unknown key of data 'folders'\. Did you mean 'fit'\?"):
        recipe("data: {source: photos, target: paintings, size: 4, fits: pad}\n")


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_pairs_share_a_folder_or_a_shard(kind: str) -> None:
    def end(ending: str) -> Source:
        keys = {"size": 4, "channels": 1, "endings": (ending,)}
        return Folder(path=Path("both"), **keys) if kind == "folder" else Tar(paths=Path(f"both.{kind}"), **keys)  # type: ignore[arg-type]

    data = Paired(x0=end(".x0.png"), x1=end(".x1.png"))
    found = data.read(np.arange(5))
    assert sorted(levels(found.x0)) == [0, 10, 20, 30, 40]
    assert [far - near for near, far in zip(levels(found.x0), levels(found.x1), strict=True)] == [50] * 5
    assert sorted(data.names() or ()) == list("01234")
    assert data.near.fingerprint() != data.far.fingerprint()
    assert levels(end(".x0.png").read(np.arange(1)).x0) == levels(data.near.read(np.arange(1)).x0)  # from its store


def test_a_shard_of_other_endings_says_how_to_read_them() -> None:
    with pytest.raises(DataError, match=r"holds no image; .* passed over: .*'\.x0\.png'.*`endings`"):
        len(Tar(paths=Path("both.tar"), size=4))
    with pytest.raises(ArgumentError, match=r"endings: found 'x0\.png', expected an ending with its dot"):
        Tar(paths=Path("both.tar"), size=4, endings=("x0.png",))


def sources() -> list[Source]:
    np.save("a.npy", np.random.default_rng(0).normal(size=(13, 1, 4, 4)).astype(np.float32))
    plain = {"size": 4, "channels": 1}
    return [
        Folder(path=Path("paintings"), flip=True, **plain),  # type: ignore[arg-type]
        Folders(source=Path("photos"), target=Path("paintings"), **plain),  # type: ignore[arg-type]
        Tar(paths=Path("both.tar.gz"), endings=(".x0.png",), **plain),  # type: ignore[arg-type]
        Arrays(paths=Path("a.npy"), layout="NCHW", flip=True),
    ]


@pytest.mark.parametrize("cores", [1, 2])
def test_order_and_content_are_the_same_for_any_readers_and_processes(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of a run: read at once by many threads; by as many as there are cores, ahead; and in two processes."""
    reference = [[Stream(source, seed=5, batch=6).batch(seen) for seen in range(0, 30, 6)] for source in sources()]
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    for source, batches in zip(sources(), reference, strict=True):
        with Stream(source, 5, 6).prefetched(0, 30, depth=cores) as ahead:
            read = list(ahead)
        halves = [Stream(source, 5, 6, rows=rows) for rows in ((0, 1, 2), (3, 4, 5))]
        for k, (whole, again) in enumerate(zip(batches, read, strict=True)):
            parts = [half.batch(6 * k) for half in halves]
            assert whole.x0 is not None
            assert torch.equal(whole.x0, again.x0)  # type: ignore[arg-type]
            assert torch.equal(whole.x0, torch.cat([part.x0 for part in parts]))  # type: ignore[misc]
            if whole.x1 is not None:
                assert torch.equal(whole.x1, torch.cat([part.x1 for part in parts]))  # type: ignore[misc]
    first = torch.cat([batch.x0 for batch in reference[0]])  # type: ignore[misc]
    assert len({tuple(levels(first[:9])), tuple(levels(first[9:18]))}) == 2  # epochs are shuffled anew
    assert sorted(levels(first[:9])) == list(range(100, 109))  # and no sample is left out
