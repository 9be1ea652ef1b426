"""Sampling at another size than the one that was trained."""

from __future__ import annotations

from dataclasses import replace

from latentsb.autoencoder import Autoencoder
from latentsb.bridge import BRIDGES, Bridge
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.laws import Gaussian
from latentsb.networks.base import Decoder, Network
from latentsb.networks.positions import Positions
from latentsb.tensors import Spec

__all__ = ["is_resized", "positions_of", "resized"]


def resized(experiment: Experiment, size: tuple[int, int] | None, positions: Positions | None = None) -> Experiment:
    """Bring an experiment to another size, in place, so that it samples images of that size; nothing is retrained.

    Args:
        experiment: with trained weights, loaded for this purpose.
        size: height and width of the images; the trained ones if None.
        positions: of the transformers, in place of the recipe's.

    Returns:
        The same experiment.

    Raises:
        ArgumentError: if the size does not fit, or `positions` have no effect.
        CapabilityError: if the autoencoder, the networks or the bridge are bound to the trained size; says why.
    """
    autoencoder, bridge = experiment.autoencoder, experiment.bridge
    networks = networks_of(bridge)
    placed = [network for network in networks if network.positions is not None]
    if positions is not None and not placed:
        raise ArgumentError("positions", "this network has none; they belong to 'dit'")
    for network in placed:
        network.positions = positions or network.positions
    if size in (None, autoencoder.images.shape[1:]):
        return experiment
    assert size is not None
    check_bridge(bridge, networks)
    step = autoencoder.cell * max(network.stride or 1 for network in networks)
    images, latent = shapes_at(autoencoder, size, step)
    bridge.ends = replace(
        bridge.ends,
        spec=latent,
        images=images if bridge.ends.images is not None else None,
        x0=None,  # a law of the data is one of the trained size
        x1=Gaussian(latent) if isinstance(bridge.ends.x1, Gaussian) else None,
    )
    autoencoder.images, autoencoder.latent = images, latent
    return experiment


def is_resized(experiment: Experiment) -> bool:
    """Whether samples are of another size than the data."""
    return experiment.autoencoder.images.shape != experiment.source.spec.shape


def positions_of(experiment: Experiment) -> Positions | None:
    """How positions continue, of the first network that has any; None where none has."""
    return next((n.positions for n in networks_of(experiment.bridge) if n.positions is not None), None)


def networks_of(bridge: Bridge) -> list[Network]:
    """The networks over the bridge's own states, of whatever size, not those over codes."""
    found = (module for module in bridge.modules() if isinstance(module, Network))
    state = bridge.ends.spec.shape
    return [n for n in found if len(n.x_spec.shape) == len(state) and n.x_spec.channels == state[0]]


def check_bridge(bridge: Bridge, networks: list[Network]) -> None:
    """Whether a bridge can start at another size.

    Raises:
        CapabilityError: if it cannot.
    """
    ends, told = bridge.ends, f"'{BRIDGES.word_of(bridge)}' samples at the trained size alone: "
    if ends.two_sided:
        raise CapabilityError(told + "it starts from data of that size, not from noise")
    if ends.x1 is not None and not (isinstance(ends.x1, Gaussian) and ends.x1.standard):
        raise CapabilityError(told + "the law that it starts from is one of that size")
    if any(isinstance(module, Decoder) for module in bridge.modules()):
        raise CapabilityError(told + "its other end is decoded from a code into that size")
    bound = [name for name, spec in ends.cond.items() if len(spec.shape) > 1]
    if bound:
        raise CapabilityError(told + f"the condition '{bound[0]}' has that size")
    fixed = [network for network in networks if network.stride is None]
    if fixed or not networks:
        what = type(fixed[0]).__name__ if fixed else "what it learns"
        raise CapabilityError(told + f"{what} is bound to its places; 'dit' and 'unet' are not")


def shapes_at(autoencoder: Autoencoder, size: tuple[int, int], step: int) -> tuple[Spec, Spec]:
    """Shapes of an image of another size and of its latent.

    Args:
        autoencoder: of the trained size.
        size: height and width.
        step: both must be multiples of it.

    Raises:
        ArgumentError: if they are not.
        CapabilityError: if these are no images, or the autoencoder is bound to the trained size.
    """
    trained, latent = autoencoder.images, autoencoder.latent
    if len(trained.shape) != 3:
        raise CapabilityError(f"another size needs images, found samples of shape {trained.shape}")
    if not autoencoder.any_size:
        raise CapabilityError(
            f"{type(autoencoder).__name__} makes images of {trained.shape[1]}×{trained.shape[2]} alone"
        )
    if any(side < step or side % step for side in size):
        near = sorted({max(step, side // step * step) for side in size} | {-(-side // step) * step for side in size})
        fits = ", ".join(map(str, near))
        raise ArgumentError("size", f"found {size[0]}×{size[1]}, expected multiples of {step}; near: {fits}")
    images = replace(trained, shape=(trained.channels, *size))
    return images, replace(latent, shape=(latent.channels, *(side // autoencoder.cell for side in size)))
