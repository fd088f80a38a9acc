"""Ways from private images to a generator: strangers to one another, but for `interface` and their helpers."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.methods.diffusion import (
        AnyPreconditioning,
        AnySampler,
        DenoisingGenerator,
        Diffusion,
        Optimizer,
        require_sampler_names,
    )
    from dpdm.methods.embedding import Embedding
    from dpdm.methods.evolution import Evolution, PopulationGenerator
    from dpdm.methods.interface import Budget, ImageFacts, ImageGenerator, Method, Progress, PublicPart
    from dpdm.methods.layers import Layers
    from dpdm.methods.matching import MatchedImages
    from dpdm.methods.prior import MixtureGenerator, Prior, PriorAlone
    from dpdm.methods.registry import METHODS
    from dpdm.methods.start import Start
    from dpdm.methods.statistics import StatisticMatching

__all__ = [
    "METHODS",
    "AnyPreconditioning",
    "AnySampler",
    "Budget",
    "DenoisingGenerator",
    "Diffusion",
    "Embedding",
    "Evolution",
    "ImageFacts",
    "ImageGenerator",
    "Layers",
    "MatchedImages",
    "Method",
    "MixtureGenerator",
    "Optimizer",
    "PopulationGenerator",
    "Prior",
    "PriorAlone",
    "Progress",
    "PublicPart",
    "Start",
    "StatisticMatching",
    "require_sampler_names",
]

__getattr__ = lazily(
    __name__,
    {
        "diffusion": "AnyPreconditioning AnySampler DenoisingGenerator Diffusion Optimizer require_sampler_names",
        "embedding": "Embedding",
        "evolution": "Evolution PopulationGenerator",
        "interface": "Budget ImageFacts ImageGenerator Method Progress PublicPart",
        "layers": "Layers",
        "matching": "MatchedImages",
        "prior": "MixtureGenerator Prior PriorAlone",
        "registry": "METHODS",
        "start": "Start",
        "statistics": "StatisticMatching",
    },
)
