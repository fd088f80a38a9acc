"""Settings that fit a time and a memory, chosen from declared facts and random images alone."""

import ctypes
import dataclasses
import math
import re
import time
from pathlib import Path

import pytest
import torch

from dpdm.config import Machine, load_config
from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.methods import Diffusion, ImageFacts, Start, made_up
from dpdm.networks import CompactUNet
from dpdm.privacy import MechanismRun, clipped_grad_sum
from dpdm.runs import cost as costs
from dpdm.runs import fit_to_time
from dpdm.runs import memory as of_machine
from dpdm.runs.cost import _Stopwatch, physical_batch_size
from dpdm.runs.worth import noise_to_signal, why_it_cannot_pay, why_none_are_taken
from dpdm.types import InputError

FLOAT32 = Machine(precision="float32")
FACTS = ImageFacts((1, 28, 28), tuple("0123456789"))


def batch_size(machine, loss, denoiser):
    return physical_batch_size(
        machine,
        torch.device("cpu"),
        loss.noise_multiplicity,
        lambda: made_up.bytes_of_one(loss, denoiser, FACTS),
    )


@pytest.fixture
def fit(monkeypatch):
    """Fit the digits' preset, 600 steps of 256 examples, on a machine that needs `each` seconds for a noisy copy."""

    def fit(minutes, *, each, beside=0.0):
        monkeypatch.setattr(
            costs._Stopwatch, "seconds", lambda self, stepped, batch, within: (each * stepped.copies, beside)
        )
        config = load_config("digits", overrides=["privacy.steps=600"])
        facts = ImageFacts((1, 8, 8), tuple("0123456789"))
        fitted, cost, _ = fit_to_time(config, facts, config.plan(lambda: 0), minutes=minutes)
        privacy, copies = fitted.privacy, fitted.method.loss.noise_multiplicity
        seconds = privacy.steps * (privacy.expected_batch_size * each * copies + beside)
        assert seconds == pytest.approx(privacy.steps * cost.seconds_per_step)
        method = dataclasses.replace(config.method, loss=fitted.method.loss)
        assert fitted == dataclasses.replace(config, privacy=fitted.privacy, method=method)
        return privacy.steps, privacy.expected_batch_size, copies, seconds

    return fit


def test_time_goes_to_noise_multiplicity_first(fit):
    assert fit(10, each=510 / (600 * 256 * 8.5))[:3] == (600, 256, 8)
    assert fit(10, each=510 / (600 * 256 * 7.5))[:3] == (600, 256, 4)


def test_a_slow_machine_takes_fewer_steps_of_smaller_batches(fit):
    steps, batch, copies, seconds = fit(1, each=51 / (600 * 256) * 16)
    assert (steps, batch, copies) == (150, 64, 1)
    assert seconds <= 51 + 1e-6


def test_a_fast_machine_takes_more_steps_of_larger_batches_never_beyond_the_records(fit):
    steps, batch, copies, seconds = fit(1, each=51 / (600 * 256 * 32) / 4)
    assert (steps, batch, copies) == (1200, 512, 32)
    assert seconds <= 51 + 1e-6
    assert fit(1000, each=1e-6)[1] == 1438


def test_no_time_for_a_step(fit):
    with pytest.raises(InputError, match=r"0\.0001 minutes are too short"):
        fit(0.0001, each=10.0)
    with pytest.raises(InputError, match="minutes must be a number above 0"):
        fit(0, each=1.0)


@pytest.mark.proof
def test_what_is_measured_is_what_a_step_takes():
    """Measured for real: as many seconds as asked for, give or take what else the machine does."""
    config = load_config("digits", overrides=["machine.precision=float32"])
    facts = ImageFacts((1, 8, 8), tuple("0123456789"))
    shown = []
    fitted, told, sampling = fit_to_time(
        config, facts, config.plan(lambda: 0), minutes=1, on_progress=lambda *done: shown.append(done)
    )
    mechanism = fitted.plan(lambda: 0)
    assert told.seconds_per_step * mechanism.steps <= 51
    cost = costs.measure_step(fitted, facts, mechanism)
    assert 3 < cost.seconds_per_step * mechanism.steps < 240
    assert 0 < sampling < 600
    assert shown[-1][0] == shown[-1][1]
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


@pytest.mark.parametrize("beside", [0.1, 1.0, 20.0])
def test_what_is_planned_fits_where_most_of_a_step_is_not_its_examples(fit, beside):
    """Noise and optimizer of a large network: fewer examples hardly shorten a step."""
    steps, batch, _, seconds = fit(1, each=1e-4, beside=beside)
    assert seconds <= 51
    assert min(steps, batch) > 0


@pytest.mark.proof
def test_all_measuring_takes_a_tenth_of_the_time(monkeypatch):
    """Each measurement uses up what it is given, by a clock that stands still in between."""
    now, given = [0.0], []
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])

    def use_up(self, *arguments, within):
        given.append(within)
        now[0] += within
        return (1e-9, 0.0) if isinstance(self, costs._Stopwatch) else 5.0

    monkeypatch.setattr(costs._Stopwatch, "seconds", use_up)
    monkeypatch.setattr(costs, "sampling_seconds", use_up)
    config = load_config("digits")
    facts = ImageFacts((1, 8, 8), tuple("0123456789"))
    assert fit_to_time(config, facts, config.plan(lambda: 0), minutes=2).sampling_seconds == 5.0
    assert len(given) == 7
    assert min(given) > 0
    assert sum(given) <= 12


def test_a_measurement_stops_when_its_time_is_over():
    """A step on one image is always taken; of larger ones no more than fit."""
    config = load_config("digits", overrides=["machine.precision=float32"])
    stopwatch = costs._Stopwatch(config.method, config.machine, ImageFacts((1, 8, 8), tuple("0123456789")))
    stopwatch.seconds(stopwatch.stepped, 256, within=0.0)  # warm
    sizes = []
    backward = MechanismRun.backward

    def watched(self, *arguments, num_records, **named):
        sizes.append(num_records)
        return backward(self, *arguments, num_records=num_records, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MechanismRun, "backward", watched)
        stopwatch.seconds(stopwatch.stepped, 256, within=0.0)
        assert sizes == [1, 0, 1]
        stopwatch.seconds(stopwatch.stepped, 256, within=10.0)
    assert max(sizes) == 128  # copies that are of use on a processor, ÷ 8


def test_measuring_a_network_beyond_half_of_the_free_memory_is_refused_before_it_is_built(fit, monkeypatch):
    monkeypatch.setattr(costs, "memory_free", lambda device: 2 * 44 * 44_480 - 2)
    monkeypatch.setattr(costs._Stopwatch, "__init__", lambda *arguments: pytest.fail("it was built"))
    with pytest.raises(InputError, match=r"a step of 44,480 parameters needs 0\.0 GiB"):
        fit(1, each=1e-4)


def test_half_of_what_is_free_bounds_a_batch(monkeypatch):
    monkeypatch.setattr(of_machine, "memory_free", lambda device: 2**20)
    assert of_machine.memory_for_a_batch(torch.device("cpu")) == 2**19


@pytest.mark.parametrize(
    ("method", "overrides"), [(None, []), ("prior", []), (None, ["preconditioning.kind=edm", "sampler.steps=5"])]
)
@pytest.mark.proof
def test_sampling_is_measured_by_the_runs_own_sampler(method, overrides):
    config = load_config("digits", method=method, overrides=overrides)
    assert 0 < costs.measure_sampling(config, ImageFacts((1, 8, 8), tuple("0123456789"))) < 600


def test_what_does_not_train_gets_no_noise_and_needs_memory_still():
    """The rule on whether a network pays counts trained parameters alone."""
    facts, whole = ImageFacts((1, 8, 8), ()), Diffusion()
    part = dataclasses.replace(whole, start=Start(sources=("s",), trains="head.*"))
    one, other = (_Stopwatch(method, Machine(), facts) for method in (whole, part))
    head = whole.untrained(facts).denoiser.network.head
    assert other.parameters == sum(p.numel() for p in head.parameters()) < one.parameters
    assert one.parameters == sum(p.numel() for p in whole.untrained(facts).denoiser.network.parameters())


@pytest.mark.proof
def test_a_network_pays_by_one_rule():
    """z√P/E: the laptop's preset, at which network and prior are equal, has 0.26; the digits' has 1.5."""
    config = load_config("fashion-mnist-cpu")
    plan = config.plan(lambda: 0)
    assert noise_to_signal(plan, 246_948) == pytest.approx(0.26, abs=0.005)
    assert noise_to_signal(plan, 246_948) == plan.noise_multiplier * math.sqrt(246_948) / 2048
    assert why_it_cannot_pay(plan, 246_948) is None
    config = load_config("digits")
    line = why_it_cannot_pay(config.plan(lambda: 0), 44_480)
    assert "z√P/E = 1.5 is above 0.5" in line
    assert "Take a public start (dpdm pretrain), or the prior alone (--method prior); or fewer pixels" in line
    assert "(a smaller data.size), or about 3 times as many images. dpdm advise" in line
    grey = why_it_cannot_pay(config.plan(lambda: 0), 44_480, grey=True)
    assert "(--method prior), each for signs on a plain ground with --set codec.kind=pose" in grey
    assert "\n" not in line
    started = why_it_cannot_pay(config.plan(lambda: 0), 44_480, started=True)
    assert started.startswith("private steps will not pay: z√P/E = 1.5 is above 0.5")
    assert started.endswith("(--set privacy.steps=0, and no start.trains)")
    pipeline = why_it_cannot_pay(config.plan(lambda: 0), 44_480, pipeline=True)
    assert "Train fewer parameters (--set network.trains=lora:4, or less)" in pipeline
    alone = load_config("digits", method="prior")
    assert noise_to_signal(alone.plan(lambda: 0), 0) is None
    open_to_all = load_config("digits", overrides=["privacy.kind=non-private"])
    assert why_it_cannot_pay(open_to_all.plan(lambda: 9), 44_480) is None


def test_no_steps_are_taken_where_they_cannot_pay_and_a_start_draws_without_them():
    config = load_config("digits")
    plan, start = config.plan(lambda: 0), Start(sources=("s",))
    started = dataclasses.replace(config.method, start=start)
    assert why_none_are_taken(started, plan, 44_480).startswith("300 steps would not pay: z√P/E = 1.5 is above 0.5")
    assert why_none_are_taken(started, plan, 2_000) is None, "few parameters can be trained"
    for other in (
        config.method,
        dataclasses.replace(started, start=dataclasses.replace(start, trains="head.*")),
        Diffusion(start=dataclasses.replace(start, gains=False), preconditioning=EDM()),
        load_config("digits", method="prior").method,
    ):
        assert why_none_are_taken(other, plan, 44_480) is None


@pytest.mark.proof
def test_the_prior_alone_is_proposed_by_settings_that_work():
    for name in ("mnist-epsilon-1", "cifar10", "digits"):
        config = load_config(name)
        line = why_it_cannot_pay(config.plan(lambda: 0), 1_800_000)
        (proposed,) = re.findall(r"--method (\S+?)[ )]", line)
        assert not load_config(name, method=proposed).plan(lambda: 0).steps


def test_memory_bounds_the_physical_batch(monkeypatch):
    loss = DenoisingLoss(noise_multiplicity=8)
    denoiser = PreconditionedDenoiser(CompactUNet(width=16).build((1, 28, 28), num_classes=10), EDM())

    def size(memory, machine=FLOAT32):
        monkeypatch.setattr(costs, "memory_for_a_batch", lambda device: memory)
        return batch_size(machine, loss, denoiser)

    assert size(2**40) == 1024 // 8
    assert size(0) == 1
    assert 1 < size(2**25) < size(2**26) < 1024 // 8
    assert size(0, Machine(physical_batch_size=7)) == 7
    assert size(0, Machine(strategy="one-backward-each")) == 1024 // 8


@pytest.fixture
def peak_bytes():
    """Return what the resident memory grows by at most during a clipped sum over so many examples."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("reads Linux's account of memory")
    denoiser = PreconditionedDenoiser(CompactUNet(width=32).build((1, 28, 28), num_classes=10), EDM())
    config = load_config("fashion-mnist-cpu")

    def memory(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def measure(machine, copies, examples=None):
        loss, strategy = DenoisingLoss(noise_multiplicity=copies), machine.clipping
        method = dataclasses.replace(config.method, loss=loss)

        def step(examples):
            batch = method.stepped(method.untrained(FACTS)).made_up(examples)
            ctypes.CDLL(None).malloc_trim(0)
            started = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy)
            return memory("VmHWM") - started

        step(1)
        return step(examples or batch_size(machine, loss, denoiser))

    return measure


@pytest.mark.parametrize("copies", [1, 32])
@pytest.mark.proof
def test_a_physical_batch_takes_no_more_memory_than_planned(copies, monkeypatch, peak_bytes):
    monkeypatch.setattr(costs, "memory_for_a_batch", lambda device: 2**28)
    monkeypatch.setattr(costs, "_COPIES_AT_ONCE", 10**9)
    assert 0.3 * 2**28 < peak_bytes(Machine(precision="float32"), copies) <= 1.2 * 2**28


@pytest.mark.proof
def test_memory_falls_as_noisy_copies_take_the_place_of_examples(peak_bytes):
    machine = Machine(precision="float32")
    peaks = [peak_bytes(machine, copies, 256 // copies) for copies in (1, 4, 32)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.8 * peaks[0]


def test_what_a_backward_pass_keeps_is_counted():
    x, layer = torch.randn(100, requires_grad=True), torch.nn.Linear(100, 10)
    assert made_up.bytes_for_backward(lambda: layer(x).exp().sum(), layer) == 4 * (100 + 10)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(of_machine, "memory_free", lambda device: 2**40)
    alone = of_machine.memory_for_a_batch(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert of_machine.memory_for_a_batch(torch.device("cpu")) == alone // 4 > 0


@pytest.mark.parametrize("name", ["gan", "aggregated-gan", "sanitized-gan", "flow"])
def test_steps_without_noisy_copies_are_timed_and_fitted_too(name):
    """Measured for real: what a step takes, what comes after it too, and as many as fit."""
    widths = ["width=16", "discriminator_width=4"]
    small = {
        "gan": widths,
        "aggregated-gan": [*widths, "updates=1", "batch_size=20"],
        "sanitized-gan": [*widths, "critic_updates=1", "batch_size=8", "shards=500"],
        "flow": ["width=16", "encoder_width=4"],
    }[name]
    quick = ["machine.precision=float32", "privacy.steps=600", "privacy.epsilon=3", "privacy.delta=1e-13"]
    config = load_config("digits", method=name, overrides=[*quick, *small])
    facts, shown = ImageFacts((1, 8, 8), tuple("0123456789")), []
    fitted, cost, _ = fit_to_time(
        config, facts, config.plan(lambda: 0), minutes=0.03, on_progress=lambda *done: shown.append(done)
    )
    plan = fitted.plan(lambda: 0)
    assert cost.parameters > 0
    assert 0 < cost.seconds_per_step * plan.steps <= 0.03 * 60 * 0.85 + 1e-6
    assert fitted == dataclasses.replace(config, privacy=fitted.privacy)
    assert shown[-1] == (2, 2)


def test_what_follows_a_step_is_timed_with_it():
    config = load_config("digits", method="gan", overrides=["machine.precision=float32", "width=16"])
    stopwatch = _Stopwatch(config.method, config.machine, ImageFacts((1, 8, 8), tuple("0123456789")))
    stepped = dataclasses.replace(stopwatch.stepped, follow=lambda: time.sleep(0.3))
    each, beside = stopwatch.seconds(stepped, 4, within=0.0)
    assert beside >= 0.3
    assert each < 0.3  # of an image: what follows is no part of it
