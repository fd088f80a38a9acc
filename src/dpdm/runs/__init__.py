"""Putting the parts together: the trainer, its release, and what a run leaves on disk."""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.runs.cost import StepCost, fit_to_time, measure_sampling, measure_step
    from dpdm.runs.private_classifier import PrivateClassifier, train_private_classifier
    from dpdm.runs.release import Release
    from dpdm.runs.run import RunLost
    from dpdm.runs.synthesizer import Synthesizer
    from dpdm.runs.trainer import Trainer
    from dpdm.runs.verification import Verified, verify_release

__all__ = [
    "PrivateClassifier",
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
        "release": "Release",
        "run": "RunLost",
        "cost": "StepCost fit_to_time measure_sampling measure_step",
        "synthesizer": "Synthesizer",
        "trainer": "Trainer",
        "verification": "Verified verify_release",
    },
)
