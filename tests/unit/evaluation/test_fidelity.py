"""Fréchet distances against the closed form, and the feature extractors."""

import numpy as np
import pytest
import torch

from dpdm.evaluation import (
    EfficientNetLite0,
    TorchScriptFeatures,
    features_by_name,
    frechet_distance,
    image_features,
)
from dpdm.types import InputError

GENERATOR = torch.Generator().manual_seed(0)


def standardised(number, dimensions):
    """Draws whose sample mean is exactly zero and whose sample covariance is exactly the identity."""
    x = torch.randn(number, dimensions, generator=GENERATOR, dtype=torch.float64)
    x -= x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T


def test_the_distance_of_two_gaussians_is_the_closed_form():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scales = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    a, b = standardised(500, 3), standardised(400, 3) * scales + mean
    expected = mean.square().sum() + (scales - 1).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected.item(), rel=1e-4)


def test_gaussians_whose_covariances_do_not_commute():
    a, b = standardised(500, 2), standardised(500, 2)
    first = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(first)
    values = torch.linalg.eigvalsh(root.T @ second @ root)
    expected = first.trace() + second.trace() - 2 * values.sqrt().sum()
    found = frechet_distance(a @ root.T, b @ torch.linalg.cholesky(second).T)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_too_small_a_set_is_refused():
    a = torch.randn(100, 4, generator=GENERATOR)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="fewer than 50"):
        frechet_distance(a, a[:49])


def grey(number=60):
    return np.random.default_rng(0).integers(0, 256, (number, 28, 28, 1), dtype=np.uint8)


def test_efficientnet_tells_noise_from_flat_images_and_takes_grey_for_colour():
    images = grey(450)
    features = image_features(images, EfficientNetLite0(size=32))
    assert features.shape == (450, 1280)
    in_colour = image_features(images[:60].repeat(3, axis=3), EfficientNetLite0(size=32))
    torch.testing.assert_close(in_colour, features[:60], rtol=1e-3, atol=1e-3)
    flat = np.full((450, 28, 28, 1), 128, dtype=np.uint8) + (images[:, :1, :1] // 64)
    flat_features = image_features(flat, EfficientNetLite0(size=32))
    near, far = frechet_distance(features[:225], features[225:]), frechet_distance(features[:225], flat_features[:225])
    assert far > 2 * near


def test_a_part_is_reported_as_it_is_done():
    done = []
    image_features(grey(450), EfficientNetLite0(size=32), on_progress=done.append)
    assert sum(done) == 450
    assert len(done) > 1


class Pooling(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = images.float().mean((2, 3))
        if return_features:
            return pooled
        return torch.zeros(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_gives_features_and_any_other_file_is_refused(tmp_path):
    torch.jit.script(Pooling()).save(tmp_path / "pooling.pt")
    features = features_by_name(str(tmp_path / "pooling.pt"))
    images = grey()
    found = image_features(images, features)
    assert features.name == "pooling.pt"
    torch.testing.assert_close(found, torch.from_numpy(images.mean((1, 2))).float().expand(-1, 3), rtol=1e-4, atol=1e-3)
    (tmp_path / "other.pt").write_text("no TorchScript")
    for path in ("other.pt", "absent.pt"):
        with pytest.raises(InputError, match="cannot be read as a TorchScript file"):
            image_features(images, TorchScriptFeatures(tmp_path / path))


def test_the_name_says_which():
    assert features_by_name("efficientnet-lite0") == EfficientNetLite0()
    with pytest.raises(InputError, match="size must be"):
        EfficientNetLite0(size=0)


def test_images_that_are_neither_grey_nor_colour_are_refused():
    with pytest.raises(InputError, match="not of 4 channels"):
        image_features(np.zeros((60, 8, 8, 4), dtype=np.uint8), EfficientNetLite0(size=32))
