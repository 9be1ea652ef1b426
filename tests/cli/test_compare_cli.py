"""`evaluate --metrics frechet` and `compare` on trained runs."""

from __future__ import annotations

import json
import re

from safetensors.torch import load_file

NETWORK = "frechet.network={name: timm, model: test_resnet, untrained: 0}"


def test_samples_are_measured_and_runs_compared(command, runs):
    for name in ("coded", "classes"):
        code, out, err = command(
            "evaluate", f"runs/{name}", "-n", "12", "--metrics", "frechet", NETWORK, "frechet.real=50"
        )
        assert code == 0, err
        assert "untrained test_resnet (seed 0) Fréchet distance" in out
        assert "FID" not in out
        assert ("drawn from their codes" in out) == (name == "coded")
    kept = sorted((runs / "runs/features").glob("*.safetensors"))
    # Images to compare with, and the others: the two runs have them in common.
    assert [load_file(path)["features"].shape[0] for path in kept].count(12) == 1
    assert len(kept) == 2
    code, out, err = command("compare", "runs/coded", "runs/classes", "--metrics", "frechet", "-o", "all.json")
    assert code == 0, err
    stored = json.loads((runs / "all.json").read_text())
    [table] = stored["tables"]
    assert table["columns"] == ["coded", "classes"]
    figures = [
        json.loads((runs / f"runs/{name}/evaluations/step-000000002-frechet.json").read_text())["value"]
        for name in ("coded", "classes")
    ]
    [line] = [line for line in table["lines"] if line["name"].startswith("samples:")][:1]
    assert line["values"] == figures
    assert any(name.startswith("real: other training data") for name in table["same"])
    assert [run["images"] for run in stored["runs"]] == [128, 128]
    assert all(run["numbers"] > 100 and run["seconds"] >= 0 and run["step"] == 2 for run in stored["runs"])
    assert re.search(r"coded +dbae", out)
    _, out, _ = command("compare", "runs/coded", "runs/pairs", "--metrics", "frechet")
    assert "pairs has no such figure; latentsb evaluate pairs --metrics frechet" in " ".join(out.split())
