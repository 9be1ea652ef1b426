"""Encodes a folder of images in forked children and kills some; run by `test_resumed_cache.py`.

Usage: encoding_killed.py DATA STEPS, where STEPS are a JSON list. A step has `place` and `store`, and may have
`kill_at` (blocks after which the child kills itself), `kill_after` (seconds after which it is killed), `processes`, and
`damage` (of what is there, before). Prints a JSON list of what each step came to.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed

from latentsb import building, parallel
from latentsb.autoencoder import Autoencoder, Moments
from latentsb.cache import LatentCache
from latentsb.data.folder import Folder
from latentsb.stores import STORES
from latentsb.tensors import Spec

BLOCK = 16


class Small(Autoencoder):
    """A convolution of fixed weights, with a posterior."""

    def __init__(self, images):
        c, h, w = images.shape
        super().__init__(images, Spec((4, h // 4, w // 4)))
        self.weight = torch.nn.Parameter(torch.randn(4, c, 4, 4, generator=torch.Generator().manual_seed(0)))

    def moments(self, images):
        mean = torch.nn.functional.conv2d(images, self.weight, stride=4)
        return Moments(mean, 0.1 + mean.abs() / 5)

    def raw_decode(self, raw):
        return torch.nn.functional.conv_transpose2d(raw, self.weight / 16, stride=4)

    def loss(self, batch, draws):
        raise NotImplementedError


def encode(data, step):
    """Encode; returns images that were there before, blocks that were made, length of the cache."""
    building.COMMIT_SECONDS = 0.0  # every block is made durable at once
    if step.get("processes", 1) > 1:
        torch.distributed.init_process_group("gloo")
    put, count, told = building.Building.put, [0], []

    def counted(*arguments):
        put(*arguments)
        count[0] += 1
        if count[0] == step.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    building.Building.put = counted
    source = Folder(path=data, size=16, flip=True, labels=True)
    cache = LatentCache.open_or_build(
        Path(step["place"]),
        source,
        Small(source.spec),
        lambda done, total: told.append(done),
        batch=BLOCK,
        store=STORES[step["store"]](posterior=True),
    )
    parallel.leave()
    return [told[0], count[0], len(cache)]


def forked(data, step, note, environment):
    """A child that does a step; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        note.write_text(json.dumps(encode(data, step)))
        code = 0
    finally:
        os._exit(code)


def damage(beside):
    """Flip a bit of a latent in the second block; begin a line at the journal's end."""
    with open(beside / "x0-std-0-00000.npy", "r+b") as file:
        file.seek(128 + (BLOCK + 3) * 64)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with open(beside / "journal-00000", "ab") as file:
        file.write(b"half a line")


def done(data, step):
    """Do a step: exit codes and notes of its processes, the journal's length, seconds."""
    place = Path(step["place"])
    beside, began = place.with_name(f".{place.name}.building"), time.monotonic()
    if step.get("damage"):
        damage(beside)
    world = step.get("processes", 1)
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        notes = [Path(folder) / str(rank) for rank in range(world)]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{**shared, "RANK": str(k), "LOCAL_RANK": str(k)} if world > 1 else {} for k in range(world)]
        children = [forked(data, step, note, rank) for note, rank in zip(notes, ranks, strict=True)]
        if "kill_after" in step:
            time.sleep(step["kill_after"])
            os.kill(children[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        told = [json.loads(note.read_text()) if note.exists() else None for note in notes]
    journal = sum(path.stat().st_size for path in beside.glob("journal-*"))
    return {"codes": codes, "told": told, "journal": journal, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps([done(Path(sys.argv[1]), step) for step in json.loads(sys.argv[2])]))
