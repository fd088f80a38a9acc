"""Putting the parts together: the trainer, its release, and what a run leaves on disk."""

from dpdm.training.release import ImageFacts, Release
from dpdm.training.step_cost import StepCost, fit_to_time, measure_step
from dpdm.training.synthesizer import Synthesizer
from dpdm.training.trainer import Progress, Trainer

__all__ = ["ImageFacts", "Progress", "Release", "StepCost", "Synthesizer", "Trainer", "fit_to_time", "measure_step"]
