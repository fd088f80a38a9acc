"""docs/faults.md: each figure of the page is computed here, and where no ε holds, two neighbours are told apart.

The wrong ways are written anew, as small as they can be; what is at fault in them is what the page says.

python tests/golden/test_published_faults.py docs/faults.md      # writes the page's table anew
"""

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from scipy.special import log_ndtr

from dpdm.privacy.accounting import GaussianRelease, PoissonGaussianSteps, epsilon
from dpdm.privacy.gaussians import gaussian_epsilon

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- figures: made by tests/golden/test_published_faults.py -->", "<!-- end of figures -->"
DELTA = 1e-5
OF_CIFAR = 1 / (50_000 * math.log(50_000))  # δ of DP-SAPF on CIFAR-10
NONE = "no ε holds"


def cost(*events, delta=DELTA):
    """What these events cost, by dpdm's own accountant (PLD)."""
    return epsilon(events, delta=delta, relation="add_or_remove_one")


def steps(noise_multiplier, sample_rate, number):
    return PoissonGaussianSteps(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=number)


def gaussian(noise_multiplier):
    return GaussianRelease(noise_multiplier=noise_multiplier)


def by_central_limit(noise_multiplier, sample_rate, number):
    """The ε of the μ to which many small steps tend (Bu, Dong, Long & Su 2020): a limit, and no bound."""
    mu = sample_rate * math.sqrt(number * math.expm1(noise_multiplier**-2))
    return gaussian_epsilon(mu=mu, delta=DELTA)


def at_least(noise_multiplier, sample_rate, number):
    """A lower bound on the ε of Poisson steps: privacy losses rounded down."""
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=2e-4,
        pessimistic_estimate=False,
        use_connect_dots=False,
    )
    return one.self_compose(number).get_epsilon_for_delta(DELTA)


@functools.cache
def shuffled(noise_multiplier, batches, epochs, delta=DELTA, cells=1200):
    """A lower bound on the ε of epochs of shuffled batches (Chua et al. 2024, one image blanked out).

    Every other image's gradient is -1 and this one's is +1 (or 0, blanked out): beside what is known, its batch has
    mean 2 (or 1), and all others 0. Who looks at the largest batch of an epoch alone, in cells, sees less than all.
    """
    edges = np.linspace(-4 * noise_multiplier, 2 + 9 * noise_multiplier, cells + 1)

    def masses(shift):
        below = log_ndtr((edges - shift) / noise_multiplier) + (batches - 1) * log_ndtr(edges / noise_multiplier)
        lower = np.diff(np.concatenate([[0], np.exp(below), [1]]))
        upper = -np.diff(np.concatenate([[1], -np.expm1(below), [0]]))  # exact where `lower` cancels
        return np.where(below[np.r_[0 : cells + 1, cells]] < -1, lower, upper)

    there, blank = masses(2.0), masses(1.0)
    kept = (there > 1e-300) & (blank > 1e-300)  # to leave out some of the mass only lowers the bound

    def below(of, other):
        logs = [dict(enumerate(np.log(each[kept]))) for each in (other, of)]
        one = privacy_loss_distribution.from_two_probability_mass_functions(*logs, pessimistic_estimate=False)
        return one.self_compose(epochs).get_epsilon_for_delta(delta)

    return max(below(there, blank), below(blank, there))


def about(value):
    return f"{value:.2f}"


def no_less(value):
    return f"≥ {math.floor(value * 100) / 100:g}"


def rows():
    """Return each row of the page: system, what its own accounting says, and what is delivered."""
    full = about(cost(steps(5.0, 0.1, 50)))
    both = math.sqrt(2)  # two gradients, each clipped to C, are one vector no longer than √2 C
    return [
        ("dp-promise, second phase, MNIST", "10", about(cost(steps(1.13, 1 / 15, 750)))),
        ("dp-promise, second phase, CIFAR-10", "10", about(cost(steps(1.19, 1 / 13, 650)))),
        ("dp-promise, second phase, MNIST", "1", about(cost(steps(7.0, 1 / 15, 750)))),
        ("dp-promise, first phase", "part of 10", NONE),
        ("DP-LFlow, both gradients, MNIST", "10", about(cost(steps(1.25 / both, 0.1, 300)))),
        ("DP-LFlow, both gradients, MNIST", "1", about(cost(steps(5.1 / both, 0.1, 100)))),
        ("DP-LFlow, both gradients, CelebA", "1", about(cost(steps(8.5 / both, 0.1, 300)))),
        ("DP-LFlow, one gradient, shuffled batches", "10", no_less(shuffled(1.25, 10, 30))),
        ("DP-SAPF, choice of matrices alone", "0.2", about(cost(gaussian(5.0), delta=OF_CIFAR))),
        ("DP-SAPF, shuffled batches, CIFAR-10", "10", no_less(shuffled(1.5737, 12, 83, OF_CIFAR))),
        ("DP-Kernel", "0.2, 1, 10", NONE),
        (
            "DP-FETA, a class with a tenth of its share",
            about(cost(steps(5.0, 0.1, 50))),
            about(cost(steps(0.5, 0.1, 50))),
        ),
        ("DP-FETA, a class with one image", full, NONE),
        ("PE, number of images of each class", "nothing", NONE),
        ("PrivImage in DPImageBench, choice of classes", about(cost(gaussian(50.0))), NONE),
        ("DPDM, noise of a published seed", "0.2, 1, 10", NONE),
    ]


def table():
    """Return the table of the page, as Markdown."""
    lines = [f"| {system} | {stated} | {delivered} |" for system, stated, delivered in rows()]
    return "\n".join([BEGIN, "", "| system | states ε | delivers ε |", "|---|---|---|", *lines, "", END])


def test_the_page_shows_what_is_computed():
    text = PAGE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == table(), "run python tests/golden/test_published_faults.py docs/faults.md"


def test_the_limit_theorem_says_less_than_the_least_that_the_steps_cost():
    """dp-promise: σ = 1.13, 750 steps at q = 1/15. No tighter accounting can make 10 of it."""
    plan = (1.13, 1 / 15, 750)
    assert 9.9 < by_central_limit(*plan) < 10 < at_least(*plan) < cost(steps(*plan)) < 10.42
    first = (1 / 1875) * math.sqrt(3 * 1875 * math.expm1(4 * 784 * 2.752e-4 / (1 - 2.752e-4)))
    assert first == pytest.approx(0.047, abs=1e-3)  # μ, as it states the first phase


def test_dp_sapf_meets_ten_with_the_noise_of_the_row_under_poisson_batches():
    assert cost(gaussian(5.0), steps(1.5737, 4096 / 50_000, 1000), delta=OF_CIFAR) < 10.01


def test_a_bound_on_shuffled_batches_never_passes_that_of_one_batch():
    """With one batch an epoch nothing is hidden: epochs of a Gaussian mechanism, to the rounding of the cells."""
    exact = gaussian_epsilon(mu=math.sqrt(5) / 4, delta=DELTA)
    assert 0.97 * exact < shuffled(4.0, 1, 5) <= exact
    assert (
        cost(steps(1.25, 0.1, 300))
        < 10
        < shuffled(1.25, 10, 30)
        < gaussian_epsilon(mu=math.sqrt(30) / 1.25, delta=DELTA)
    )


def test_dp_promise_first_phase_shows_who_was_in_the_batch():
    """The gradient regresses on the noise. Noised image and noise together are the image: both are in the gradient.

    One step without noise, from a linear denoiser: its gradient is a sum over the batch of noise times noised image, so
    rows span the noised images, and columns the noises. An image that took part lies in what both span.
    """
    draw, pixels, batch, kept = np.random.default_rng(0), 196, 32, 2.752e-4
    images = draw.uniform(-1, 1, (batch + 1, pixels))

    def gradient(x):
        noise = draw.standard_normal(x.shape)
        return -2 * noise.T @ (math.sqrt(kept) * x + math.sqrt(1 - kept) * noise)

    def apart(gradient, image):
        left, sizes, right = np.linalg.svd(gradient)
        rank = int((sizes > 1e-9 * sizes[0]).sum())
        span = np.linalg.qr(np.concatenate([left[:, :rank], right[:rank].T], axis=1))[0]
        return np.linalg.norm(image - span @ (span.T @ image)) / np.linalg.norm(image)

    target, others = images[0], images[1:]
    assert apart(gradient(np.concatenate([[target], others[1:]])), target) < 1e-6
    assert apart(gradient(others), target) > 0.5


def test_one_kept_noisy_copy_of_each_image_is_sound_and_tells_its_mean_worse_than_a_sum():
    """dp-promise's first phase, mended: each copy is a Gaussian mechanism on one image, blanked out at most."""
    images, pixels, kept = 60_000, 784, 2.752e-4
    noise = math.sqrt((1 - kept) / kept)
    assert noise == pytest.approx(60.27, abs=0.01)
    assert gaussian_epsilon(mu=math.sqrt(pixels) / noise, delta=DELTA) == pytest.approx(1.84, abs=0.005)
    of_the_mean, of_a_sum = noise / math.sqrt(images), noise / images  # the same mu: one image moves both by 28
    assert of_the_mean / of_a_sum == pytest.approx(245, abs=0.1)


def test_dp_kernel_has_noise_in_the_length_of_its_gradient_alone():
    """A sample that carries no gradient is a constant to the optimizer: the loss's square scales with it, that is all.

    So the direction of every step is that of the step without noise, which tells two data sets apart.
    """
    torch.manual_seed(0)
    generator = torch.nn.Linear(2, 3)
    codes, images = torch.randn(6, 2), torch.rand(6, 3)

    def direction(real, noise_multiplier):
        made = generator(codes)
        points = torch.cat([real, made])
        kernel = sum(torch.exp(-torch.cdist(points, points).square() / (2 * width**2)) for width in (1.0, 2.0, 4.0))
        near = kernel[:6].mean(0)
        noise = math.sqrt(2 * 3) / 6 * noise_multiplier
        of_process = torch.distributions.MultivariateNormal(
            torch.zeros(12), kernel.detach() * max(noise, 1e-9) + 1e-6 * torch.eye(12)
        )
        near = near + of_process.sample()
        loss = (near[:6].mean() - 2 * near[6:].mean() + kernel[6:, 6:].mean()).square()
        found = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(generator.parameters()))])
        return found / found.norm()

    neighbour = torch.cat([torch.zeros(1, 3), images[1:]])
    for real, other in ((images, neighbour), (neighbour, images)):
        seen = direction(real, noise_multiplier=8.0)
        assert abs(float(seen @ direction(real, 0.0))) > 1 - 1e-4
        assert abs(float(seen @ direction(other, 0.0))) < 1 - 1e-3


def test_dp_feta_gives_a_rare_class_the_noise_of_a_full_one():
    """Noise for 600 images of each class in a batch, on a mean of three (or of two): 40 standard deviations apart."""
    draw, pixels = np.random.default_rng(0), 14 * 14  # reduced to a half

    def central(images):
        return images.mean(0) + draw.standard_normal(pixels) * 5 * math.sqrt(pixels) / (6000 // 10)

    two, three = np.zeros((2, pixels)), np.concatenate([np.zeros((2, pixels)), np.ones((1, pixels))])
    between = (1 / 3) / 2  # the decision, by the mean of all pixels: its noise has 5 / 600 as standard deviation
    assert between / (5 / 600) > 10  # so an error has probability 10^-88
    assert central(two).mean() < between < central(three).mean()
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
        assert np.isnan(central(two[:0])).all()  # and of none, no number at all


def test_pe_makes_as_many_images_of_a_class_as_there_are():
    """The share of each class is that of the private labels: with as many images, they are the counts."""

    def made(labels, count):
        share = np.bincount(labels, minlength=2) / len(labels) * count
        whole = np.floor(share + 1e-9).astype(int)
        whole[np.argsort(whole - share)[: count - whole.sum()]] += 1
        return whole.tolist()

    labels = np.array([0] * 99 + [1])
    assert made(labels, 100) == [99, 1]
    assert made(labels[:-1], 100) == [100, 0]


def test_noise_of_a_known_seed_is_subtracted():
    """DPImageBench seeds by 0 right before the histogram's noise; DPDM's code seeds all of it by its settings."""
    histogram = torch.tensor([[3.0, 0.0, 7.0, 1.0]])

    def released(counts):
        torch.manual_seed(0)
        return counts + torch.randn_like(counts) * math.sqrt(2) * 50.0

    torch.manual_seed(0)
    noise = torch.randn_like(histogram) * math.sqrt(2) * 50.0
    neighbour = histogram + torch.tensor([[1.0, 0.0, 1.0, 0.0]])  # one image more, which votes for two classes
    for counts in (histogram, neighbour):
        assert torch.equal((released(counts) - noise).round(), counts)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    page.write_text(text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :], encoding="utf-8")
