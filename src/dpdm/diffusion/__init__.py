"""The mathematics of diffusion: it knows no network, no data and no privacy."""

from dpdm.diffusion.loss import DenoisingLoss, NoisyBatch
from dpdm.diffusion.matched_solver import MatchedSolver
from dpdm.diffusion.noise_levels import (
    Below,
    Cosine,
    DiscreteTimes,
    LogNormal,
    LogUniform,
    NoiseLevels,
    VariancePreserving,
    Weighted,
)
from dpdm.diffusion.preconditioning import (
    DDPM,
    EDM,
    GAIN_LEVELS,
    VE,
    VP,
    MatchedPreconditioning,
    MomentMatched,
    PreconditionedDenoiser,
    Preconditioning,
    V,
)
from dpdm.diffusion.prior import GaussianMixture
from dpdm.diffusion.samplers import (
    DDIM,
    Churn,
    DPMSolver,
    Guided,
    Sampler,
    StochasticDDIM,
)
from dpdm.diffusion.schedule import karras_schedule

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "GAIN_LEVELS",
    "VE",
    "VP",
    "Below",
    "Churn",
    "Cosine",
    "DPMSolver",
    "DenoisingLoss",
    "DiscreteTimes",
    "GaussianMixture",
    "Guided",
    "LogNormal",
    "LogUniform",
    "MatchedPreconditioning",
    "MatchedSolver",
    "MomentMatched",
    "NoiseLevels",
    "NoisyBatch",
    "PreconditionedDenoiser",
    "Preconditioning",
    "Sampler",
    "StochasticDDIM",
    "V",
    "VariancePreserving",
    "Weighted",
    "karras_schedule",
]
