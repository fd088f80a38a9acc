"""Settings that fit a time and a memory, chosen from declared facts and random images alone."""

import ctypes
import dataclasses
import re
from pathlib import Path

import pytest
import torch

from dpdm.config import Training, load_config
from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.networks import CompactUNet
from dpdm.privacy import clipped_grad_sum
from dpdm.training import ImageFacts, fit_to_time, hardware, step_cost
from dpdm.training.step_cost import physical_batch_size
from dpdm.types import InputError

FACTS = ImageFacts((1, 28, 28), tuple("0123456789"))


@pytest.fixture
def fit(monkeypatch):
    """Fit the digits' preset, 600 steps of 256 examples, on a machine that needs `each` seconds for a noisy copy."""

    def fit(minutes, *, each, beside=0.0):
        monkeypatch.setattr(
            step_cost._Stopwatch, "seconds", lambda self, loss, batch: (each * loss.noise_multiplicity, beside)
        )
        config = load_config("digits", overrides=["privacy.steps=600"])
        facts = ImageFacts((1, 8, 8), tuple("0123456789"))
        fitted = fit_to_time(config, facts, config.plan(lambda: 0), minutes=minutes)
        privacy, copies = fitted.privacy, fitted.loss.noise_multiplicity
        seconds = privacy.steps * (privacy.expected_batch_size * each * copies + beside)
        assert fitted == dataclasses.replace(config, privacy=fitted.privacy, loss=fitted.loss)
        return privacy.steps, privacy.expected_batch_size, copies, seconds

    return fit


def test_time_goes_to_noise_multiplicity_first(fit):
    assert fit(10, each=570 / (600 * 256 * 8.5))[:3] == (600, 256, 8)
    assert fit(10, each=570 / (600 * 256 * 7.5))[:3] == (600, 256, 4)


def test_a_slow_machine_takes_fewer_steps_of_smaller_batches(fit):
    steps, batch, copies, seconds = fit(1, each=57 / (600 * 256) * 16)
    assert (steps, batch, copies) == (150, 64, 1)
    assert seconds <= 57


def test_a_fast_machine_takes_more_steps_of_larger_batches_never_beyond_the_records(fit):
    steps, batch, copies, seconds = fit(1, each=57 / (600 * 256 * 32) / 4)
    assert (steps, batch, copies) == (1200, 512, 32)
    assert seconds <= 57
    assert fit(1000, each=1e-6)[1] == 1438


def test_no_time_for_a_step(fit):
    with pytest.raises(InputError, match=r"0\.0001 minutes are too short"):
        fit(0.0001, each=10.0)
    with pytest.raises(InputError, match="minutes must be a number above 0"):
        fit(0, each=1.0)


def test_what_is_measured_is_what_a_step_takes():
    """Measured for real: as many seconds as asked for, give or take what else the machine does."""
    config = load_config("digits", overrides=["training.precision=float32"])
    facts = ImageFacts((1, 8, 8), tuple("0123456789"))
    fitted = fit_to_time(config, facts, config.plan(lambda: 0), minutes=1)
    mechanism = fitted.plan(lambda: 0)
    cost = step_cost.measure_step(fitted, facts, mechanism)
    assert 10 < cost.seconds_per_step * mechanism.steps < 240


def test_memory_bounds_the_physical_batch(monkeypatch):
    loss = DenoisingLoss(noise_multiplicity=8)
    denoiser = PreconditionedDenoiser(CompactUNet(width=16).build((1, 28, 28), num_classes=10), EDM())
    training = Training(precision="float32")

    def size(memory, training=training):
        monkeypatch.setattr(step_cost, "memory_for_a_batch", lambda device: memory)
        return physical_batch_size(training, loss, denoiser, FACTS)

    assert size(2**40) == 1024 // 8
    assert size(0) == 1
    assert 1 < size(2**25) < size(2**26) < 1024 // 8
    assert size(0, Training(physical_batch_size=7)) == 7
    assert size(0, Training(strategy="one-backward-each")) == 1024 // 8


@pytest.fixture
def peak_bytes():
    """Return what the resident memory grows by at most during a clipped sum over so many examples."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("reads Linux's account of memory")
    denoiser = PreconditionedDenoiser(CompactUNet(width=32).build((1, 28, 28), num_classes=10), EDM())
    config = load_config("fashion-mnist-cpu")

    def memory(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def measure(training, copies, examples=None):
        loss, strategy = DenoisingLoss(noise_multiplicity=copies), training.clipping

        def step(examples):
            batch = step_cost.random_batch(config, loss, FACTS, torch.zeros(examples, 1, 28, 28))
            ctypes.CDLL(None).malloc_trim(0)
            started = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy)
            return memory("VmHWM") - started

        step(1)
        return step(examples or physical_batch_size(training, loss, denoiser, FACTS))

    return measure


@pytest.mark.parametrize("copies", [1, 32])
def test_a_physical_batch_takes_no_more_memory_than_planned(copies, monkeypatch, peak_bytes):
    monkeypatch.setattr(step_cost, "memory_for_a_batch", lambda device: 2**28)
    monkeypatch.setattr(step_cost, "_COPIES_AT_ONCE", 10**9)
    assert 0.3 * 2**28 < peak_bytes(Training(precision="float32"), copies) <= 1.2 * 2**28


def test_memory_falls_as_noisy_copies_take_the_place_of_examples(peak_bytes):
    training = Training(precision="float32")
    peaks = [peak_bytes(training, copies, 256 // copies) for copies in (1, 4, 32)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.8 * peaks[0]


def test_what_a_backward_pass_keeps_is_counted():
    x, layer = torch.randn(100, requires_grad=True), torch.nn.Linear(100, 10)
    assert hardware.bytes_for_backward(lambda: layer(x).exp().sum(), layer) == 4 * (100 + 10)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = hardware.memory_for_a_batch(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert hardware.memory_for_a_batch(torch.device("cpu")) == alone // 4 > 0
