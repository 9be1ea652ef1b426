"""The commands on runs, as a user gives them: what they print, what they leave, and how they refuse."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest

from latentsb.cli.train import ending
from latentsb.run import Run


def test_sample_again_and_more(command, runs):
    code, out, _ = command("sample", "runs/coded", "-n", "5")
    assert code == 0
    assert "note: z is drawn from the Gaussian fitted to 1797 encodings" in out
    assert "5 new samples (5 asked, 3 network calls each) in runs/coded/samples/step-000000002" in out
    folder = runs / "runs/coded/samples/step-000000002"
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"00000{i}.png" for i in range(5)),
        "grid.png",
        "samples.json",
    ]
    assert "0 new samples (5 asked" in command("sample", "runs/coded", "-n", "5")[1]
    code, out, _ = command("sample", "runs/coded", "-n", "7")
    assert "2 new samples (7 asked" in out
    followed = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("next:")]
    assert followed == ["latentsb reconstruct runs/coded"]


@pytest.mark.parametrize(
    ("name", "first"),
    [("coded", "reconstruct"), ("classes", "sample"), ("points", "interpolate"), ("pairs", "evaluate")],
)
def test_what_is_suggested_works(command, runs, name, first):
    code, out, _ = command("sample", f"runs/{name}", "-n", "2")
    assert code == 0
    suggested = re.findall(r"^(?:next:|     ) latentsb (.+)$", out, flags=re.MULTILINE)
    assert suggested[0].split()[0] == first
    assert f"evaluate runs/{name}" in suggested
    run = Run.open(runs / "runs" / name)
    trained = re.findall(r"latentsb (.+)$", ending(run, run.experiment()), flags=re.MULTILINE)
    assert f"evaluate {run.path}" in trained
    assert any("--label 0 --guidance 2" in line for line in trained) == (name == "classes")
    for line in (*suggested, *trained):
        assert command(*line.split())[0] == 0, line


def test_pairs_are_named_first(command, runs):
    code, out, _ = command("sample", "runs/pictures", "-n", "3")
    assert code == 0
    found = re.search(r"^pairs \(x1, sample, x0 below each other\): (.+)$", out, re.MULTILINE)
    assert (runs / found[1]).name == "pairs.png"
    assert (runs / found[1]).is_file()
    assert "pairs (" not in command("sample", "runs/classes", "-n", "3")[1]


def test_labels_guidance_and_another_solver(command, runs):
    _, out, _ = command("sample", "runs/classes", "-n", "3", "--label", "7", "--guidance", "2")
    assert "3 new samples (3 asked, 6 network calls each)" in out
    _, out, _ = command("sample", "runs/classes", "-n", "3", "solver.steps=4")
    assert "3 new samples (3 asked, 7 network calls each)" in out
    assert command("sample", "runs/points", "-n", "3")[0] == 0
    assert (runs / "runs/points/samples/step-000000002/samples.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ["sample", "runs/none"],
            5,
            r"runs/none is no run: it has no resolved.yaml. Runs there: classes, coded, pairs, pictures, points",
        ),
        (["report", "runs/none"], 5, r"runs/none is no run"),
        (["reconstruct", "runs/coded", "none.png"], 3, r"none.png: there is no such file"),
        (
            ["reconstruct", "runs/points"],
            7,
            r"needs an EncodingBridge; 'flow' is not one. These are: .*dbae",
        ),
        (["reconstruct", "runs/coded", "-n", "1798"], 2, r"--number: found 1798, expected at most 1797"),
        (["interpolate", "runs/coded", "a.png"], 2, r"IMAGE: found 1, expected pairs: an even number"),
        (["interpolate", "runs/points", "pyproject", "pyproject"], 3, r"pyproject: there is no such file"),
        (["sample", "runs/classes", "--label", "10"], 2, r"--label: found 10, expected 0 to 9"),
        (["sample", "runs/coded", "--label", "1"], 7, r"label: this bridge was trained without labels"),
        (["sample", "runs/coded", "--guidance", "2"], 7, r"guidance needs one of the conditions label, attributes"),
        (["sample", "runs/coded", "bridge.z_dim=3"], 2, r"override 'bridge.z_dim=3': a trained run can change solver"),
        (["sample", "runs/coded", "solver.stepz=3"], 2, r"override 'solver.stepz=3'.*Did you mean 'steps'"),
        (["evaluate", "runs/coded", "--metrics", "recognized"], 2, r"Did you mean 'recognised'"),
        (["evaluate", "runs/points", "--metrics", "recognised"], 7, r"needs labelled data"),
        (["likelihood", "runs/points", "solver.rtol=1e-1"], 2, r"no metric 'solver'.* Did you mean 'likelihood.rtol'"),
        (
            ["evaluate", "runs/pictures", "--metrics", "accuracy"],
            3,
            r"put .* there, or say where it is: accuracy.classifier.path=",
        ),
        (["sample", "runs/coded", "--attention", "xformers"], 9, r"xformers"),
        (["sample", "runs/coded", "--device", "cuda"], 9, r"the device 'cuda' cannot be used here"),
        (["sample", "runs/coded", "--device", "nonsense"], 9, r"the device 'nonsense' cannot be used here"),
        (["sample", "runs/coded", "--output", "other", "--seed", "1", "-n", "2", "--weights", "model"], 0, r"^$"),
        (
            ["sample", "runs/coded", "--output", "other", "-n", "2"],
            3,
            r"protocol: weights was 'model', now 'ema'",
        ),
    ],
)
def test_wrong_input_is_one_line(command, arguments, code, told):
    left, _, err = command(*arguments)
    lines = err.splitlines()
    assert left == code, err
    assert re.search(told, err), err
    assert len(lines) == (1 if code else 0), err


def test_help_of_every_command_leaves_torch_alone(runs):
    code = (
        "import sys\nfrom latentsb.cli import main\n"
        "for name in ('sample', 'reconstruct', 'interpolate', 'evaluate', 'report'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as left: assert not left.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_sample_goes_on(runs):
    command = [sys.executable, "-m", "latentsb", "sample", "runs/coded", "-n", "4000", "--batch", "50", "--output", "k"]
    process = subprocess.Popen(command, cwd=runs, stdout=subprocess.DEVNULL)
    while len(list((runs / "k").glob("0*.png"))) < 200:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = len(list((runs / "k").glob("0*.png")))
    assert held < 4000
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, check=True)
    assert f"{4000 - held} new samples (4000 asked" in done.stdout
    assert len(list((runs / "k").glob("0*.png"))) == 4000


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("trian",), "no such command 'trian'. Did you mean 'train'?"),
        (("sample", "runs/coded", "-n", "0"), "invalid value for '-n' / '--number': expected ≥ 1"),
        (("sample", "runs/coded", "--guidance", "-2"), "invalid value for '--guidance': expected ≥ 0"),
        (("reconstruct", "runs/coded", "--mode", "pretty"), "'--mode': found 'pretty', expected one of 'faithful'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(command, asked, told):
    code, out, err = command(*asked)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


@pytest.mark.parametrize("asked", ["bridge=dbea", "autoencoder=kll"])
def test_an_unknown_part_says_how_to_bring_ones_own(command, asked):
    code, _, err = command("check", "digits", asked)
    assert code == 2
    assert re.search(r"\(an? (bridge|autoencoder) of your own: --import FILE\)\n", err)


def test_an_interruption_says_what_is_there(command, monkeypatch):
    import latentsb.outputs

    drawn = latentsb.outputs.sample

    def once(experiment, seeds, **how):
        if seeds[0] > 9000:
            raise KeyboardInterrupt
        return drawn(experiment, seeds, **how)

    monkeypatch.setattr(latentsb.outputs, "sample", once)
    code, _, err = command("sample", "runs/coded", "-n", "6", "--seed", "8997", "--batch", "4")
    assert code == 130
    assert err == ("interrupted: 4 of 6 drawn in runs/coded/samples/step-000000002; the same command goes on\n")

    def at_once(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentsb.cli.runs.load", at_once)
    assert command("sample", "runs/coded") == (130, "", "interrupted\n")


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    from latentsb.cli import console

    clock = iter([0.0, 1.0, 6.0, 7.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    lines = console.Lines("sampling", 4000)
    for _ in range(4):
        lines.advance(1000)
    assert capsys.readouterr().err == "sampling: 2,000 of 4,000 · 6 s left\n"
