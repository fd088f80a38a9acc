"""How good synthetic images are, and pictures of them: arrays in, numbers and files out.

What is computed from private images here is covered by no ε: such scores and pictures are for the data owner only.
"""

from dpdm.evaluation.classifiers import CLASSIFIERS, CNN, MLP, Classifier, LogReg
from dpdm.evaluation.fidelity import (
    EfficientNetLite0,
    Features,
    TorchScriptFeatures,
    features_by_name,
    frechet_distance,
    image_features,
)
from dpdm.evaluation.picture import image_grid, one_row_per_class, save_grid, side_by_side
from dpdm.evaluation.utility import QUICK, UtilityProtocol, UtilityScore, evaluate_utility

__all__ = [
    "CLASSIFIERS",
    "CNN",
    "MLP",
    "QUICK",
    "Classifier",
    "EfficientNetLite0",
    "Features",
    "LogReg",
    "TorchScriptFeatures",
    "UtilityProtocol",
    "UtilityScore",
    "evaluate_utility",
    "features_by_name",
    "frechet_distance",
    "image_features",
    "image_grid",
    "one_row_per_class",
    "save_grid",
    "side_by_side",
]
