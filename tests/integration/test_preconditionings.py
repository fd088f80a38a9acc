"""Every preconditioning learns: two-dimensional data to the end, digits for a few steps."""

import math
import os

import pytest
import torch

from dpdm.config import Machine
from dpdm.data import open_dataset
from dpdm.diffusion import DDIM, EDM, VE, VP, DenoisingLoss, PreconditionedDenoiser, V
from dpdm.methods import Diffusion, Optimizer
from dpdm.networks import MLP
from dpdm.privacy import NonPrivate
from dpdm.runs import Trainer

ALL = pytest.mark.parametrize("preconditioning", [EDM(), V(), VP(), VE()], ids=lambda p: type(p).__name__)
SAMPLER = DDIM(steps=40, sigma_min=0.02)  # the least noise that VE is trained on


def four_blobs(count, seed):
    """Points in the plane, as images of two channels and one pixel, in four classes on a circle."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    angle = labels * (math.pi / 2) + 0.2 * torch.randn(count, generator=generator)
    radius = 0.7 + 0.03 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :, None, None], labels


def energy_distance(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


@ALL
@pytest.mark.proof
def test_a_mixture_in_the_plane_is_learnt(preconditioning):
    steps = 700 if isinstance(preconditioning, VE) else 250  # whose input is not scaled: it learns slowly
    torch.manual_seed(0)
    denoiser = PreconditionedDenoiser(MLP(width=64, blocks=2).build((2, 1, 1), num_classes=4), preconditioning)
    loss = DenoisingLoss(noise_multiplicity=4, label_dropout=0.0)
    optimizer = torch.optim.Adam(denoiser.parameters())
    x, labels = four_blobs(4000, seed=0)
    for step in range(steps):
        chosen = torch.randint(len(x), (256,))
        batch = loss.draw(
            x[chosen],
            labels[chosen],
            null_label=4,
            noise_levels=preconditioning.noise_levels,
            random_bytes=os.urandom,
        )
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss(denoiser, batch).mean().backward()
        optimizer.step()
    start = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    wanted = torch.arange(2000) % 4
    with torch.no_grad():
        made = SAMPLER(denoiser, start, wanted, generator=torch.Generator())
    assert energy_distance(made, four_blobs(2000, seed=9)[0]) < 0.01  # two samples of the data: 0.0015; noise: 0.1
    nearest = (torch.atan2(made[:, 1], made[:, 0]).flatten() / (math.pi / 2)).round().long() % 4
    assert (nearest == wanted).float().mean() > 0.9


@ALL
@pytest.mark.proof
def test_digits_are_learnt(preconditioning):
    data = open_dataset("digits")
    trainer = Trainer(
        method=Diffusion(
            network=MLP(width=64, blocks=2),
            preconditioning=preconditioning,
            loss=DenoisingLoss(noise_multiplicity=2, label_dropout=0.1),
            optimizer=Optimizer(learning_rate=4e-3, ema_decay=0.9),
            sampler=SAMPLER,
        ),
        plan=NonPrivate.dp_sgd(dataset_size=len(data), expected_batch_size=96, steps=80),
        machine=Machine(device="cpu", physical_batch_size=128),
    )
    losses = [
        progress.diagnostics.losses.reveal(because="a test on public digits").mean().item()
        for progress in trainer.steps(data)
    ]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:5]) * 2
