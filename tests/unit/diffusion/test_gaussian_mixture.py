"""The mixture of Gaussians, against its definition with full matrices."""

import pytest
import torch
from torch import nn

from dpdm.diffusion import EDM, GaussianMixture, MomentMatched, PreconditionedDenoiser


class Nothing(nn.Module):
    """A network that answers zero: what is left is the prior's own denoiser."""

    def forward(self, x, c_noise, labels):
        return x.new_zeros(len(x), x.shape[1] // 2, *x.shape[2:])


DIMENSIONS, NUM_CLASSES, PER_CLASS, KEPT, LEAD = 12, 2, 3, 4, 2
FLOOR = 0.05
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture(
        centres=normal(NUM_CLASSES * PER_CLASS, DIMENSIONS),
        classes=torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS),
        weights=torch.tensor([1.0, 2, 3, 1, 1, 4]),
        vectors=torch.linalg.qr(normal(DIMENSIONS, KEPT)).Q,
        axes=torch.linalg.qr(normal(NUM_CLASSES, LEAD, LEAD)).Q,
        class_variances=torch.tensor([[3.0, 1.0], [0.7, 5.0]]),
        variances=torch.tensor([0.5, 0.2]),
        floor=FLOOR,
        num_classes=NUM_CLASSES,
    )


def covariance(mixture, label):
    v, axes = mixture.vectors, mixture.axes[label]
    inside = torch.block_diag(axes @ mixture.class_variances[label].diag() @ axes.T, mixture.variances.diag())
    return v @ inside @ v.T + FLOOR * (torch.eye(DIMENSIONS) - v @ v.T)


def posterior_mean(mixture, x, sigma, label):
    """Bayes' rule centre by centre, with inverses and densities of full matrices."""
    logits, means = [], []
    for j in range(len(mixture.classes)):
        if label in (of := int(mixture.classes[j]), NUM_CLASSES):
            centre, clean = mixture.centres[j], covariance(mixture, of)
            noisy = clean + sigma**2 * torch.eye(DIMENSIONS)
            density = torch.distributions.MultivariateNormal(centre, noisy)
            logits.append(mixture.log_weights[j] + density.log_prob(x))
            means.append(centre + clean @ torch.linalg.inv(noisy) @ (x - centre))
    return torch.stack(logits).softmax(0) @ torch.stack(means)


@pytest.mark.parametrize("label", [0, 1, NUM_CLASSES])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 30.0])
def test_the_posterior_mean_is_bayes_rule(mixture, label, sigma):
    x = 2 * normal(5, DIMENSIONS)
    found = mixture(x, torch.full((5,), sigma, dtype=torch.float64), torch.full((5,), label))
    for row in range(5):
        torch.testing.assert_close(found[row], posterior_mean(mixture, x[row], sigma, label), atol=1e-8, rtol=1e-8)


def test_each_image_has_its_own_noise_level_and_label(mixture):
    x, sigma, labels = normal(6, DIMENSIONS), torch.rand(6).double() + 0.1, torch.tensor([0, 1, 2, 0, 1, 2])
    together = mixture(x, sigma, labels)
    for row in range(6):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], mixture(x[one], sigma[one], labels[one]))


def test_the_mean_variance_is_a_trace(mixture):
    sigma = torch.tensor([0.01, 0.3, 5.0], dtype=torch.float64)
    for s, found in zip(sigma, mixture.mean_variance(sigma), strict=True):
        expected = 0.0
        for label, share in enumerate((0.5, 0.5)):  # weights of 1 + 2 + 3 and 1 + 1 + 4
            c = covariance(mixture, label)
            expected += share * (s**2 * c @ torch.linalg.inv(c + s**2 * torch.eye(DIMENSIONS))).trace() / DIMENSIONS
        torch.testing.assert_close(found, expected)
    assert mixture.mean_variance(torch.rand(2, 3)).shape == (2, 3)


def test_draws_have_the_moments_of_the_mixture(mixture):
    labels = torch.zeros(40_000, dtype=torch.long)
    x = mixture.sample(labels, generator=torch.Generator().manual_seed(1))
    weights, centres = torch.tensor([1.0, 2, 3]).double() / 6, mixture.centres[:3]
    mean = weights @ centres
    between = (centres - mean).T @ (weights[:, None] * (centres - mean))
    torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance(mixture, 0) + between, atol=0.1, rtol=0.05)


def test_a_mixture_comes_back_from_its_tensors_and_fits_no_others(mixture):
    tensors = mixture.state_dict()
    sizes = {"num_classes": NUM_CLASSES, "centres": len(mixture.centres) // NUM_CLASSES}
    again = GaussianMixture.placeholder(DIMENSIONS, kept=KEPT, lead=mixture.axes.shape[2], **sizes)
    again.load_state_dict(tensors)
    x, sigma, labels = normal(3, DIMENSIONS), torch.ones(3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(again(x, sigma, labels), mixture(x, sigma, labels))
    with pytest.raises(RuntimeError):
        again.load_state_dict(tensors | {"variances": torch.ones(KEPT + 1)})
    with pytest.raises(RuntimeError, match="centres of other classes"):
        again.load_state_dict(tensors | {"classes": tensors["classes"].flip(0)})


def images(*shape):
    return normal(*shape).float()


def test_without_a_network_the_denoiser_is_the_prior(mixture):
    network = Nothing()
    denoiser = PreconditionedDenoiser(network, MomentMatched().about(mixture))
    x, sigma, labels = images(5, 1, 3, 4), torch.rand(5) + 0.1, torch.tensor([0, 1, 2, 0, 1])
    found = denoiser(x, sigma, labels).flatten(1).double()
    torch.testing.assert_close(found, mixture(x.flatten(1), sigma, labels), atol=1e-5, rtol=1e-5)


def test_about_one_isotropic_gaussian_at_zero_it_is_edm():
    sigma_data = 0.7
    prior = GaussianMixture(
        centres=torch.zeros(1, 12),
        classes=torch.zeros(1, dtype=torch.long),
        weights=torch.ones(1),
        vectors=torch.eye(12, 4),
        axes=torch.eye(2)[None],
        class_variances=torch.full((1, 2), sigma_data**2),
        variances=torch.full((2,), sigma_data**2),
        floor=sigma_data**2,
        num_classes=0,
    )
    matched, edm = MomentMatched().about(prior), EDM(sigma_data=sigma_data)
    x, sigma, labels = images(4, 1, 3, 4), torch.tensor([0.01, 0.3, 2.0, 50.0]), torch.zeros(4, dtype=torch.long)
    seen = {}

    class Recording(torch.nn.Module):
        def forward(self, x, c_noise, labels):
            seen.update(images=x, c_noise=c_noise)
            return torch.ones(len(x), 1, 3, 4)

    torch.testing.assert_close(
        matched.denoise(Recording(), x, sigma, labels), edm.denoise(Recording(), x, sigma, labels), atol=1e-5, rtol=1e-4
    )
    matched.denoise(Recording(), x, sigma, labels)
    coefficients = edm.coefficients(sigma)
    torch.testing.assert_close(seen["c_noise"], coefficients.c_noise)
    torch.testing.assert_close(matched.loss_weight(sigma), edm.loss_weight(sigma))
    of_edm = coefficients.c_in[:, None, None, None] * x
    noise, clean = seen["images"].chunk(2, dim=1)
    root = (sigma**2 + sigma_data**2).sqrt()[:, None, None, None]
    torch.testing.assert_close(noise, of_edm * sigma[:, None, None, None] / root, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(clean, of_edm * sigma_data**2 / root, atol=1e-5, rtol=1e-4)
