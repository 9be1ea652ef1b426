"""Every method of the plan fits the contracts: the walks type-check, import, and the third party's one runs."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mypy import api

from latentsb.bridge import BRIDGES
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Alternate, Freeze, Loss, OnePass, Phase

HERE = Path(__file__).parent
WALKS = sorted(path.stem for path in HERE.glob("walk_*.py"))


@pytest.fixture(autouse=True)
def _own_words(monkeypatch):
    """What a walk registers stays in the test."""
    monkeypatch.setattr(BRIDGES, "_classes", dict(BRIDGES._classes))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"contracts_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", WALKS)
def test_walk_imports(name):
    load(name)


def test_walks_type_check():
    config = HERE.parents[1] / "pyproject.toml"
    # Errors inside the package are mypy's own job on the package; here it is followed for its types only.
    out, err, code = api.run([f"--config-file={config}", *(str(HERE / f"{name}.py") for name in WALKS)])
    mine = [line for line in out.splitlines() if "walk_" in line]
    assert not mine, "\n".join(mine)
    assert code in (0, 1), out + err


class Constant(Network):
    """Predicts one constant everywhere, so that losses are known in closed form."""

    def __init__(self, x: Spec, cond: Mapping[str, Spec] | None = None, out: Spec | None = None) -> None:
        super().__init__(x, cond, out)
        self.value = torch.nn.Parameter(torch.zeros(x.shape))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        return self.value.expand_as(x)


def test_third_party_loss_is_the_closed_form():
    bridge = straight()(Ends(Spec((2,))), network=Constant, spread=2.0)
    n = 40_000
    x0 = torch.full((n, 2), 3.0)
    loss = bridge.loss(Batch(torch.arange(n), x0), Draws.step(0, "loss", 0, range(n))).total
    # E (x1 − 3)² = 4 + 9 per coordinate; the mean of two has the variance (2·4² + 4·9·4) / 2 = 88.
    assert loss.shape == (n,)
    assert abs(float(loss.detach().mean()) - 13) < 4 * (88 / n) ** 0.5


def test_third_party_runs_backwards_in_time():
    bridge = straight()(Ends(Spec((2,))), network=Constant)
    torch.nn.init.constant_(bridge.network.value, 5.0)
    x, t = torch.zeros(1, 2), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(bridge.drift(x, t, Condition(), "x0"), torch.full((1, 2), -5.0))
    assert torch.equal(super(type(bridge), bridge).velocity(x, t, Condition()), torch.full((1, 2), 5.0))


def straight():
    load("walk_third_party")
    return BRIDGES["straight"]


def phase(name: str) -> Phase:
    return Phase(name, lambda batch, draws: Loss(batch.data))


def test_alternate_takes_turns_and_counts_rounds():
    schedule = Alternate((phase("b"), phase("f")), images=10, renew=5)
    turns = [schedule.now(seen, {})[0].name for seen in (0, 9, 10, 19, 20)]
    assert turns == ["b", "b", "f", "f", "b"]
    assert [schedule.round(seen) for seen in (0, 4, 5, 10, 25)] == [0, 0, 1, 2, 5]


def test_freeze_counts_rounds_through():
    pair = (phase("b"), phase("f"))
    schedule = Freeze(25, Alternate(pair, 10), Alternate(pair, 10))
    assert [schedule.now(seen, {})[0].name for seen in (24, 25, 34, 35)] == ["b", "b", "b", "f"]
    assert [schedule.round(seen) for seen in (0, 10, 24, 25, 35)] == [0, 1, 2, 3, 4]
    schedule.load_state_dict(schedule.state_dict())
    with pytest.raises(ValueError, match="first"):
        schedule.load_state_dict({"last": {}})


@pytest.mark.parametrize("wrong", [{"images": 0}, {"images": 10, "renew": 3}, {"images": 10, "renew": 0}])
def test_alternate_refuses(wrong):
    with pytest.raises(ValueError, match="expected"):
        Alternate((phase("b"),), **wrong)


def test_no_part_is_trained_by_itself_unless_the_method_says_so():
    bridge = straight()(Ends(Spec((2,))), network=Constant)
    assert isinstance(bridge.schedule(), OnePass)
    with pytest.raises(Exception, match="no part 'prior'"):
        bridge.schedule("prior")
