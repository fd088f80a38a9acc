"""Turns a private image data set into a generator whose images anyone may see, and states what (ε, δ) that cost.

The public names are resolved when first used, so that `dpdm --help` never imports torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpdm.config import Machine, load_config
    from dpdm.data import ImageDataset, open_dataset
    from dpdm.diffusion import (
        DDIM,
        DDPM,
        EDM,
        VE,
        VP,
        Churn,
        DenoisingLoss,
        DPMSolver,
        LogNormal,
        MatchedSolver,
        MomentMatched,
        StochasticDDIM,
        V,
    )
    from dpdm.evaluation import (
        Classifier,
        Features,
        UtilityProtocol,
        evaluate_fidelity,
        evaluate_utility,
        frechet_distance,
        image_features,
    )
    from dpdm.ledger import Ledger
    from dpdm.methods import (
        NTK,
        AggregatedEmbeddings,
        Codec,
        Diffusion,
        Embedding,
        Evolution,
        Fourier,
        ImageGenerator,
        Labels,
        Layers,
        MeanEmbedding,
        Method,
        Optimizer,
        Prior,
        PriorAlone,
        PublicFeatures,
        Start,
        StatisticMatching,
    )
    from dpdm.networks import MLP, CompactUNet, DiffusersFolder, MakeNetwork, TextToImageFolder, UNet
    from dpdm.privacy import DPSGD, FullSum, NonPrivate, Plan, PoissonSums
    from dpdm.runs import Release, Synthesizer, Trainer
    from dpdm.types import InputError, Sensitive

__version__ = "0.1.0"

_HOME = {
    "Machine": "config",
    "load_config": "config",
    "ImageDataset": "data",
    "open_dataset": "data",
    "DDIM": "diffusion",
    "DDPM": "diffusion",
    "EDM": "diffusion",
    "VE": "diffusion",
    "VP": "diffusion",
    "V": "diffusion",
    "Churn": "diffusion",
    "DPMSolver": "diffusion",
    "MatchedSolver": "diffusion",
    "MomentMatched": "diffusion",
    "StochasticDDIM": "diffusion",
    "DenoisingLoss": "diffusion",
    "LogNormal": "diffusion",
    "Classifier": "evaluation",
    "Features": "evaluation",
    "UtilityProtocol": "evaluation",
    "evaluate_fidelity": "evaluation",
    "evaluate_utility": "evaluation",
    "frechet_distance": "evaluation",
    "image_features": "evaluation",
    "Ledger": "ledger",
    "NTK": "methods",
    "AggregatedEmbeddings": "methods",
    "Codec": "methods",
    "Diffusion": "methods",
    "Embedding": "methods",
    "Evolution": "methods",
    "Fourier": "methods",
    "ImageGenerator": "methods",
    "Labels": "methods",
    "MeanEmbedding": "methods",
    "Layers": "methods",
    "Method": "methods",
    "Optimizer": "methods",
    "Prior": "methods",
    "PriorAlone": "methods",
    "PublicFeatures": "methods",
    "Start": "methods",
    "StatisticMatching": "methods",
    "MLP": "networks",
    "MakeNetwork": "networks",
    "CompactUNet": "networks",
    "DiffusersFolder": "networks",
    "TextToImageFolder": "networks",
    "UNet": "networks",
    "DPSGD": "privacy",
    "FullSum": "privacy",
    "NonPrivate": "privacy",
    "Plan": "privacy",
    "PoissonSums": "privacy",
    "Release": "runs",
    "Synthesizer": "runs",
    "Trainer": "runs",
    "InputError": "types",
    "Sensitive": "types",
}

__all__ = [
    "DDIM",
    "DDPM",
    "DPSGD",
    "EDM",
    "MLP",
    "NTK",
    "VE",
    "VP",
    "AggregatedEmbeddings",
    "Churn",
    "Classifier",
    "Codec",
    "CompactUNet",
    "DPMSolver",
    "DenoisingLoss",
    "DiffusersFolder",
    "Diffusion",
    "Embedding",
    "Evolution",
    "Features",
    "Fourier",
    "FullSum",
    "ImageDataset",
    "ImageGenerator",
    "InputError",
    "Labels",
    "Layers",
    "Ledger",
    "LogNormal",
    "Machine",
    "MakeNetwork",
    "MatchedSolver",
    "MeanEmbedding",
    "Method",
    "MomentMatched",
    "NonPrivate",
    "Optimizer",
    "Plan",
    "PoissonSums",
    "Prior",
    "PriorAlone",
    "PublicFeatures",
    "Release",
    "Sensitive",
    "Start",
    "StatisticMatching",
    "StochasticDDIM",
    "Synthesizer",
    "TextToImageFolder",
    "Trainer",
    "UNet",
    "UtilityProtocol",
    "V",
    "evaluate_fidelity",
    "evaluate_utility",
    "frechet_distance",
    "image_features",
    "load_config",
    "open_dataset",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dpdm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dpdm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
