import numpy as np
from sklearn.datasets import load_digits as sklearn_digits

from dpdm.data import open_dataset


def test_every_fifth_digit_is_test_and_the_others_are_train():
    labels = sklearn_digits().target
    train, test = open_dataset("digits"), open_dataset("digits:test")
    assert np.array_equal(test.labels, labels[4::5])
    assert np.array_equal(train.labels, np.delete(labels, np.s_[4::5]))
    assert (len(train), len(test)) == (1438, 359)


def test_the_sixteen_steps_of_grey_span_all_levels_in_order():
    test = open_dataset("digits:test")
    raw = sklearn_digits().images[4::5]
    assert test.shape == (1, 8, 8)
    assert np.abs(test.images[..., 0] / 255 - raw / 16).max() <= 0.5 / 255 + 1e-12
    assert (test.images.min(), test.images.max()) == (0, 255)
