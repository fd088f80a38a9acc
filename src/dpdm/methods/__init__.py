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
    from dpdm.methods.interface import Budget, ImageFacts, ImageGenerator, Method, Progress
    from dpdm.methods.prior import MixtureGenerator, Prior, PriorAlone

__all__ = [
    "AnyPreconditioning",
    "AnySampler",
    "Budget",
    "DenoisingGenerator",
    "Diffusion",
    "ImageFacts",
    "ImageGenerator",
    "Method",
    "MixtureGenerator",
    "Optimizer",
    "Prior",
    "PriorAlone",
    "Progress",
    "require_sampler_names",
]

__getattr__ = lazily(
    __name__,
    {
        "diffusion": "AnyPreconditioning AnySampler DenoisingGenerator Diffusion Optimizer require_sampler_names",
        "interface": "Budget ImageFacts ImageGenerator Method Progress",
        "prior": "MixtureGenerator Prior PriorAlone",
    },
)
