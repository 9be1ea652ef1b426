"""Planning by diffusion: trajectories from noise, with start and goal held in their places."""

from __future__ import annotations

from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.denoising import require_noise
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP
from latentsb.process.times import TimeDistribution, Uniform, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.registry import Build

from ._planning import Planning

__all__ = ["Diffuser"]


@BRIDGES.register("diffuser")
class Diffuser(Planning):
    """Diffusion over trajectories whose start and goal are held in their places: the baseline of `planner`.

    `x_t = α x0 + α ρ ε` outside of start and goal, and the same loss, network and projection as the bridge.

    Source: Janner et al. 2022, Planning with diffusion for flexible behavior synthesis, ICML.

    Args:
        ends: shapes; batches bring the line between start and goal as x1, of which only these two are used.
        network: F of the preconditioning; it is given the known entries beside the state.
        goal: leading channels that are known at the end: the positions.
        reference: the diffusion, which must end in noise.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.

    Raises:
        ArgumentError: if the data are no trajectories, or signal is left at t = 1.
    """

    t_max = 1.0

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        goal: Count = 2,
        reference: ScalarReference = VP(beta_d=19.9),
        preconditioning: Preconditioning = Shifted(sigma_data=0.5),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
    ) -> None:
        require_noise(reference)
        super().__init__(ends, goal, reference, preconditioning, times, weight)
        self.network = network(ends.spec, {"known": ends.spec})

    def marginal(self, t: Tensor) -> Marginal:
        """`N(α x0, α² ρ²)`."""
        return self.reference.noised(t)

    def origin(self, line: Tensor, draws: Draws) -> None:
        """None: the other end is noise."""
        return
