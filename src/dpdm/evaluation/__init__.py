"""How good synthetic images are, and pictures of them: arrays in, numbers and files out.

What is computed from private images here is covered by no ε: such scores and pictures are for the data owner only.
"""

from dpdm.evaluation.by_class import ByClass, by_class, confusion_of, places_by_name
from dpdm.evaluation.classifiers import CLASSIFIERS, CNN, MLP, Classifier, LogReg
from dpdm.evaluation.distances import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from dpdm.evaluation.features import (
    ClassifierFeatures,
    EfficientNetLite0,
    Features,
    Pixels,
    TorchScriptFeatures,
    features_by_name,
    image_features,
)
from dpdm.evaluation.fidelity import (
    ClassFidelity,
    Fidelity,
    Score,
    compare_features,
    draw_equally,
    evaluate_fidelity,
    refuse_same_images,
    require_comparable,
)
from dpdm.evaluation.picture import image_grid, one_row_per_class, save_grid, side_by_side
from dpdm.evaluation.utility import (
    QUICK,
    UtilityProtocol,
    UtilityScore,
    evaluate_utility,
    require_testable,
    train_classifier,
)
from dpdm.types import as_images

__all__ = [
    "CLASSIFIERS",
    "CNN",
    "MLP",
    "QUICK",
    "ByClass",
    "ClassFidelity",
    "Classifier",
    "ClassifierFeatures",
    "EfficientNetLite0",
    "Features",
    "Fidelity",
    "LogReg",
    "Pixels",
    "Score",
    "TorchScriptFeatures",
    "UtilityProtocol",
    "UtilityScore",
    "as_images",
    "by_class",
    "compare_features",
    "confusion_of",
    "density_coverage",
    "draw_equally",
    "evaluate_fidelity",
    "evaluate_utility",
    "features_by_name",
    "frechet_distance",
    "image_features",
    "image_grid",
    "inception_score",
    "kernel_distance",
    "one_row_per_class",
    "places_by_name",
    "precision_recall",
    "refuse_same_images",
    "require_comparable",
    "require_testable",
    "save_grid",
    "side_by_side",
    "train_classifier",
]
