"""Everything an (ε, δ) claim rests on. `mechanism` couples the parts, which are strangers to one another."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.privacy.accounting import GaussianRelease, Relation
    from dpdm.privacy.clipping import OneBackwardEach, Strategy, Vectorized, clipped_grad_sum
    from dpdm.privacy.entropy import InsecureSeededEntropy, OperatingSystemEntropy
    from dpdm.privacy.gaussians import gaussian_mu
    from dpdm.privacy.layerwise import LayerWise
    from dpdm.privacy.mechanism import MechanismRun, Noisy
    from dpdm.privacy.plan import DPSGD, AnyPlan, NonPrivate, Plan
    from dpdm.privacy.releases import Earlier, FullSum, PoissonSums, ShardSums

__all__ = [
    "DPSGD",
    "AnyPlan",
    "Earlier",
    "FullSum",
    "GaussianRelease",
    "InsecureSeededEntropy",
    "LayerWise",
    "MechanismRun",
    "Noisy",
    "NonPrivate",
    "OneBackwardEach",
    "OperatingSystemEntropy",
    "Plan",
    "PoissonSums",
    "Relation",
    "ShardSums",
    "Strategy",
    "Vectorized",
    "clipped_grad_sum",
    "gaussian_mu",
]

__getattr__ = lazily(
    __name__,
    {
        "accounting": "GaussianRelease Relation",
        "clipping": "OneBackwardEach Strategy Vectorized clipped_grad_sum",
        "entropy": "InsecureSeededEntropy OperatingSystemEntropy",
        "gaussians": "gaussian_mu",
        "layerwise": "LayerWise",
        "mechanism": "MechanismRun Noisy",
        "plan": "DPSGD AnyPlan NonPrivate Plan",
        "releases": "Earlier FullSum PoissonSums ShardSums",
    },
)
