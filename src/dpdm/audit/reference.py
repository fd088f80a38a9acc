"""Membership from what private steps have added to public weights: an adapter of low rank, or all that is changed.

A shared adapter needs no base to tell of its images: whoever has the public network puts both together. And the base
alone says how hard an image is for a network that never saw it. So what is left of the loss is about training.

DP bounds what this attack finds, as all that follows from noisy sums. It does not protect images that the public
network was trained on, which the claim names: of these the attack says nothing.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float, Int
from torch import Tensor, nn

from dpdm.audit.membership import LossThreshold
from dpdm.diffusion import PreconditionedDenoiser
from dpdm.methods import DenoisingGenerator, Diffusion, Method
from dpdm.methods.start import load_start
from dpdm.methods.values import PublicStart
from dpdm.networks import PipelineFolder

LESS_PUBLIC: Final = "loss less public base's"
"""What a report calls the attack."""

_LOSS = LossThreshold()


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Minus the loss of an image, less the same by a denoiser that never saw it.

    Args:
        base: That denoiser: with the public weights alone.

    Source:
        Watson, Guo, Cormode & Sablayrolles 2022 (ICLR): difficulty calibration, with the public network as reference.
    """

    base: PreconditionedDenoiser

    def __call__(
        self,
        denoiser: PreconditionedDenoiser,
        x: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Return the scores."""
        return _LOSS(denoiser, x, labels) - _LOSS(self.base, x, labels)


def public_denoiser(
    method: Method, generator: DenoisingGenerator, starts: Sequence[PublicStart], *, seed: int
) -> PreconditionedDenoiser | None:
    """Return a generator's denoiser with the public network in it that training began with; None if it had none.

    Of several starts it is the one whose weights are nearest: an attacker who has them all can tell that, too.

    Args:
        method: What the generator was trained by, with the place of its pipeline on this machine.
        generator: What was trained. All but the network stays as it is: what was released of a prior, and gains.
        starts: The public networks of its `start`.
        seed: Of the run, which draws what a pipeline has no public weights for.
    """
    if not isinstance(method, Diffusion):
        return None
    if isinstance(method.network, PipelineFolder):
        whole = method.untrained(generator.facts, seed=seed).denoiser
        return whole.to(generator.device).eval().requires_grad_(False)
    if method.start is None:
        return None
    own = generator.denoiser.network
    nearest = min(starts[: len(method.start.sources)], key=lambda start: _distance(own, start))
    base = copy.deepcopy(generator.denoiser)
    load_start(base.network, nearest, generator.seen)
    return base.eval().requires_grad_(False)


def _distance(network: nn.Module, start: PublicStart) -> float:
    own = network.state_dict()
    return sum(float((own[name].cpu() - weights.cpu()).square().sum()) for name, weights in start.weights.items())
