"""How many runs a search has: a distribution that ends, whatever its mean and shape."""

import math

import numpy as np
import pytest

from dpdm.privacy.search import Search
from dpdm.types import InputError


@pytest.mark.parametrize("shape", [0.0, 1e-6, 0.5, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("mean", [1.01, 3.0, 100.0, 1000.0])
def test_the_distribution_ends_and_is_the_one_that_is_accounted(mean, shape):
    """The kind: a loop that ends by an unlucky number, or not at all."""
    probabilities = np.array(Search(mean=mean, shape=shape).probabilities())
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()
    number = np.arange(1, len(probabilities) + 1)
    assert math.fsum(number * probabilities) == pytest.approx(mean, rel=1e-10)
    # p(k + 1) / p(k) = (1 − γ)(k + η) / (k + 1): the same γ for all k
    gamma = 1 - probabilities[1:] / probabilities[:-1] * (number[:-1] + 1) / (number[:-1] + shape)
    np.testing.assert_allclose(gamma, gamma[0], rtol=1e-9)
    ratio = (1 - gamma[0]) * max(1, (number[-1] + shape) / (number[-1] + 1))
    assert probabilities[-1] * ratio / (1 - ratio) < 2.0**-63, "next to nothing is cut off"


@pytest.mark.parametrize(("mean", "shape"), [(1.01, 0.0), (5.0, 1.0), (1000.0, 0.0), (1000.0, 5.0)])
def test_every_draw_ends(mean, shape):
    search = Search(mean=mean, shape=shape)
    most = len(search.probabilities())
    for drawn in (bytes(8), b"\xff" * 8, b"\0" * 7 + b"\1", b"\xff" * 7 + b"\xfe", b"\x80" + bytes(7)):
        assert 1 <= search.draw_num_runs(lambda count, drawn=drawn: drawn) <= most


def test_the_draw_has_this_distribution():
    search = Search(mean=2.0, shape=1.0)
    of_byte = [search.draw_num_runs(lambda count, first=first: bytes([first]) + b"\x7f" * 7) for first in range(256)]
    assert np.bincount(of_byte)[1:6].tolist() == [128, 64, 32, 16, 8]


@pytest.mark.parametrize("shape", [1e-300, 101.0, -0.5, math.nan, math.inf])
def test_shapes_beyond_the_range_of_numbers_are_refused(shape):
    with pytest.raises(InputError, match="shape"):
        Search(mean=1000.0, shape=shape)
