"""What a step and an image cost on this machine, and what fits it: measured on random images, never on private ones."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from dpdm.config import Config, Machine, require_timed
from dpdm.methods import Diffusion, ImageFacts, ImageGenerator, Stepped, TakesSteps
from dpdm.networks.checkpointing import compute_again
from dpdm.privacy import DPSGD, AnyPlan
from dpdm.privacy.processes import Processes
from dpdm.runs.hardware import (
    autocast,
    choose_device,
    keep_freed_memory,
)
from dpdm.runs.memory import memory_for_a_batch, memory_free
from dpdm.runs.rehearsal import bytes_of_parameters
from dpdm.types import InputError, require_positive

SAMPLED = 10_000
"""Images whose sampling time is told."""
_FEW_IMAGES = 16  # a single one takes nearly as long, and says nothing of thousands

_COPIES_AT_ONCE = 1024  # noisy copies that keep a CPU busy: twice as many are no faster; a GPU takes what fits
_ONE_BY_ONE = 4  # examples that tell the time of others, where each has a backward pass of its own
_MANY_COPIES = 32  # the noise multiplicity beyond which time is better spent on steps and batches
_MEASURING = 0.1  # part of a given time that measuring may take
_BESIDE_STEPS = 0.05  # part of it for checkpoints, the prior and pictures
_IMAGES_AT_ONCE = 250  # as `Release.sample_in_parts` makes them
_UNHURRIED = 20.0  # seconds for each measurement where no time is given

OnProgress = Callable[[int, int], None]
"""Called with how much is measured, and of how much."""


class StepCost(NamedTuple):
    """Size and cost of training."""

    parameters: int
    seconds_per_step: float
    memory_gib: float
    physical_batch_size: int


class Fitted(NamedTuple):
    """Settings that fit a time, what they cost, and the seconds that drawing 10,000 images takes one process."""

    config: Config
    cost: StepCost
    sampling_seconds: float


class _Stopwatch:
    """Takes real steps on random images, of all but the loading of files, and draws images.

    On several processes all take steps at once, each with its share of a batch: they may share cores.
    """

    def __init__(self, method: TakesSteps, machine: Machine, facts: ImageFacts) -> None:
        keep_freed_memory()
        self.device = choose_device(machine.device)
        self.generator = method.untrained(facts).to(self.device)
        if machine.checkpointing:
            compute_again(self.generator)
        self.stepped = method.stepped(self.generator)
        self._machine, self._processes = machine, Processes.joined()
        self.parameters = sum(p.numel() for p in self.stepped.module.parameters() if p.requires_grad)  # that get noise

    def physical_batch_size(self, stepped: Stepped) -> int:
        return physical_batch_size(self._machine, self.device, stepped.copies, stepped.bytes_of_one)

    def memory_gib(self, stepped: Stepped, examples: int) -> float:
        """Return about what a process takes that has so many examples on the device at once, its images aside."""
        return max(_peak_bytes() / 2**30, _step_gib(self._machine, stepped, examples))

    def seconds(self, stepped: Stepped, examples: int, *, within: float = _UNHURRIED) -> tuple[float, float]:
        """Return the seconds for each example of a step, and for the step beside them: the same on all processes.

        Args:
            stepped: What steps are taken with.
            examples: Of a whole step.
            within: Seconds for measuring. Ever more examples are timed as long as these last, from one on.
        """
        started = time.perf_counter()
        share = -(-examples // self._processes.size)
        fit = int(memory_for_a_batch(self.device) / (1.5 * stepped.bytes_of_one()))
        at_once = min(share, self.physical_batch_size(stepped))
        one_by_one = self._machine.strategy == "one-backward-each"
        most = self._processes.object_from_first(min(at_once, _ONE_BY_ONE if one_by_one else max(1, fit)))
        module = stepped.module
        average = [p.detach().clone() for p in module.parameters()]
        optimizer = torch.optim.Adam(module.parameters())
        plan = DPSGD(dataset_size=1, expected_batch_size=1, steps=1000, noise_multiplier=1.0, delta=1e-9)
        run = plan.start(strategy=self._machine.clipping)

        def step(records: int) -> float:
            """Select all of so many records."""
            begun = time.perf_counter()
            with autocast(self._machine.precision, self.device):
                run.backward(
                    stepped.loss,
                    module,
                    num_records=records,
                    load=lambda indices, random_bytes: stepped.made_up(records),
                    physical_batch_size=most,
                )
            optimizer.step()
            for slow, fast in zip(average, module.parameters(), strict=True):
                slow.lerp_(fast.detach(), 1e-3)
            average[0].sum().item()  # waits for the device
            return time.perf_counter() - begun

        def follow() -> float:
            """Do what comes after a step, which few images could not be told from."""
            begun = time.perf_counter()
            stepped.follow()
            next(module.parameters()).sum().item()  # waits for the device
            return time.perf_counter() - begun

        def lasts(seconds: float) -> bool:
            """Whether there is time for so much more: for all processes when there is for the first."""
            return self._processes.object_from_first(time.perf_counter() - started + seconds < within)

        step(1)  # which makes what later ones find
        beside = [step(0)]
        while len(beside) < 3 and lasts(5 * beside[0]):
            beside.append(step(0))
        after = [follow()]
        if lasts(10 * after[0]):
            after.append(follow())
        timed, taken = 1, [step(1)]
        while timed < most and lasts(5 * taken[-1]):
            timed = min(4 * timed, most)
            taken = [step(timed)]
        taken = [step(timed)] if lasts(taken[0]) else taken
        # Short steps are measured for a second. A step ends for all processes when it does for the slowest.
        while lasts(taken[-1]) and self._processes.object_from_first(sum(taken) < 1 and len(taken) < 20):
            taken.append(step(timed))
        each = max(0.0, sorted(taken)[len(taken) // 2] - min(beside)) / timed
        return self._processes.object_from_first((each / self._processes.size, min(beside) + min(after)))


@torch.no_grad()
def sampling_seconds(generator: ImageGenerator, *, within: float = _UNHURRIED / 4) -> float:
    """Return the seconds for `SAMPLED` images in one process.

    A few of a sampler's steps are timed, on ever more images as long as `within` seconds last.
    """
    started, device = time.perf_counter(), generator.device
    few, times = generator.shortened()
    random = torch.Generator(device).manual_seed(0)

    def draw(number: int) -> float:
        begun = time.perf_counter()
        labels = torch.zeros(number, dtype=torch.long, device=device)
        with autocast("auto", device):
            few.draw(labels, random=random).sum().item()
        return time.perf_counter() - begun

    number = _FEW_IMAGES
    taken = draw(number)
    if time.perf_counter() - started + taken < within:
        taken = draw(number)  # the first call makes what later ones find
    while number < _IMAGES_AT_ONCE and time.perf_counter() - started + 5 * taken < within:
        number = min(4 * number, _IMAGES_AT_ONCE)
        taken = draw(number)
    return taken * times * SAMPLED / number


def measure_step(config: Config, facts: ImageFacts, plan: AnyPlan) -> StepCost:
    """Time steps on one physical batch of random images, or a part of it, and scale to the expected batch.

    Args:
        config: Method and machine.
        facts: Shape and classes of the images.
        plan: Batch size and number of records.
    """
    method = config.method
    if not plan.steps or not isinstance(method, TakesSteps):
        return StepCost(0, 0.0, _records_gib(facts, plan), 0)
    stopwatch = _Stopwatch(method, config.machine, facts)
    each, beside = stopwatch.seconds(stopwatch.stepped, plan.expected_batch_size)
    return _cost(stopwatch, stopwatch.stepped, facts, plan, each, beside)


def count_memory(config: Config, facts: ImageFacts, plan: AnyPlan) -> float:
    """Return the GiB that steps and records take about, without a step; what the method keeps beside them is its own.

    Args:
        config: Method and machine.
        facts: Shape and classes of the images.
        plan: Batch size and number of records.
    """
    method, records = config.method, _records_gib(facts, plan)
    if not plan.steps or not isinstance(method, TakesSteps):
        return records
    stepped = method.stepped(method.untrained(facts))
    device = choose_device(config.machine.device)
    at_once = physical_batch_size(config.machine, device, stepped.copies, stepped.bytes_of_one)
    return _step_gib(config.machine, stepped, min(plan.expected_batch_size, at_once)) + records


def measure_sampling(config: Config, facts: ImageFacts) -> float:
    """Return the seconds that one process takes to draw `SAMPLED` images with the run's own sampler."""
    return sampling_seconds(config.method.untrained(facts).to(choose_device(config.machine.device)))


def _cost(
    stopwatch: _Stopwatch, stepped: Stepped, facts: ImageFacts, plan: AnyPlan, each: float, beside: float
) -> StepCost:
    at_once = min(plan.expected_batch_size, stopwatch.physical_batch_size(stepped))
    return StepCost(
        stopwatch.parameters,
        each * plan.expected_batch_size + beside,
        stopwatch.memory_gib(stepped, at_once) + _records_gib(facts, plan),
        at_once,
    )


def _step_gib(machine: Machine, stepped: Stepped, examples: int) -> float:
    """Return what a step with so many examples on the device at once takes, as counted."""
    few = 1 if machine.strategy == "one-backward-each" else examples
    return (1.5 * few * stepped.bytes_of_one() + bytes_of_parameters(stepped.module)) / 2**30


def _records_gib(facts: ImageFacts, plan: AnyPlan) -> float:
    """Return what all images take; of groups, of which nobody has declared how many images they have, nothing."""
    if plan.unit == "group":
        return 0.0
    return plan.dataset_size * math.prod(facts.shape) / 2**30


def fit_to_time(
    config: Config,
    facts: ImageFacts,
    plan: AnyPlan,
    *,
    minutes: float,
    on_progress: OnProgress = lambda done, total: None,
) -> Fitted:
    """Return `config` with the noise multiplicity, steps and batch that fit into `minutes` here, and their cost.

    On several processes all must call it together, and get the same.

    A method without steps chooses its own settings (`Method.fitted`). Else time goes first to noise multiplicity K, at
    the steps and the batch of `config`. K is a power of two, up to 32 or to what there is time to measure. Where even
    K = 1 takes too long, or K = 32 leaves time, or the method has no noisy copies, steps and batch shrink or grow by
    the same factor.

    Args:
        config: The settings to start from.
        facts: Shape and classes of the images.
        plan: Steps, batch and number of records.
        minutes: Time for all of it: a tenth at most for measuring, a twentieth for what comes beside the steps.
        on_progress: Called as the measuring goes on.

    Guarantees:
        * Measuring takes at most a tenth of the time, unless a single step on one image is longer than its part of
          that. It takes at most half of the memory that is free.
        * What is planned fits into the rest of the time, as it was measured.

    Raises:
        InputError: There is not even time for one step on one image, or half of the free memory is too little.
    """
    require_positive(minutes=minutes)
    require_timed(config.method)
    if config.method.timed:
        return _with_work_for(config, facts, plan, (1 - _MEASURING - _BESIDE_STEPS) * 60 * minutes)
    assert isinstance(config.method, TakesSteps)
    return _with_steps_for(config, config.method, facts, plan, minutes, on_progress)


def without_steps(config: Config, facts: ImageFacts, plan: AnyPlan, sampling_seconds: float) -> Fitted:
    """Return settings with no private steps, and what that costs."""
    config = dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, steps=0))
    return Fitted(config, StepCost(0, 0.0, _records_gib(facts, plan), 0), sampling_seconds)


def _with_steps_for(
    config: Config, method: TakesSteps, facts: ImageFacts, plan: AnyPlan, minutes: float, on_progress: OnProgress
) -> Fitted:
    """Return `config` with as many noisy copies, steps and images of a batch as fit into so many minutes."""
    until = time.perf_counter() + _MEASURING * 60 * minutes
    seconds = (1 - _MEASURING - _BESIDE_STEPS) * 60 * minutes
    _require_half_free(method, config.machine, facts)
    stopwatch = _Stopwatch(method, config.machine, facts)
    steps, batch = plan.steps, plan.expected_batch_size
    tried = 0

    def left(part: float) -> float:
        """Return a part of the seconds that are left for measuring."""
        return part * (until - time.perf_counter())

    def in_time() -> bool:
        """Whether there is time for another measurement: for all processes when there is for the first."""
        return Processes.joined().object_from_first(time.perf_counter() < until)

    def cost(copies: int) -> tuple[float, float]:
        """Return the seconds of an example, and of a step beside them, with so many noisy copies."""
        nonlocal tried
        stepped = _with_copies(method, copies).stepped(stopwatch.generator)
        found = stopwatch.seconds(stepped, batch, within=left(1 / 3))
        tried += 1
        on_progress(tried, most)
        return found

    many = _MANY_COPIES if isinstance(method, Diffusion) else 1
    most = many.bit_length() + 1  # one measurement for each K, and the sampler's
    sampling = sampling_seconds(stopwatch.generator, within=left(1 / 4))
    tried += 1
    on_progress(tried, most)
    copies, (each, beside) = 1, cost(1)
    while steps * (batch * each + beside) <= seconds and copies < many and in_time():
        more = cost(2 * copies)
        if steps * (batch * more[0] + more[1]) > seconds:
            break
        copies, (each, beside) = 2 * copies, more
    on_progress(most, most)
    if steps * (batch * each + beside) > seconds or copies == many:
        factor = _factor(steps * batch * each, steps * beside, seconds)
        steps, batch = (
            int(steps * factor + 1e-9),
            min(plan.poisson[-1].out_of(plan.dataset_size), int(batch * factor + 1e-9)),
        )
    if not steps or not batch:
        raise InputError(f"{minutes:g} minutes are too short for a single step here: give more, or a smaller network")
    method = _with_copies(method, copies)
    privacy = dataclasses.replace(config.privacy, steps=steps, expected_batch_size=batch)
    fitted = dataclasses.replace(config, privacy=privacy, method=method)
    plan = plan.with_steps(steps, expected_batch_size=batch)
    stepped = method.stepped(stopwatch.generator)
    return Fitted(fitted, _cost(stopwatch, stepped, facts, plan, each, beside), sampling)


def _with_copies(method: TakesSteps, copies: int) -> TakesSteps:
    """Return the method with so many noisy copies of an example, if it has any."""
    if not isinstance(method, Diffusion):
        return method
    return dataclasses.replace(method, loss=dataclasses.replace(method.loss, noise_multiplicity=copies))


def _with_work_for(config: Config, facts: ImageFacts, plan: AnyPlan, seconds: float) -> Fitted:
    """Return `config` with as much work on what is released as fills so many seconds: the same on all processes."""
    device = choose_device(config.machine.device)
    method = config.method.fitted(facts, records=plan.dataset_size, device=device, seconds=seconds)
    config = dataclasses.replace(config, method=Processes.joined().object_from_first(method))
    return Fitted(config, measure_step(config, facts, plan), measure_sampling(config, facts))


def _factor(of_examples: float, of_steps: float, seconds: float) -> float:
    """Return the g at which g² `of_examples` + g `of_steps` are `seconds`: steps and batch both times g."""
    half = of_steps / 2
    return seconds / (half + math.sqrt(half**2 + of_examples * seconds))


def _require_half_free(method: TakesSteps, machine: Machine, facts: ImageFacts) -> None:
    """Raise InputError unless a step of this network needs at most half of the free memory; nothing of it is made."""
    with torch.device("meta"):
        module = method.stepped(method.untrained(facts)).module
    parameters = sum(p.numel() for p in module.parameters())
    needed, half = bytes_of_parameters(module), memory_free(choose_device(machine.device)) // 2
    if needed > half:
        raise InputError(
            f"a step of {parameters:,} parameters needs {needed / 2**30:.1f} GiB, and measuring may use half of the "
            f"free memory, {half / 2**30:.1f} GiB: take a smaller network, or leave out --minutes"
        )


def physical_batch_size(machine: Machine, device: torch.device, copies: int, bytes_of_one: Callable[[], int]) -> int:
    """Return how many examples to take at once: what `machine` says, or as many as are of use and fit the memory.

    Args:
        machine: Its own number, if it says one.
        device: Where they are.
        copies: Noisy copies of each.
        bytes_of_one: Returns what one example keeps, its gradient row with it; half as much again comes and goes.
    """
    if machine.physical_batch_size != "auto":
        return machine.physical_batch_size
    if machine.strategy == "one-backward-each":
        return max(1, _COPIES_AT_ONCE // copies)  # of which one is in memory
    with autocast(machine.precision, device):
        fit = int(memory_for_a_batch(device) / (1.5 * bytes_of_one()))
    of_use = fit if device.type == "cuda" else -(-_COPIES_AT_ONCE // copies)
    return max(1, min(fit, of_use))


def _peak_bytes() -> int:
    """Return the most memory that this process has had; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
