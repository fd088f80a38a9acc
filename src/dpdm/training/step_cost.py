"""What a step costs on this machine, measured on random images: no private data is read."""

import os
import resource
import sys
import time
from typing import NamedTuple

import torch

from dpdm.config import Config
from dpdm.diffusion import PreconditionedDenoiser
from dpdm.privacy import Mechanism, clipped_grad_sum
from dpdm.training.hardware import autocast, choose_device
from dpdm.training.release import ImageFacts


class StepCost(NamedTuple):
    """Size and cost of training."""

    parameters: int
    seconds_per_step: float
    memory_gib: float


def measure_step(config: Config, facts: ImageFacts, mechanism: Mechanism) -> StepCost:
    """Time clipped gradients of one physical batch of random images, and scale to the expected batch.

    Args:
        config: Network, loss and performance settings.
        facts: Shape and classes of the images.
        mechanism: The plan: batch size and number of records.
    """
    device = choose_device(config.training.device)
    network = config.network.build(facts.shape, num_classes=facts.num_classes).to(device)
    denoiser = PreconditionedDenoiser(network, config.preconditioning)
    strategy = config.training.clipping
    one_by_one = config.training.strategy == "one-backward-each"  # time is linear in examples, memory constant
    at_once = 4 if one_by_one else config.training.physical_batch_size
    examples = min(at_once, mechanism.expected_batch_size)

    def step() -> float:
        started = time.perf_counter()
        batch = config.loss.draw(
            torch.rand(examples, *facts.shape, device=device) * 2 - 1,
            torch.zeros(examples, dtype=torch.long, device=device),
            null_label=facts.num_classes,
            noise_levels=config.preconditioning.noise_levels,
            random_bytes=os.urandom,
        )
        with autocast(config.training.precision, device):
            part = clipped_grad_sum(config.loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy)
        part.vector.sum().item()  # waits for the device
        return time.perf_counter() - started

    step()
    seconds = min(step(), step()) * mechanism.expected_batch_size / examples
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    records = mechanism.dataset_size * facts.shape[0] * facts.shape[1] * facts.shape[2] / 2**30
    parameters = sum(p.numel() for p in denoiser.parameters())
    return StepCost(parameters, seconds, peak + records)
