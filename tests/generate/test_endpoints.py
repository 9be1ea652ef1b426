"""Another way to x1 of a built diffusion autoencoder: through the functions, the metric, and refused elsewhere."""

import pytest
import torch

from latentsb.endpoints import ENDPOINTS, Decoded, Inferred, Random, Zero
from latentsb.errors import CapabilityError
from latentsb.evaluate import metrics_of
from latentsb.experiment import build
from latentsb.generate import reconstruct, sample
from latentsb.recipe import Recipe
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch

SMALL = "bridge.network.width=16 bridge.network.depth=1 bridge.network.heads=2 bridge.encoder.width=8 solver.steps=3"


def experiment_of(name, *more):
    """Its network says something everywhere."""
    experiment = build(Recipe.load(name, (*SMALL.split(), *more)))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in experiment.bridge.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return experiment


@pytest.fixture(scope="module")
def experiment():
    return experiment_of("digits_diffae")


@pytest.fixture(scope="module")
def images(experiment):
    return torch.stack([experiment.source.read([k]).x0[0] for k in range(5)])


WAYS = {"random": (Random(), 0), "zero": (Zero(), 0), "decoded": (Decoded(), 1), "inferred": (Inferred(), 100)}


def test_these_are_all():
    assert {word: ENDPOINTS.word_of(way) for word, (way, _) in WAYS.items()} == {
        word: word for word in ENDPOINTS.names()
    }


@pytest.mark.parametrize("word", WAYS)
def test_reconstruct_begins_there_and_counts_every_call(experiment, images, word):
    way, calls = WAYS[word]
    found = reconstruct(experiment, images, mode="perceptual", endpoint=way, seed=3)
    assert found.calls == calls + 3
    assert reconstruct(experiment, images, endpoint=way).calls == calls + 1
    whole = experiment_of("digits_diffae", f"bridge.endpoint={word}")
    own = reconstruct(whole, images, mode="perceptual", seed=3)
    torch.testing.assert_close(own.bridge, found.bridge)
    alone = reconstruct(experiment, images[2:3], mode="perceptual", endpoint=way, seed=5)
    torch.testing.assert_close(alone.bridge, found.bridge[2:3], rtol=1e-4, atol=1e-4)
    other = reconstruct(experiment, images, mode="perceptual", endpoint=way, seed=4)
    assert torch.equal(other.bridge, found.bridge) == (word != "random")


def test_the_inferred_endpoint_brings_back_what_the_code_has_lost(experiment, images):
    """Three numbers cannot say which digit it was; the ODE there and back does, for a network of any weights."""
    solver = Heun(steps=200)
    inferred = Inferred(solver=solver)
    found = reconstruct(experiment, images, mode="perceptual", endpoint=inferred, solver=solver)
    drawn = reconstruct(experiment, images, mode="perceptual", endpoint=Random(), solver=solver)
    near, far = ((made.bridge - made.autoencoder).abs().max() for made in (found, drawn))
    assert near < 0.05 * far, (near, far)


def test_new_samples_are_drawn(experiment):
    experiment.bridge.fit(lambda: [Batch(torch.arange(64), torch.randn(64, *experiment.bridge.ends.spec.shape))])
    other = experiment_of("digits_diffae", "bridge.endpoint=inferred")
    other.load_state_dict(experiment.state_dict())
    ours, theirs = (sample(e, range(4)) for e in (experiment, other))
    assert torch.equal(ours.images, theirs.images)
    assert theirs.calls == 3


def test_the_metric_takes_another_endpoint():
    asked = metrics_of(["reconstruction"], ["reconstruction.endpoint=zero"])["reconstruction"]
    assert asked.endpoint == Zero()
    keys = ["reconstruction.endpoint.name=inferred", "reconstruction.endpoint.solver={name: heun, steps: 5}"]
    assert metrics_of(["reconstruction"], keys)["reconstruction"].endpoint == Inferred(solver=Heun(steps=5))


def test_a_code_that_determines_x1_leaves_no_choice(images):
    dbae = experiment_of("digits")
    with pytest.raises(CapabilityError, match=r"another endpoint needs an EndpointBridge; 'dbae' .* are: diffae$"):
        reconstruct(dbae, images, endpoint=Zero())


def test_the_recipe_has_the_parameters_of_its_counterpart():
    """Within 2 %: the endpoint decoder and the input for x1 are all that it lacks."""
    count = {name: sum(p.numel() for p in build(Recipe.load(name)).bridge.parameters()) for name in RIVALS}
    assert 0.98 < count["digits_diffae"] / count["digits"] < 1


RIVALS = ("digits", "digits_diffae")
