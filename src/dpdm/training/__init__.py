"""Putting the parts together: the trainer, its release, and what a run leaves on disk."""

from dpdm.training.release import ImageFacts, Release
from dpdm.training.step_cost import StepCost, measure_step
from dpdm.training.synthesizer import Synthesizer
from dpdm.training.trainer import Progress, Trainer

__all__ = ["ImageFacts", "Progress", "Release", "StepCost", "Synthesizer", "Trainer", "measure_step"]
