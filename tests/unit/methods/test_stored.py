"""Generators that hold their images: what a sample has of them, and how often."""

import numpy as np
import pytest
import torch

from dpdm.methods import ImageFacts, LabelledGenerator, PopulationGenerator
from dpdm.methods.stored import places_of
from dpdm.runs import Release

FACTS = ImageFacts((1, 8, 8), ("a", "b", "c"))


def numbered(generator):
    """The generator, with an image of each class's own level for each number."""
    number = generator.images.shape[1]
    levels = torch.arange(3 * number, dtype=torch.uint8).view(3, number, 1, 1, 1)
    generator.images.copy_(levels.expand_as(generator.images))
    return generator


def sample(generator, count, **more):
    parts = Release(generator, {}, {}).sample_in_parts(count, **more)
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return images[:, 0, 0, 0].astype(int), labels


@pytest.mark.parametrize("number", [1, 2, 7, 30, 64])
def test_a_sample_has_no_image_again_before_it_has_had_all(number):
    levels, labels = sample(numbered(PopulationGenerator(FACTS, number)), 3 * (2 * number + 1), seed=4, part_size=5)
    for label in range(3):
        found = np.bincount(levels[labels == label] - label * number, minlength=number)
        assert found.sum() == 2 * number + 1
        assert sorted(found)[:-1] == [2] * (number - 1), "one image alone is there three times"


def test_other_seeds_begin_elsewhere_and_few_images_are_spread_over_all():
    population = numbered(PopulationGenerator(FACTS, 60))
    first, again, another = (sample(population, 30, seed=seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != another
    of_one = sorted(level for level in first if level < 60)
    assert max(np.diff([*of_one, of_one[0] + 60])) < 15, "ten of sixty, at most 2.5 times their distance apart"


def test_the_prior_has_its_exact_share_and_takes_no_stored_image_away():
    generator = numbered(LabelledGenerator(FACTS, 70, 0.3, None))
    generator.margins.fill_(1)
    places = torch.arange(100).repeat(3)
    of_prior = ((places + 1) * 0.3).floor() > (places * 0.3).floor()
    levels = generator.draw_at(places, torch.arange(3).repeat_interleave(100), random=torch.Generator().manual_seed(0))
    levels = levels[:, 0, 0, 0].add(1).mul(127.5).round().long()
    assert of_prior.sum() == 3 * 30
    for label in range(3):
        kept = levels[100 * label : 100 * label + 100][~of_prior[:100]]
        assert sorted(kept.tolist()) == list(range(70 * label, 70 * label + 70))


@pytest.mark.parametrize("from_prior", [0.0, 0.3, 0.99])
def test_so_many_draws_have_all_images_of_each_class(from_prior):
    generator = numbered(LabelledGenerator(FACTS, 40, from_prior, None))
    generator.margins[:] = torch.tensor([1.0, 1.0, -1.0])[:, None]
    generator.margins[1, 25:] = -1
    assert generator.drawn_from.tolist() == [40, 25, 10]
    levels, _ = sample(generator, generator.draws_of_all, seed=3)
    assert set(levels) >= {*range(40), *range(40, 65), *range(80, 90)}
    assert not set(levels) & {*range(65, 80), *range(90, 120)}


def test_places_count_the_images_of_each_class():
    assert places_of(np.array([2, 0, 2, 2, 0, 5]), 10).tolist() == [10, 10, 11, 12, 11, 10]
    assert len(places_of(np.zeros(0, dtype=np.int64), 3)) == 0
