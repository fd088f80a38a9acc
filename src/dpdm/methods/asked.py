"""What private images are asked of a public network: how far it is followed, and which of its matrices train."""

from dpdm.data import ImageDataset
from dpdm.diffusion import GAIN_LEVELS, NoiseLevels, PreconditionedDenoiser, Weighted
from dpdm.methods.denoising import DenoisingGenerator, matched
from dpdm.methods.gains import release_gains
from dpdm.methods.interface import Run
from dpdm.methods.matrices import choose_matrices
from dpdm.methods.start import Start


def ask(
    start: Start | None,
    noise_levels: NoiseLevels,
    generator: DenoisingGenerator,
    denoiser: PreconditionedDenoiser,
    average: PreconditionedDenoiser,
    data: ImageDataset,
    run: Run,
) -> NoiseLevels:
    """Release gains and a choice of matrices, where they are planned, and do as they say.

    Args:
        start: Says what is asked; without one nothing is.
        noise_levels: Those of private steps.
        generator: Learns the choice.
        denoiser: What private steps train.
        average: The average of its weights, which is released.
        data: The private images, or their latents.
        run: Makes the sums.

    Returns:
        The noise levels, weighed by what the network leaves of the loss at each.
    """
    if start is None:
        return noise_levels
    if start.gains:
        gains = release_gains(run, data, average)
        for each in (denoiser, average):
            matched(each).gains = gains.of_levels.to(run.device)
        noise_levels = Weighted(base=noise_levels, levels=GAIN_LEVELS, weights=tuple(gains.left.tolist()))
    if number := start.trained.chosen:
        choice = choose_matrices(run, data, average, number)
        generator.choice = choice.to(run.device)
        start.trained.freeze(denoiser.network, choice)
    return noise_levels
