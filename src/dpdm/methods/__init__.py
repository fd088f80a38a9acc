"""Ways from private images to a generator: strangers to one another, but for `interface` and their helpers."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.methods.aggregated_embeddings import AggregatedEmbeddings, AggregatedGenerator
    from dpdm.methods.aggregated_gan import AggregatedGAN
    from dpdm.methods.codec import Codec, Pose
    from dpdm.methods.denoising import AnySampler, DenoisingGenerator, require_sampler_names
    from dpdm.methods.diffusion import AnyPreconditioning, Diffusion
    from dpdm.methods.distillation import Distillation, DistilledGenerator
    from dpdm.methods.embedding import Embedding
    from dpdm.methods.evolution import Evolution
    from dpdm.methods.feature_maps import NTK, Fourier, PublicFeatures
    from dpdm.methods.flow import LatentFlow
    from dpdm.methods.gan import GAN
    from dpdm.methods.interface import ImageGenerator, Method
    from dpdm.methods.labelled import LabelledGenerator
    from dpdm.methods.labels import Labels
    from dpdm.methods.layers import Layers
    from dpdm.methods.mean_embedding import MeanEmbedding
    from dpdm.methods.optimizer import Optimizer
    from dpdm.methods.populations import PopulationGenerator
    from dpdm.methods.prior import Prior
    from dpdm.methods.prior_alone import MixtureGenerator, PriorAlone
    from dpdm.methods.private_steps import Stepped, TakesSteps
    from dpdm.methods.redrawn import Pipeline
    from dpdm.methods.registry import METHODS
    from dpdm.methods.retrieval import Retrieval
    from dpdm.methods.sanitized_gan import SanitizedGAN
    from dpdm.methods.sliced import SlicedWasserstein
    from dpdm.methods.small_generator import SmallGenerator
    from dpdm.methods.start import Start
    from dpdm.methods.statistics import StatisticMatching
    from dpdm.methods.teacher import TaughtGenerator, Teacher
    from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart

__all__ = [
    "GAN",
    "METHODS",
    "NTK",
    "AggregatedEmbeddings",
    "AggregatedGAN",
    "AggregatedGenerator",
    "AnyPreconditioning",
    "AnySampler",
    "Budget",
    "Codec",
    "DenoisingGenerator",
    "Diffusion",
    "Distillation",
    "DistilledGenerator",
    "Embedding",
    "Evolution",
    "Fourier",
    "ImageFacts",
    "ImageGenerator",
    "LabelledGenerator",
    "Labels",
    "LatentFlow",
    "Layers",
    "MeanEmbedding",
    "Method",
    "MixtureGenerator",
    "Optimizer",
    "Pipeline",
    "PopulationGenerator",
    "Pose",
    "Prior",
    "PriorAlone",
    "Progress",
    "PublicFeatures",
    "PublicPart",
    "Retrieval",
    "SanitizedGAN",
    "SlicedWasserstein",
    "SmallGenerator",
    "Start",
    "StatisticMatching",
    "Stepped",
    "TakesSteps",
    "TaughtGenerator",
    "Teacher",
    "require_sampler_names",
]

__getattr__ = lazily(
    __name__,
    {
        "aggregated_embeddings": "AggregatedEmbeddings AggregatedGenerator",
        "codec": "Codec Pose",
        "aggregated_gan": "AggregatedGAN",
        "denoising": "AnySampler DenoisingGenerator require_sampler_names",
        "diffusion": "AnyPreconditioning Diffusion",
        "distillation": "DistilledGenerator Distillation",
        "embedding": "Embedding",
        "evolution": "Evolution",
        "feature_maps": "NTK Fourier PublicFeatures",
        "flow": "LatentFlow",
        "gan": "GAN",
        "interface": "ImageGenerator Method",
        "labelled": "LabelledGenerator",
        "labels": "Labels",
        "layers": "Layers",
        "mean_embedding": "MeanEmbedding",
        "optimizer": "Optimizer",
        "populations": "PopulationGenerator",
        "prior": "Prior",
        "prior_alone": "MixtureGenerator PriorAlone",
        "private_steps": "Stepped TakesSteps",
        "redrawn": "Pipeline",
        "registry": "METHODS",
        "retrieval": "Retrieval",
        "sanitized_gan": "SanitizedGAN",
        "sliced": "SlicedWasserstein",
        "small_generator": "SmallGenerator",
        "start": "Start",
        "statistics": "StatisticMatching",
        "teacher": "TaughtGenerator Teacher",
        "values": "Budget ImageFacts Progress PublicPart",
    },
)
