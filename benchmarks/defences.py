"""What two defences without DP leave, beside DP: leakage and accuracy of generators of the embedded digits.

`python benchmarks/defences.py` takes about ten minutes of one thread, and prints a table in Markdown. Of the training
digits 400 are trained on, 400 others are what an attacker compares with. All generators have one network, but for the
prior alone, which has none.

Source:
    Carlini et al. 2023 (extraction); Chen et al. 2020 (membership by samples); Yeom et al. 2018 (by loss).
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from dpdm.audit.defences import Draw, draw_away, leakage, stop_before_copies
from dpdm.audit.membership import ATTACKS, attack_scores, judge
from dpdm.audit.memorisation import nearness
from dpdm.config import Machine
from dpdm.data import ImageDataset, open_dataset
from dpdm.diffusion import EDM, DenoisingLoss, DPMSolver
from dpdm.evaluation import CLASSIFIERS, QUICK, evaluate_utility
from dpdm.methods import DenoisingGenerator, Diffusion, Method, Optimizer, Prior, PriorAlone
from dpdm.networks import MLP
from dpdm.privacy import AnyPlan, NonPrivate
from dpdm.runs import Release, Trainer
from dpdm.types import Images, images_to_tensor

DELTA = 1e-3
SIZE = 400
NETWORK, LOSS = MLP(width=128, blocks=2), DenoisingLoss(noise_multiplicity=4, label_dropout=0.0)
PLAIN = Diffusion(
    network=NETWORK,
    preconditioning=EDM(),
    loss=LOSS,
    optimizer=Optimizer(learning_rate=3e-3, ema_decay=0.99),
    sampler=DPMSolver(steps=12),
)
AROUND_A_PRIOR = Diffusion(network=NETWORK, loss=LOSS, prior=Prior(centres=1), sampler=DPMSolver(steps=12))


class Split(NamedTuple):
    """Digits that are trained on, as many that are not, and the test digits."""

    training: ImageDataset
    held_out: ImageDataset
    test: ImageDataset


def split() -> Split:
    """Return the digits in an order of chance."""
    data, test = open_dataset("digits"), open_dataset("digits:test")
    order = np.random.default_rng(0).permutation(len(data))
    return Split(data.part(np.sort(order[:SIZE])), data.part(np.sort(order[SIZE : 2 * SIZE])), test)


def trained(method: Method, plan: AnyPlan, data: ImageDataset) -> Release:
    """Return a release that is kept in memory."""
    machine = Machine(device="cpu", precision="float32")
    return Trainer(method=method, plan=plan, machine=machine, ledger=None).fit(data)


def without_noise(steps: int, size: int) -> NonPrivate:
    """Return a plan of so many steps without noise."""
    return NonPrivate.dp_sgd(dataset_size=size, expected_batch_size=100, steps=steps)


def drawing(release: Release) -> Draw:
    """Return what draws from a release."""
    return lambda labels, seed: release.sample(len(labels), labels=labels, seed=seed)[0]


def row(name: str, release: Release, samples: Images, labels: np.ndarray, digits: Split) -> str:
    """Return one row of the table."""
    found = leakage(samples, digits.training.images, digits.held_out.images)
    scores = evaluate_utility(
        samples,
        labels,
        digits.test.images,
        digits.test.labels,
        num_classes=10,
        protocol=QUICK,
        classifiers={key: CLASSIFIERS[key] for key in ("logreg", "mlp")},
    )
    accuracies = [f"{100 * score.accuracy:.1f}" for score in scores.values()]
    cells = [name, *accuracies, str(found.training), str(found.held_out), f"{found.auc:.3f}", by_loss(release, digits)]
    return f"| {' | '.join(cells)} |"


def by_loss(release: Release, digits: Split) -> str:
    """Return the AUC of membership by the loss of the published weights; nothing where there is no network."""
    generator = release.generator
    if not isinstance(generator, DenoisingGenerator):
        return ""
    sides = (digits.training, digits.held_out)
    x = images_to_tensor(np.concatenate([side.images for side in sides]))
    labels = torch.from_numpy(np.concatenate([side.labels for side in sides]))
    scores = attack_scores(ATTACKS["loss threshold"], generator.denoiser, x, labels)
    return f"{judge(scores, np.arange(len(x)) < len(digits.training), delta=DELTA).auc:.3f}"


def table(digits: Split, *, samples: int, most_steps: int, dp_steps: int) -> Iterator[str]:
    """Yield the lines of the table."""
    size, labels = len(digits.training), np.arange(samples) % 10
    yield "| defence | LogReg | MLP | extracted | by chance | AUC, samples | AUC, loss |"
    yield "|---|---|---|---|---|---|---|"
    plain = trained(PLAIN, without_noise(most_steps, size), digits.training)
    made = drawing(plain)(labels, 0)
    yield row(f"none, {most_steps:,} steps", plain, made, labels, digits)

    extracted = nearness(made, digits.training.images, digits.held_out.images).extracted
    away = draw_away(drawing(plain), labels, digits.training.images, below=extracted.below)
    yield row("drawn again if near a training image", plain, away, labels, digits)

    seen: list[tuple[tuple[int, Release], Images]] = []

    def states() -> Iterator[tuple[tuple[int, Release], Images]]:
        for halvings in range(5, -1, -1):
            steps = most_steps >> halvings
            release = trained(PLAIN, without_noise(steps, size), digits.training) if halvings else plain
            seen.append(((steps, release), drawing(release)(labels, 0)))
            yield seen[-1]

    stopped = stop_before_copies(states(), digits.training.images, digits.held_out.images)
    for (steps, release), of_state in seen:
        here = stopped is not None and release is stopped[0][1]
        if release is not plain:
            name = f"stopped before samples copy, {steps:,} steps" if here else f"none, {steps:,} steps"
            yield row(name, release, of_state, labels, digits)
    for epsilon in (10.0, 1.0):
        for name, method, taken in (("prior alone", PriorAlone(), None), ("diffusion", AROUND_A_PRIOR, dp_steps)):
            budget = {} if taken is None else {"steps": taken, "expected_batch_size": 200}
            plan = method.plan(epsilon=epsilon, dataset_size=size, delta=DELTA, **budget)
            release = trained(method, plan, digits.training)
            yield row(f"DP, ε = {epsilon:g}: {name}", release, drawing(release)(labels, 0), labels, digits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3000, help="images of each generator")
    parser.add_argument("--steps", type=int, default=2400, help="steps without noise")
    parser.add_argument("--dp-steps", type=int, default=300, help="noisy steps")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for line in table(split(), samples=asked.samples, most_steps=asked.steps, dp_steps=asked.dp_steps):
        print(line, flush=True)
