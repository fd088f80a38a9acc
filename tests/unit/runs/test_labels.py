"""Which classes are drawn, and how often."""

from types import SimpleNamespace

import numpy as np
import pytest

from dpdm.methods import ImageFacts
from dpdm.runs.labels import choose_labels
from dpdm.types import InputError


def release(names=("ant", "bee", "cat"), shares=(0.5, 0.3, 0.2)):
    facts = ImageFacts((1, 8, 8), tuple(names))
    return SimpleNamespace(facts=facts, generator=SimpleNamespace(class_shares=shares))


def counts(*arguments, **named):
    return np.bincount(choose_labels(release(), *arguments, **named), minlength=3).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_all_classes_equally_often_are_in_turn_as_without_any_choice(count):
    assert choose_labels(release(), count).tolist() == (np.arange(count) % 3).tolist()


def test_classes_go_by_name_or_by_place():
    assert counts(10, classes=["cat", "ant"]) == [5, 0, 5]
    assert counts(10, classes=["2"]) == [0, 0, 10]
    numbered = release(names=("1", "2", "3"))
    assert choose_labels(numbered, 2, classes=["1"]).tolist() == [0, 0]  # a name, though it is a place as well
    assert choose_labels(numbered, 2, classes=["0"]).tolist() == [0, 0]


def test_frequencies_count_in_proportion_and_add_up():
    assert counts(10, classes=["cat", "ant"], frequencies=[3, 1]) == [2, 0, 8]
    assert counts(11, frequencies=[0, 0.5, 0.5]) == [0, 6, 5]
    assert counts(100, frequencies="released") == [50, 30, 20]
    assert counts(10, classes=["bee", "cat"], frequencies="released") == [0, 6, 4]


def test_every_beginning_of_the_labels_has_about_the_frequencies():
    labels = choose_labels(release(), 1000, frequencies=[5, 3, 2])
    for end in (10, 100, 500):
        assert np.abs(np.bincount(labels[:end], minlength=3) - end * np.array([0.5, 0.3, 0.2])).max() <= 1


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"classes": ["bea"]}, "'bea' is neither a class nor a place from 0 to 2: did you mean bee"),
        ({"classes": ["3"]}, "'3' is neither a class nor a place from 0 to 2: the classes are ant, bee, cat"),
        ({"classes": ["ant", "ant"]}, "a class is there twice among ant, ant"),
        ({"frequencies": [1, 2]}, "2 frequencies for 3 classes"),
        ({"frequencies": [1, -1, 1]}, "numbers from 0, and not all of them 0"),
        ({"frequencies": [0, 0, 0]}, "numbers from 0, and not all of them 0"),
        ({"frequencies": [1, float("nan"), 1]}, "numbers from 0, and not all of them 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(named, said):
    with pytest.raises(InputError, match=said):
        choose_labels(release(), 10, **named)


def test_what_a_run_did_not_release_is_not_there():
    with pytest.raises(InputError, match="this run released no frequencies"):
        choose_labels(release(shares=None), 10, frequencies="released")
    with pytest.raises(InputError, match="trained without classes: leave out --classes"):
        choose_labels(release(names=()), 10, classes=["0"])
