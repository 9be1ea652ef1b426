"""Several processes and micro-batches: the same numbers as one process and one batch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb import parallel
from latentsb.checkpoint import Checkpoints
from latentsb.run import Run

HERE = Path(__file__).parent
SETTINGS = ("train.log_every=16", "bridge.network.dropout=0.0", "train.images=320")


def column(run, name="loss"):
    """A column of the log, by step, whatever the phase is called."""
    return np.array([v for r in run.records() for k, v in r.items() if k.split("/")[-1] == name])


def test_rows_cover_the_batch_once_and_evenly():
    for batch in (1, 7, 16, 256):
        for world in (1, 2, 3, 8):
            rows = [parallel.rows(batch, rank, world) for rank in range(world)]
            assert [r for part in rows for r in part] == list(range(batch))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("micro", [1, 5, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, train, micro):
    whole, _ = train(tmp_path / "whole", *SETTINGS)
    parts, _ = train(tmp_path / "parts", *SETTINGS, f"train.micro_batch={micro}")
    assert len(column(whole)) == 20
    np.testing.assert_allclose(column(parts), column(whole), rtol=1e-5)
    np.testing.assert_allclose(column(parts, "grad_norm"), column(whole, "grad_norm"), rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_coupling_of_the_batch_does_not_see_how_it_is_split(tmp_path, train, sigma):
    coupling = f"{{name: minibatch_ot, reference: {{sigma: {sigma}}}}}"
    flow = f"bridge={{name: flow, coupling: {coupling}, network: {{name: mlp, width: 16, depth: 1}}}}"
    whole, _ = train(tmp_path / "whole", flow, "train.log_every=16")
    parts, _ = train(tmp_path / "parts", flow, "train.log_every=16", "train.micro_batch=5")
    alone, _ = train(tmp_path / "alone", flow, "train.log_every=16", "bridge.coupling=independent")
    np.testing.assert_allclose(column(parts), column(whole), rtol=1e-5)
    assert column(whole).mean() < 0.8 * column(alone).mean()


def test_two_processes_give_the_losses_of_one(tmp_path, load, train):
    coupled = "{name: flow, dropout: 0.0, coupling: {name: minibatch_ot, reference: {sigma: 0.3}}"
    texts = {
        "coupled": f"{coupled}, network: {{name: mlp, width: 16, depth: 1}}}}",
        "one_network": "{name: flow, dropout: 0.0, network: {name: mlp, width: 16, depth: 1}}",
        "turns": "{name: alternating, network: {name: mlp, width: 16, depth: 1, dropout: 0.0}, table: 600}",
    }
    runs, files = {}, []
    for name, bridge in texts.items():
        settings = (f"bridge={bridge}", f"name={name}", "train.log_every=16", "held_out=20", "train.preview_every=64")
        recipe = load(*settings)
        runs[name], _ = train(tmp_path / f"{name}-alone", *settings)
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(recipe.resolved_text())
    both = tmp_path / "both"
    both.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "distributed.py"), str(both), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, alone in runs.items():
        run = Run.open(both / name)
        for word, lines in (("loss", 20), ("held_out_loss", 5)):
            assert len(column(alone, word)) == len(column(run, word)) == lines
            np.testing.assert_allclose(column(run, word), column(alone, word), rtol=1e-5)
        ours, theirs = (Checkpoints(r.path / "checkpoints").latest().tensors("model") for r in (run, alone))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)
    for rank in range(2):
        assert "recipe differs in process 1" in json.loads((both / f"rank-{rank}.json").read_text())
    assert not (both / "unequal" / "checkpoints").exists()
