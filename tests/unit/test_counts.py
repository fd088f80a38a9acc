"""Whatever counts something is a whole number: a fraction, a truth value and a word are refused in a line."""

import numpy as np
import pytest
import torch

from dpdm.audit import audit_run
from dpdm.config import Config, Data, Machine, NoPrivacy, Privacy
from dpdm.data import Framing, ImageDataset, open_public
from dpdm.data.fonts import render_fonts
from dpdm.data.shapes import draw_shapes
from dpdm.diffusion import DDIM, Churn, DenoisingLoss, DPMSolver, MatchedSolver, StochasticDDIM, karras_schedule
from dpdm.evaluation import ResidualNet, UtilityProtocol, kernel_distance
from dpdm.evaluation.classifiers import MLP as HiddenLayer
from dpdm.evaluation.distances import neighbourhood_scores
from dpdm.evaluation.features import EfficientNetLite0, Pixels
from dpdm.evaluation.fidelity import _check_resamples, draw_equally
from dpdm.evaluation.picture import one_row_per_class
from dpdm.methods import (
    GAN,
    NTK,
    AggregatedGAN,
    Diffusion,
    Distillation,
    Evolution,
    Fourier,
    ImageFacts,
    LatentFlow,
    MeanEmbedding,
    PriorAlone,
    SanitizedGAN,
    SlicedWasserstein,
    Teacher,
)
from dpdm.methods.prior import Prior
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import FullSum, NonPrivate, Plan, PoissonSums, ShardSums
from dpdm.privacy.accounting import PoissonGaussianSteps
from dpdm.privacy.auditing import one_run_epsilon
from dpdm.privacy.sums import votes
from dpdm.runs import Release, Synthesizer, train_private_classifier
from dpdm.types import InputError

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.zeros(4, np.int64)
LABELLED = ImageDataset(images=IMAGES, labels=LABELS, num_classes=1, name="black")
POINTS = torch.zeros(12, 2)
SUM = (FullSum(name="sum", noise_multiplier=1.0),)
PLAN = {"epsilon": 1.0, "dataset_size": 1000}
EVENT = {"noise_multiplier": 1.0, "sample_rate": 0.5}


def untrained() -> Release:
    facts = ImageFacts(LABELLED.shape, LABELLED.class_names)
    return Release(PriorAlone().untrained(facts), {"statement": ""}, {})


COUNTED = {
    "CompactUNet width": lambda value: CompactUNet(width=value),
    "CompactUNet blocks": lambda value: CompactUNet(blocks=value),
    "CompactUNet patch": lambda value: CompactUNet(patch=value),
    "MLP width": lambda value: MLP(width=value),
    "MLP blocks": lambda value: MLP(blocks=value),
    "UNet width": lambda value: UNet(width=value),
    "UNet blocks": lambda value: UNet(blocks=value),
    "UNet multipliers": lambda value: UNet(multipliers=(1, value)),
    "UNet attention": lambda value: UNet(attention=(7, value)),
    "ResidualNet widths": lambda value: ResidualNet(widths=(32, value, 128)),
    "ResidualNet blocks": lambda value: ResidualNet(blocks=(1, value, 2)),
    "DDIM steps": lambda value: DDIM(steps=value),
    "StochasticDDIM steps": lambda value: StochasticDDIM(steps=value),
    "Churn steps": lambda value: Churn(steps=value),
    "DPMSolver steps": lambda value: DPMSolver(steps=value),
    "MatchedSolver steps": lambda value: MatchedSolver(steps=value),
    "karras_schedule steps": lambda value: karras_schedule(value),
    "DenoisingLoss noise_multiplicity": lambda value: DenoisingLoss(noise_multiplicity=value),
    "Prior centres": lambda value: Prior(centres=value),
    "Prior rounds": lambda value: Prior(rounds=value),
    "Evolution rounds": lambda value: Evolution(rounds=value),
    "Evolution population": lambda value: Evolution(population=value),
    "MeanEmbedding updates": lambda value: MeanEmbedding(updates=value),
    "MeanEmbedding batch_size": lambda value: MeanEmbedding(batch_size=value),
    "MeanEmbedding latent": lambda value: MeanEmbedding(latent=value),
    "MeanEmbedding width": lambda value: MeanEmbedding(width=value),
    "GAN width": lambda value: GAN(width=value),
    "GAN latent": lambda value: GAN(latent=value),
    "GAN discriminator_width": lambda value: GAN(discriminator_width=value),
    "GAN batch_size": lambda value: GAN(batch_size=value),
    "GAN most_steps": lambda value: GAN(most_steps=value),
    **{
        f"SanitizedGAN {name}": lambda value, name=name: SanitizedGAN(**{name: value})
        for name in ("shards", "width", "latent", "discriminator_width", "side", "batch_size", "critic_updates")
    },
    "ShardSums shards": lambda value: ShardSums(shards=value, count=1, expected_batch_size=1),
    "AggregatedGAN width": lambda value: AggregatedGAN(width=value),
    "AggregatedGAN latent": lambda value: AggregatedGAN(latent=value),
    "AggregatedGAN discriminator_width": lambda value: AggregatedGAN(discriminator_width=value),
    "AggregatedGAN batch_size": lambda value: AggregatedGAN(batch_size=value),
    "AggregatedGAN updates": lambda value: AggregatedGAN(updates=value),
    "Teacher per_class": lambda value: Teacher(per_class=value),
    "Teacher width": lambda value: Teacher(width=value),
    "LatentFlow latent": lambda value: LatentFlow(latent=value),
    "LatentFlow encoder_width": lambda value: LatentFlow(encoder_width=value),
    "LatentFlow width": lambda value: LatentFlow(width=value),
    "LatentFlow couplings": lambda value: LatentFlow(couplings=value),
    "LatentFlow coupling_width": lambda value: LatentFlow(coupling_width=value),
    "SlicedWasserstein directions": lambda value: SlicedWasserstein(directions=value),
    "SlicedWasserstein bins": lambda value: SlicedWasserstein(bins=value),
    "Distillation images": lambda value: Distillation(images=value),
    "Distillation updates": lambda value: Distillation(updates=value),
    "Fourier number": lambda value: Fourier(number=value),
    "NTK width": lambda value: NTK(width=value),
    "Data size": lambda value: Data(source="digits", size=value),
    "Data num_classes": lambda value: Data(source="digits", num_classes=value),
    "Framing size": lambda value: Framing(size=value),
    "ImageDataset num_classes": lambda value: ImageDataset(images=IMAGES, num_classes=value, name="black"),
    "Privacy steps": lambda value: Privacy(steps=value),
    "Privacy expected_batch_size": lambda value: Privacy(expected_batch_size=value),
    "Privacy dataset_size": lambda value: Privacy(dataset_size=value),
    "NoPrivacy steps": lambda value: NoPrivacy(steps=value),
    "NoPrivacy expected_batch_size": lambda value: NoPrivacy(expected_batch_size=value),
    "NoPrivacy dataset_size": lambda value: NoPrivacy(dataset_size=value),
    "Machine physical_batch_size": lambda value: Machine(physical_batch_size=value),
    "Config seed": lambda value: Config(data=Data(source="digits"), seed=value),
    "PoissonSums steps": lambda value: PoissonSums(count=value, expected_batch_size=1),
    "PoissonSums expected_batch_size": lambda value: PoissonSums(count=1, expected_batch_size=value),
    "Plan dataset_size": lambda value: Plan(dataset_size=value, releases=SUM),
    "NonPrivate dataset_size": lambda value: NonPrivate(dataset_size=value, releases=SUM),
    "Plan.dp_sgd steps": lambda value: Plan.dp_sgd(dataset_size=100, steps=value),
    "Plan.dp_sgd expected_batch_size": lambda value: Plan.dp_sgd(dataset_size=100, steps=1, expected_batch_size=value),
    "Diffusion.plan dataset_size": lambda value: Diffusion().plan(epsilon=1.0, dataset_size=value),
    "Diffusion.plan steps": lambda value: Diffusion().plan(**PLAN, steps=value),
    "Diffusion.plan expected_batch_size": lambda value: Diffusion().plan(**PLAN, expected_batch_size=value),
    "PoissonGaussianSteps steps": lambda value: PoissonGaussianSteps(**EVENT, steps=value),
    "one_run_epsilon canaries": lambda value: one_run_epsilon(value, 1, 1, delta=1e-5),
    "one_run_epsilon guesses": lambda value: one_run_epsilon(9, value, 1, delta=1e-5),
    "one_run_epsilon correct": lambda value: one_run_epsilon(9, 9, value, delta=1e-5),
    "votes bins": lambda value: votes([], bins=value),
    "open_public count": lambda value: open_public("shapes", shape=(1, 8, 8), count=value),
    "render_fonts count": lambda value: render_fonts(value, (1, 8, 8)),
    "draw_shapes count": lambda value: draw_shapes(value, (1, 8, 8)),
    "Release.sample count": lambda value: untrained().sample(value),
    "Release.sample seed": lambda value: untrained().sample(1, seed=value),
    "Release.sample_in_parts part_size": lambda value: next(untrained().sample_in_parts(1, part_size=value)),
    "Synthesizer steps": lambda value: Synthesizer(epsilon=1.0, steps=value).fit(IMAGES),
    "Synthesizer noise_multiplicity": lambda value: Synthesizer(epsilon=1.0, noise_multiplicity=value).fit(IMAGES),
    "Synthesizer dataset_size": lambda value: Synthesizer(epsilon=1.0, dataset_size=value).fit(IMAGES),
    "Synthesizer num_classes": lambda value: Synthesizer(epsilon=1.0, num_classes=value).fit(IMAGES),
    "Synthesizer expected_batch_size": lambda value: Synthesizer(epsilon=1.0, expected_batch_size=value).fit(IMAGES),
    "train_private_classifier steps": lambda value: train_private_classifier(LABELLED, epsilon=1.0, steps=value),
    "train_private_classifier expected_batch_size": lambda value: train_private_classifier(
        LABELLED, epsilon=1.0, expected_batch_size=value
    ),
    "UtilityProtocol epochs": lambda value: UtilityProtocol(epochs=value),
    "UtilityProtocol batch_size": lambda value: UtilityProtocol(batch_size=value),
    "UtilityProtocol min_updates": lambda value: UtilityProtocol(min_updates=value),
    "HiddenLayer width": lambda value: HiddenLayer(width=value),
    "EfficientNetLite0 size": lambda value: EfficientNetLite0(size=value),
    "Pixels side": lambda value: Pixels(side=value),
    "kernel_distance subsets": lambda value: kernel_distance(POINTS, POINTS, subsets=value),
    "kernel_distance subset_size": lambda value: kernel_distance(POINTS, POINTS, subset_size=value),
    "neighbourhood_scores neighbours": lambda value: neighbourhood_scores(POINTS, POINTS, density=value),
    "draw_equally limit": lambda value: draw_equally(100, 100, limit=value),
    "evaluate_fidelity resamples": lambda value: _check_resamples(value, 0),
    "one_row_per_class per_class": lambda value: one_row_per_class(IMAGES, LABELS, num_classes=1, per_class=value),
    "one_row_per_class num_classes": lambda value: one_row_per_class(IMAGES, LABELS, num_classes=value),
    "audit_run canaries": lambda value: audit_run("nowhere", canaries=value),
    "audit_run members": lambda value: audit_run("nowhere", members=value),
    "audit_run generated": lambda value: audit_run("nowhere", generated=value),
}


@pytest.mark.parametrize("value", [2.5, True, "3"])
@pytest.mark.parametrize("place", COUNTED)
def test_what_is_no_whole_number_is_refused_by_the_name_of_the_field(place, value):
    field = place.split()[1]
    with pytest.raises(InputError, match=rf"{field} must be .*number.*, not {value}"):
        COUNTED[place](value)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy_are_counts_too(kind):
    assert Prior(centres=kind(2)).centres == 2
    assert MLP(width=kind(8)).width == 8
    assert DDIM(steps=kind(3)).steps == 3
    assert DenoisingLoss(noise_multiplicity=kind(2)).noise_multiplicity == 2
    assert Evolution(rounds=kind(2)).rounds == 2
    assert len(open_public("shapes", shape=(1, 8, 8), count=kind(2))) == 2


def test_a_claim_spells_a_whole_number_in_one_way():
    plan = Plan.dp_sgd(dataset_size=100.0, steps=4.0, expected_batch_size=2.0, noise_multiplier=1)
    assert [repr(number) for number in (plan.dataset_size, plan.steps, plan.expected_batch_size)] == ["100", "4", "2"]
