"""The mathematics of diffusion: it knows no network, no data and no privacy."""

from dpdm.diffusion.loss import DenoisingLoss, NoisyBatch
from dpdm.diffusion.noise_levels import LogNormal, karras_schedule
from dpdm.diffusion.preconditioning import EDM, PreconditionedDenoiser, Preconditioning
from dpdm.diffusion.samplers import DDIM, Churn, Sampler

__all__ = [
    "DDIM",
    "EDM",
    "Churn",
    "DenoisingLoss",
    "LogNormal",
    "NoisyBatch",
    "PreconditionedDenoiser",
    "Preconditioning",
    "Sampler",
    "karras_schedule",
]
