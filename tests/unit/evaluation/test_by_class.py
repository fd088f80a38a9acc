"""Classes are known by their names, and answers are counted class by class."""

import numpy as np
import pytest

from dpdm.evaluation import by_class, places_by_name
from dpdm.types import InputError

ANIMALS = ("ant", "bee", "cat")


def test_who_always_answers_the_largest_class_has_its_share_and_no_more_than_chance_of_balanced_accuracy():
    found = by_class([[90, 0, 0], [8, 0, 0], [2, 0, 0]])
    assert found.largest_class == pytest.approx(0.9)
    assert found.balanced_accuracy == pytest.approx(1 / 3)
    assert found.recalls == (1.0, 0.0, 0.0)


def test_a_class_without_test_images_counts_for_nothing():
    found = by_class([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    assert found.recalls == (0.75, None, 1.0)
    assert found.balanced_accuracy == pytest.approx(0.875)


def test_the_same_names_in_another_order_are_matched_and_told():
    places, remark = places_by_name(("cat", "ant", "bee"), ANIMALS, "made.npz", "real")
    assert places.tolist() == [2, 0, 1]
    assert remark == "made.npz and real list their classes in another order: matched by name"
    numbers = tuple(map(str, range(12)))
    places, _ = places_by_name(tuple(sorted(numbers)), numbers, "folder", "made.npz")
    assert [numbers[place] for place in places] == sorted(numbers)


def test_the_same_names_in_the_same_order_need_no_word():
    places, remark = places_by_name(ANIMALS, ANIMALS, "a", "b")
    assert (places.tolist(), remark) == ([0, 1, 2], None)


@pytest.mark.parametrize("swapped", [False, True])
def test_labels_without_names_are_taken_as_places_and_told(swapped):
    sides = [("0", "1", "2"), ANIMALS], ["made.npz", "real"]
    (names, reference), (what, where) = [side[::-1] for side in sides] if swapped else sides
    places, remark = places_by_name(names, reference, what, where)
    assert np.array_equal(places, [0, 1, 2])
    assert remark == "made.npz names no classes: its labels 0, 1, ... are taken as the classes of real: ant, bee, cat"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("ant", "bee", "dog"), "made has dog, which real lacks and real has cat, which made lacks"),
        (("ant", "bee"), "real has cat, which made lacks"),
        (("0", "1"), "made has 0, 1, which real lacks"),
    ],
)
def test_other_names_are_refused(names, said):
    with pytest.raises(InputError, match=f"the classes differ: {said}"):
        places_by_name(names, ANIMALS, "made", "real")


def test_numbers_from_one_are_not_those_from_zero():
    with pytest.raises(InputError, match="made has 0, which real lacks"):
        places_by_name(("0", "1", "2"), ("1", "2", "3"), "made", "real")
