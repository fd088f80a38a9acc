"""Clipped sums and noisy sums on the device are the processor's, and keep to the same bounds."""

import copy
import random

import pytest
import torch

from dpdm.diffusion import EDM, DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import (
    DPSGD,
    InsecureSeededEntropy,
    LayerWise,
    OneBackwardEach,
    OperatingSystemEntropy,
    Vectorized,
    clipped_grad_sum,
)
from dpdm.privacy.noise import grid_step
from dpdm.privacy.sums import BoundedSum
from dpdm.runs import hardware

pytestmark = pytest.mark.gpu

LOSS = DenoisingLoss(noise_multiplicity=2)
CLIP = 0.5
SHAPE, CLASSES = (1, 8, 8), 3
NETWORKS = pytest.mark.parametrize(
    "network",
    [CompactUNet(width=16), UNet(width=8, multipliers=(1, 2), blocks=1, attention=(4,)), MLP(width=16, blocks=1)],
    ids=["compact", "the paper's", "mlp"],
)
STRATEGIES = pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized(), LayerWise()], ids=lambda s: repr(s))


def made_up(network, examples=5):
    """A denoiser without weights of zero, and noisy copies of random images, on the processor."""
    torch.manual_seed(0)
    denoiser = PreconditionedDenoiser(network.build(SHAPE, num_classes=CLASSES), EDM())
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return denoiser, drawn(torch.rand(examples, *SHAPE) * 2 - 1, torch.arange(examples) % CLASSES)


def drawn(x, labels):
    levels = EDM().noise_levels
    return LOSS.draw(x, labels, null_label=CLASSES, noise_levels=levels, random_bytes=random.Random(0).randbytes)


def on(device, denoiser, batch):
    return copy.deepcopy(denoiser).to(device), NoisyBatch(*(t.to(device) for t in batch))


def close(found, expected, tolerance=3e-4):
    return (found.double().cpu() - expected.double()).norm() <= tolerance * expected.double().norm()


@NETWORKS
@STRATEGIES
def test_every_strategy_gives_the_processors_sum(device, network, strategy, full_float32):
    denoiser, batch = made_up(network)
    expected = clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=CLIP)
    found = clipped_grad_sum(LOSS, *on(device, denoiser, batch), max_grad_norm=CLIP, strategy=strategy)
    assert found.vector.device == device
    assert close(found.vector, expected.vector)
    for name in ("losses", "grad_norms"):
        assert close(*(getattr(of, name).reveal(because="test") for of in (found, expected)))


@NETWORKS
@STRATEGIES
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_example_is_longer_than_the_clipping_norm(device, network, strategy, precision):
    """As torch is set by default: with TF32 in convolutions."""
    denoiser, batch = on(device, *made_up(network, examples=1))
    one = batch._replace(x=100 * batch.x)
    with hardware.autocast(precision, device):
        for grid in (None, grid_step(CLIP)):
            found = clipped_grad_sum(LOSS, denoiser, one, max_grad_norm=CLIP, strategy=strategy, grid=grid).vector
            assert 0.9 * CLIP < found.norm().item() <= CLIP
            assert grid is None or torch.equal(found / grid, (found / grid).round())


@STRATEGIES
def test_an_example_without_a_finite_gradient_counts_as_zero_and_no_examples_as_zeros(device, strategy, full_float32):
    denoiser, batch = on(device, *made_up(CompactUNet(width=16)))
    x = batch.x.clone()
    x[2] = torch.nan
    others = torch.tensor([0, 1, 3, 4], device=device)
    rest = NoisyBatch(*(t[others] for t in batch))
    sums = [
        clipped_grad_sum(LOSS, denoiser, of, max_grad_norm=CLIP, strategy=strategy).vector
        for of in (batch._replace(x=x), rest, NoisyBatch(*(t[:0] for t in batch)))
    ]
    assert close(sums[0], sums[1].cpu())
    assert sums[2].device == device
    assert not sums[2].any()


def test_a_batch_too_large_for_the_memory_is_done_in_halves(device, full_float32, monkeypatch):
    """A GPU is left two thirds of what the whole batch takes; a processor only says that it has too little."""
    denoiser, batch = on(device, *made_up(CompactUNet(width=32), examples=512 if device.type == "cuda" else 5))

    def whole(strategy):
        return clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=CLIP, strategy=strategy).vector

    sizes = []

    def counted(loss, module, batch):
        sizes.append(len(batch[0]))
        if device.type == "cpu" and len(batch[0]) > 3:
            raise torch.OutOfMemoryError
        yield from Vectorized()(loss, module, batch)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    expected = whole(Vectorized())
    if device.type == "cuda":
        allowed = torch.cuda.max_memory_allocated(device) * 2 / 3
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(device).total_memory)
    try:
        found = whole(counted)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(sizes) >= 3
    assert sizes[0] == len(batch.x)
    assert close(found, expected.cpu())


@STRATEGIES
@pytest.mark.parametrize("noise", ["continuous", "grid"])
def test_private_gradients_are_the_processors(device, strategy, noise, full_float32):
    """Under the same seed the batches, the draws and the noise are the same, whatever the device."""
    plan = DPSGD(dataset_size=40, expected_batch_size=8, steps=2, noise_multiplier=1.0, delta=1e-3, noise=noise)
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = []
    for where in (torch.device("cpu"), device):
        denoiser = made_up(CompactUNet(width=16))[0].to(where)
        run = plan.start(entropy=InsecureSeededEntropy(0), strategy=strategy)

        def load(indices, random_bytes, where=where):
            x, labels = images[indices].to(where), torch.from_numpy(indices % CLASSES).to(where)
            levels = EDM().noise_levels
            return LOSS.draw(x, labels, null_label=CLASSES, noise_levels=levels, random_bytes=random_bytes)

        steps = []
        while not run.finished:
            run.backward(LOSS, denoiser, num_records=40, load=load, physical_batch_size=3)
            assert all(p.grad.device == p.device for p in denoiser.parameters())
            steps.append(torch.cat([p.grad.flatten().cpu() for p in denoiser.parameters()]))
        gradients.append(torch.stack(steps))
    assert close(gradients[1], gradients[0], 1e-5)


@pytest.mark.parametrize("noise", ["continuous", "grid"])
def test_noise_of_an_earlier_release_is_the_processors_to_the_bit(device, noise):
    plan = DPSGD(
        dataset_size=40,
        expected_batch_size=1,
        steps=0,
        delta=1e-3,
        noise=noise,
        releases={"first": 2.0},
    )
    total = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    released = [
        plan.start(entropy=InsecureSeededEntropy(0))
        .release("first", BoundedSum(total.to(where), 1.0), num_records=40)
        .values
        for where in (torch.device("cpu"), device)
    ]
    assert released[1].device == device
    assert torch.equal(released[0], released[1].cpu())


def test_noise_on_the_device_has_the_standard_deviation_that_is_accounted(device):
    plan = DPSGD(dataset_size=40, expected_batch_size=1, steps=0, delta=1e-3, releases={"first": 3.0})
    zeros = torch.zeros(100_000, dtype=torch.float64, device=device)
    noise = plan.start(entropy=OperatingSystemEntropy()).release("first", BoundedSum(zeros, 0.5), num_records=40).values
    assert noise.std().item() == pytest.approx(1.5, rel=0.02)
    assert abs(noise.mean().item()) < 0.03
