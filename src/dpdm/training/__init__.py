"""Putting the parts together: the trainer, its release, and what a run leaves on disk."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.training.private_classifier import PrivateClassifier, train_private_classifier
    from dpdm.training.release import ImageFacts, Release
    from dpdm.training.step_cost import StepCost, fit_to_time, measure_sampling, measure_step
    from dpdm.training.synthesizer import Synthesizer
    from dpdm.training.trainer import Progress, RunLost, Trainer
    from dpdm.training.verification import Verified, verify_release

__all__ = [
    "ImageFacts",
    "PrivateClassifier",
    "Progress",
    "Release",
    "RunLost",
    "StepCost",
    "Synthesizer",
    "Trainer",
    "Verified",
    "fit_to_time",
    "measure_sampling",
    "measure_step",
    "train_private_classifier",
    "verify_release",
]

__getattr__ = lazily(
    __name__,
    {
        "private_classifier": "PrivateClassifier train_private_classifier",
        "release": "ImageFacts Release",
        "step_cost": "StepCost fit_to_time measure_sampling measure_step",
        "synthesizer": "Synthesizer",
        "trainer": "Progress RunLost Trainer",
        "verification": "Verified verify_release",
    },
)
