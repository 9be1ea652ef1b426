"""Checkpoints: every fault that can be injected into a directory, a save or a prune."""

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentsb.checkpoint import Checkpoints
from latentsb.disk import Disk
from latentsb.errors import CheckpointError, DiskError


def content(step):
    rng = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(3, 5, generator=rng), "n": torch.tensor(step)},
        "ema-10": {"w": torch.randn(3, 5, generator=rng)},
        "optimizer": {"exp_avg/w": torch.randn(3, 5, generator=rng)},
    }


def save(checkpoints, step):
    return checkpoints.save(step, content(step), {"step": step, "seen": 8 * step})


def same(checkpoint, step):
    for name, tensors in content(step).items():
        found = checkpoint.tensors(name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], v) for k, v in tensors.items())
    assert checkpoint.state == {"step": step, "seen": 8 * step}
    return True


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30):
        save(checkpoints, step)
    return checkpoints


def test_the_newest_comes_back_and_older_than_two_are_pruned(saved):
    assert saved.steps() == [20, 30]
    assert same(saved.latest(), 30)
    assert same(saved.open(20), 20)
    assert [p.name for p in saved.folder.iterdir() if p.name.startswith(".")] == []


def test_a_single_checkpoint_is_never_enough(tmp_path):
    with pytest.raises(ValueError, match="at least two"):
        Checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_any_flipped_bit_is_noticed(saved, name):
    path = saved.path(30) / name
    good = path.read_bytes()
    rng = random.Random(name)
    for _ in range(40):
        place, bit = rng.randrange(len(good)), rng.randrange(8)
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
        assert same(saved.latest(), 20)
        assert [p.name for p, _ in saved.passed_over] == ["step-000000030"]
        with pytest.raises(CheckpointError, match="damaged"):
            saved.open(30)
    path.write_bytes(good)
    assert same(saved.latest(), 30)


@pytest.mark.parametrize("fault", ["truncated", "zeros", "missing", "extra", "swapped", "no manifest", "empty"])
def test_damaged_directories_are_named_and_walked_past(saved, fault):
    folder = saved.path(30)
    model, ema = folder / "model.safetensors", folder / "ema-10.safetensors"
    match fault:
        case "truncated":
            model.write_bytes(model.read_bytes()[:-1])
        case "zeros":
            model.write_bytes(bytes(model.stat().st_size))
        case "missing":
            ema.unlink()
        case "extra":
            (folder / "more.safetensors").write_bytes(model.read_bytes())
        case "swapped":
            model.write_bytes((saved.path(20) / "model.safetensors").read_bytes())
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "empty":
            for file in folder.iterdir():
                file.unlink()
    assert same(saved.latest(), 20)
    ((path, reason),) = saved.passed_over
    assert path == folder
    assert reason
    assert same(save(saved, 30), 30), "a damaged step can be saved again"


def test_another_format_version_is_refused_not_skipped(saved, monkeypatch):
    monkeypatch.setattr("latentsb.checkpoint.FORMAT", 2)
    save(saved, 40)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version 2, this latentsb reads 1"):
        saved.latest()


def test_damaged_checkpoints_do_not_count_when_pruning(saved):
    (saved.path(30) / "manifest.json").unlink()
    save(saved, 40)
    assert saved.steps() == [20, 30, 40], "20 is one of the two newest valid ones"
    save(saved, 50)
    assert saved.steps() == [40, 50]


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


class Dying(Disk):
    """Dies at the k-th operation, half-way through it where it is a write."""

    def __init__(self, after):
        self.left, self.log = after, []

    def tick(self, name, *paths):
        self.log.append((name, *paths))
        self.left -= 1
        if self.left == 0:
            raise Killed

    def write(self, path, data):
        path.write_bytes(data[: len(data) // 2])
        self.tick("write", path)
        super().write(path, data)

    def mkdir(self, path):
        self.tick("mkdir", path)
        super().mkdir(path)

    def rename(self, old, new):
        self.tick("rename", old, new)
        super().rename(old, new)

    def unlink(self, path):
        self.tick("unlink", path)
        super().unlink(path)

    def rmdir(self, path):
        self.tick("rmdir", path)
        super().rmdir(path)

    def _sync(self, path, flags):
        self.tick("sync", path)


def test_a_kill_at_any_operation_of_save_and_prune_loses_nothing(tmp_path):
    deaths = 0
    for k in range(1, 200):
        folder = tmp_path / f"{k}" / "checkpoints"
        folder.parent.mkdir()
        for step in (10, 20):
            save(Checkpoints(folder), step)
        dying = Checkpoints(folder, disk=Dying(k))
        try:
            save(dying, 30)
        except Killed:
            deaths += 1
        else:
            break
        fresh = Checkpoints(folder)
        found = fresh.latest()
        renamed = any(op[0] == "rename" and op[2] == fresh.path(30) for op in dying.disk.log[:-1])
        assert same(found, 30 if renamed else 20)
        fresh.clean()
        assert not [n for n in Disk().names(folder) if n.startswith(".tmp-")]
        assert same(save(fresh, 30), 30)
    assert deaths > 20


def test_pruning_begins_after_the_new_one_is_durable(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        save(Checkpoints(folder), step)
    recorder = Checkpoints(folder, disk=Dying(10**9))
    save(recorder, 30)
    ops = recorder.disk.log
    rename = next(i for i, op in enumerate(ops) if op[0] == "rename" and op[2] == recorder.path(30))
    parent_synced = next(i for i, op in enumerate(ops) if i > rename and op == ("sync", folder))
    first_removed = next(i for i, op in enumerate(ops) if op[0] == "rename" and op[1] == recorder.path(10))
    assert rename < parent_synced < first_removed
    synced = {op[1].name for op in ops[:rename] if op[0] == "sync"}
    written = [op[1].name for op in ops[:rename] if op[0] == "write"]
    assert set(written) <= synced
    assert written[-1] == "manifest.json"


class Failing(Disk):
    """Raises an error of the system at the k-th sync, `times` times."""

    def __init__(self, number, times=1, after=2):
        self.number, self.times, self.after = number, times, after

    def sync(self, path):
        self.after -= 1
        if self.after <= 0 and self.times > 0:
            self.times -= 1
            raise OSError(self.number, "injected")
        super().sync(path)


def test_one_transient_error_is_survived_two_are_told(saved):
    again = Checkpoints(saved.folder, disk=Failing(errno.EIO))
    assert same(save(again, 40), 40)
    again = Checkpoints(saved.folder, disk=Failing(errno.EIO, times=2))
    with pytest.raises(DiskError, match="Input/output error"):
        save(again, 50)
    assert same(saved.latest(), 40)


def test_a_full_disk_is_told_with_bytes_and_without_a_second_try(saved):
    failing = Failing(errno.ENOSPC)
    with pytest.raises(DiskError, match=r"No space left.*[\d,]+ bytes are needed"):
        save(Checkpoints(saved.folder, disk=failing), 40)
    assert failing.times == 0
    assert saved.steps() == [20, 30]
    assert same(saved.latest(), 30)
    assert not [n for n in Disk().names(saved.folder) if n.startswith(".tmp-")]


def test_too_little_free_space_is_told_before_anything_is_written(saved, monkeypatch):
    monkeypatch.setattr(Disk, "free", lambda self, path: 100)
    monkeypatch.setattr(Disk, "write", lambda self, path, data: pytest.fail("wrote"))
    with pytest.raises(DiskError, match="bytes are needed"):
        save(saved, 40)


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from latentsb.checkpoint import Checkpoints
from latentsb.disk import ignore_size_signal
from latentsb.errors import DiskError
ignore_size_signal()
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"model": {"w": torch.ones(10)}}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.save(2, {"model": {"w": torch.ones(10_000)}}, {"step": 2})
except DiskError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_file_size_limit_is_an_error_of_the_write(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "c")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6, done.stderr
    assert "File too large" in done.stdout
    assert "bytes are needed" in done.stdout
    assert "Traceback" not in done.stderr
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest().step == 1
    assert checkpoints.steps() == [1]


def test_nothing_in_a_checkpoint_is_pickled(saved):
    for path in saved.path(30).iterdir():
        data = path.read_bytes()
        if path.suffix == ".json":
            json.loads(data)
        else:
            assert data[8:9] == b"{", "a safetensors file is a length and a JSON header"
    assert {Path(p).suffix for p in saved.path(30).iterdir()} == {".json", ".safetensors"}
