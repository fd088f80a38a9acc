"""The methods by the names that settings and `--method` call them by."""

from dpdm.methods.aggregated_embeddings import AggregatedEmbeddings
from dpdm.methods.aggregated_gan import AggregatedGAN
from dpdm.methods.diffusion import Diffusion
from dpdm.methods.distillation import Distillation
from dpdm.methods.evolution import Evolution
from dpdm.methods.flow import LatentFlow
from dpdm.methods.gan import GAN
from dpdm.methods.interface import Method
from dpdm.methods.labels import Labels
from dpdm.methods.mean_embedding import MeanEmbedding
from dpdm.methods.prior_alone import PriorAlone
from dpdm.methods.sanitized_gan import SanitizedGAN
from dpdm.methods.sliced import SlicedWasserstein
from dpdm.methods.statistics import StatisticMatching
from dpdm.methods.teacher import Teacher

_ALL: tuple[type[Method], ...] = (
    Diffusion,
    PriorAlone,
    Evolution,
    Labels,
    MeanEmbedding,
    AggregatedEmbeddings,
    StatisticMatching,
    GAN,
    AggregatedGAN,
    SanitizedGAN,
    LatentFlow,
    SlicedWasserstein,
    Distillation,
    Teacher,
)
METHODS: dict[str, type[Method]] = {method.kind: method for method in _ALL}
