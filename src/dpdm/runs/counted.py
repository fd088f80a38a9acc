"""What a run needs that begins with a public pipeline whose weights are not here: counted, from its settings alone."""

import dataclasses
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpdm.config import Config
from dpdm.methods import Diffusion, ImageFacts
from dpdm.methods.made_up import bytes_of_one, made_up_batch
from dpdm.networks import PipelineFolder
from dpdm.privacy import AnyPlan
from dpdm.runs.cost import StepCost, physical_batch_size
from dpdm.runs.hardware import choose_device
from dpdm.runs.rehearsal import bytes_of_parameters, require_memory

RATE = 1e14
"""Operations of floating-point numbers a second, by which time is told: about what a data-centre GPU comes to."""

_SETS = ("norms", "attention", "last", "lora:4", "all")


class Counted(NamedTuple):
    """What a step costs, and what each set of parameters that can be trained takes."""

    cost: StepCost
    by_set: dict[str, tuple[int, float]]


def is_without_weights(config: Config) -> bool:
    """Whether a run begins with a pipeline of which only settings are here."""
    method = config.method
    return (
        isinstance(method, Diffusion) and isinstance(method.network, PipelineFolder) and not method.network.has_weights
    )


def count_step(config: Config, facts: ImageFacts, plan: AnyPlan) -> Counted:
    """Count what a step takes, without a number of the network.

    Raises:
        InputError: This machine has no memory for a step on one image.
    """
    method = config.method
    assert isinstance(method, Diffusion)
    assert isinstance(method.network, PipelineFolder)
    cost = _of(method, config, facts, plan)
    by_set = {}
    for trains in _SETS:
        other = dataclasses.replace(method, network=dataclasses.replace(method.network, trains=trains))
        found = _of(other, config, facts, plan, timed=False)
        by_set[trains] = found.parameters, found.memory_gib
    return Counted(cost, by_set)


def _of(method: Diffusion, config: Config, facts: ImageFacts, plan: AnyPlan, *, timed: bool = True) -> StepCost:
    """Return the cost of a step; one that is `timed` must fit the memory."""
    device = choose_device(config.machine.device)
    with torch.device("meta"):
        generator = method.untrained(facts)
    denoiser, loss, seen = generator.denoiser, method.loss, generator.seen
    one = bytes_of_one(loss, denoiser, seen)
    operations = 0
    if timed:
        require_memory(denoiser, device, one=one)
        few = dataclasses.replace(loss, noise_multiplicity=1)
        batch = made_up_batch(few, denoiser, seen)
        with FlopCounterMode(display=False) as counter:
            few(denoiser, batch).sum().backward()  # type: ignore[no-untyped-call]
        operations = counter.get_total_flops() * loss.noise_multiplicity // len(batch.x)
    fit = physical_batch_size(config.machine, device, loss.noise_multiplicity, lambda: one)
    at_once = min(plan.expected_batch_size, fit)
    kept = 1 if config.machine.strategy == "one-backward-each" else at_once
    return StepCost(
        sum(p.numel() for p in denoiser.parameters() if p.requires_grad),
        operations * plan.expected_batch_size / RATE,
        (bytes_of_parameters(denoiser) + 1.5 * kept * one) / 2**30,
        at_once,
    )
