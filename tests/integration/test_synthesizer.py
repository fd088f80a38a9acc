import numpy as np
import pytest

import dpdm


def test_three_lines_from_arrays_to_synthetic_arrays():
    digits = dpdm.open_dataset("digits")
    release = dpdm.Synthesizer(
        epsilon=1.0, num_classes=10, steps=4, noise_multiplicity=1, delta=1e-4, network=dpdm.MLP(width=16, blocks=1)
    ).fit(digits.images[..., 0], digits.labels)
    images, labels = release.sample(30)
    assert images.shape == (30, 8, 8, 1)
    assert np.bincount(labels).tolist() == [3] * 10
    assert "-DP, blank out one image, 7 Gaussian releases, 4 Poisson steps" in release.statement
    assert 0.99 < release.claim["epsilon"] <= 1


def test_labels_without_a_declared_number_of_classes_are_refused():
    with pytest.raises(dpdm.InputError, match="num_classes"):
        dpdm.Synthesizer(epsilon=1.0).fit(np.zeros((20, 8, 8), dtype=np.uint8), np.arange(20) % 3)


def test_every_public_name_is_there():
    for name in dpdm.__all__:
        assert getattr(dpdm, name) is not None


@pytest.mark.proof
def test_the_same_seed_gives_the_same_images():
    digits = dpdm.open_dataset("digits")
    release = dpdm.Synthesizer(
        epsilon=1.0, num_classes=10, steps=1, noise_multiplicity=1, delta=1e-4, network=dpdm.MLP(width=16, blocks=1)
    ).fit(digits.images, digits.labels)
    first, again, other = (release.sample(5, seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
