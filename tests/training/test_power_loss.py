"""Power failure: every state in which a disk may come back, from the operations of the real writer.

The model is harsher than journalling file systems are. A file's content is durable once the file was synced; a
name (made, renamed, removed) once its directory was. After a failure each write that was not synced is absent, half
there or whole, and each change of a name that was not synced is there or not, in the order of issue, in every
combination (a random sample of them where there are too many).
"""

import itertools
import random
from pathlib import PurePosixPath as P

import pytest
import torch

from latentsb.checkpoint import Checkpoints
from latentsb.disk import Disk
from latentsb.errors import CheckpointError

ROOT = P("/run/checkpoints")


class MemoryDisk(Disk):
    """Inodes in memory: a directory is a dict of names, a file is a list that holds its bytes. Records operations."""

    def __init__(self, root=None):
        self.root = {"run": {}} if root is None else root
        self.log = []

    def find(self, path):
        node = self.root
        for part in P(path).parts[1:]:
            if not isinstance(node, dict) or part not in node:
                raise FileNotFoundError(str(path))
            node = node[part]
        return node

    def mkdir(self, path):
        self.enter(path.parent, "link", path.name, {})

    def write(self, path, data):
        file = [b""]
        self.enter(path.parent, "link", path.name, file)
        file[0] = data
        self.log.append(("write", file, data))

    def sync(self, path):
        self.log.append(("sync", self.find(path)))

    def sync_dir(self, path):
        self.log.append(("sync", self.find(path)))

    def rename(self, old, new):
        assert old.parent == new.parent
        self.enter(old.parent, "rename", old.name, new.name)

    def unlink(self, path):
        self.enter(path.parent, "unlink", path.name, None)

    rmdir = unlink

    def enter(self, parent, kind, name, value):
        folder = self.find(parent)
        self.log.append((kind, folder, name, value))
        change(folder, kind, name, value)

    def names(self, path):
        return sorted(self.find(path)) if self.is_dir(path) else []

    def is_dir(self, path):
        try:
            return isinstance(self.find(path), dict)
        except FileNotFoundError:
            return False

    def read(self, path):
        node = self.find(path)
        if isinstance(node, dict):
            raise IsADirectoryError(str(path))
        return node[0]

    def free(self, path):
        return 1 << 40


def change(folder, kind, name, value):
    if kind == "link":
        folder[name] = value
    elif kind == "unlink":
        folder.pop(name, None)
    elif name in folder:
        folder[value] = folder.pop(name)


def images(log, prefix, limit, rng):
    """Disks after a failure behind the first `prefix` operations."""
    done = log[:prefix]
    synced, pending = [], []
    for place, op in enumerate(done):
        durable = any(later[0] == "sync" and later[1] is op[1] for later in done[place + 1 :])
        if op[0] != "sync":
            (synced if durable else pending).append((place, op))
    choices = [3 if op[0] == "write" else 2 for _, op in pending]
    total = 1
    for c in choices:
        total *= c
    combinations = (
        itertools.product(*map(range, choices))
        if total <= limit
        else (tuple(rng.randrange(c) for c in choices) for _ in range(limit))
    )
    for combination in combinations:
        kept = [(place, op, None) for place, op in synced]
        kept += [(place, op, how) for (place, op), how in zip(pending, combination, strict=True) if how]
        yield rebuild(sorted(kept, key=lambda entry: entry[0]), log)


def rebuild(kept, log):
    """Apply the effects that survived to an empty disk with fresh inodes."""
    fresh = {}

    def copy(node):
        if id(node) not in fresh:
            fresh[id(node)] = {} if isinstance(node, dict) else [b""]
        return fresh[id(node)]

    for _, op, how in kept:
        if op[0] == "write":
            data = op[2]
            copy(op[1])[0] = data if how in (None, 2) else data[: len(data) // 2]
        else:
            value = copy(op[3]) if op[0] == "link" else op[3]
            change(copy(op[1]), op[0], op[2], value)
    return fresh


def content(step):
    return {
        "model": {"w": torch.full((4,), float(step))},
        "ema-10": {"w": torch.full((4,), float(-step))},
        "optimizer": {"m": torch.full((2,), float(step))},
    }


def survey(writer, steps, limit, disk=None):
    """Save `steps` with a writer, then count what comes back from every crash state."""
    disk = disk or MemoryDisk()
    run = disk.root["run"]
    acknowledged = []  # (operations so far, step)
    for step in steps:
        writer(disk).save(step, content(step), {"step": step})
        acknowledged.append((len(disk.log), step))
    rng = random.Random(0)
    seen = {"states": 0, "lost": 0, "mixed": 0, "older": 0}
    for prefix in range(len(disk.log) + 1):
        promised = max((step for length, step in acknowledged if length <= prefix), default=0)
        for fresh in images(disk.log, prefix, limit, rng):
            found = recovered({"run": fresh.get(id(run), {})})
            seen["states"] += 1
            seen["lost"] += promised > 0 and found == 0
            seen["mixed"] += found is None
            seen["older"] += found is not None and 0 < found < promised
    return seen


def recovered(root):
    """Step that comes back, 0 for none, None for a checkpoint of mixed content."""
    reader = Checkpoints(ROOT, disk=MemoryDisk(root))
    try:
        found = reader.latest()
    except CheckpointError:
        return None
    if found is None:
        return 0
    for name, tensors in content(found.step).items():
        if any(not torch.equal(found.tensors(name)[k], v) for k, v in tensors.items()):
            return None
    return found.step if found.state == {"step": found.step} else None


def test_no_state_after_a_power_failure_loses_an_acknowledged_checkpoint():
    seen = survey(lambda disk: Checkpoints(ROOT, disk=disk), (1, 2, 3, 4), limit=96)
    assert seen["states"] > 3000
    assert (seen["lost"], seen["mixed"], seen["older"]) == (0, 0, 0), seen


@pytest.mark.slow
def test_a_hundred_thousand_states():
    seen = survey(lambda disk: Checkpoints(ROOT, disk=disk), tuple(range(1, 9)), limit=4096)
    assert seen["states"] > 100_000
    assert (seen["lost"], seen["mixed"], seen["older"]) == (0, 0, 0), seen


class Careless(MemoryDisk):
    """Skips what its name says; the survey must notice."""

    def __init__(self, skip):
        super().__init__()
        self.skip = skip

    def sync(self, path):
        if self.skip != "files":
            super().sync(path)

    def sync_dir(self, path):
        if self.skip != "directories":
            super().sync_dir(path)


@pytest.mark.parametrize("skip", ["files", "directories"])
def test_the_model_notices_a_writer_that_does_not_sync(skip):
    seen = survey(lambda disk: Checkpoints(ROOT, disk=disk), (1, 2, 3), limit=8, disk=Careless(skip))
    assert seen["lost"] > 100


def test_the_model_notices_pruning_before_the_new_one_is_durable():
    class Early(Checkpoints):
        def _write(self, step, files, needed):
            for old in self.steps():
                self._remove(self.path(old))
            super()._write(step, files, needed)

    assert survey(lambda disk: Early(ROOT, disk=disk), (1, 2, 3), limit=8)["lost"] > 100
