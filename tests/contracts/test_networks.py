"""What every network promises: one example never sees another, and all that per-example gradients need."""

import os

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import clipped_grad_sum
from strategies import every_strategy

NETWORKS = [CompactUNet(width=16), MLP(width=24, blocks=2), UNet(width=8, multipliers=(1, 2), blocks=1, attention=())]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 30, 33), (4, 32, 32)]  # channel, height, width
CASES = [
    *((spec, shape, classes) for spec in NETWORKS for shape in SHAPES for classes in (0, 10)),
    (CompactUNet(width=32, blocks=2, patch=4), (3, 30, 33), 10),  # more than one group, block, and padded row
    (UNet(width=16, attention=(8, 16)), (3, 30, 33), 10),  # attention at two levels, and padded rows
]
BATCH = 4


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=CASES, ids=lambda case: f"{type(case[0]).__name__}{case[0].width}-{case[1]}-{case[2]}-classes")
def case(request):
    return request.param


@pytest.fixture
def spec(case):
    return case[0]


@pytest.fixture
def shape(case):
    return case[1]


@pytest.fixture
def num_classes(case):
    return case[2]


@pytest.fixture
def fresh(spec, shape, num_classes):
    """The network as built."""
    torch.manual_seed(0)
    return spec.build(shape, num_classes=num_classes)


@pytest.fixture
def network(fresh):
    """The network after small random changes of all parameters, as training makes them."""
    perturb(fresh)
    return fresh


def perturb(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def inputs(shape, num_classes):
    """Images, noise levels and labels, the null label among them."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(num_classes + 1, (BATCH,), generator=generator)
    labels[0] = num_classes
    return torch.randn(BATCH, *shape, generator=generator), torch.randn(BATCH, generator=generator), labels


def test_initial_output_is_zero_in_the_shape_of_the_images(fresh, inputs):
    raw = fresh(*inputs)
    assert raw.shape == inputs[0].shape
    assert raw.dtype == torch.float32
    assert (raw == 0).all()


@torch.no_grad()
def test_output_depends_on_the_image_and_on_the_noise_level(network, inputs):
    x, c_noise, labels = inputs
    before = network(x, c_noise, labels)
    assert before.shape == x.shape
    assert before.isfinite().all()
    for after in (network(x + 0.1, c_noise, labels), network(x, c_noise + 0.1, labels)):
        assert ((after - before).flatten(1).abs().amax(dim=1) > 1e-4).all()


@torch.no_grad()
def test_no_example_sees_another(network, inputs):
    before = network(*inputs)
    for j in (0, BATCH - 1):
        x, c_noise, labels = (part.clone() for part in inputs)
        x[j], c_noise[j], labels[j] = float("nan"), 30.0, 0
        after = network(x, c_noise, labels)
        others = [i for i in range(BATCH) if i != j]
        torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)
        assert after[j].isnan().any()


@torch.no_grad()
def test_example_alone_has_the_output_it_has_in_a_batch(network, inputs):
    together = network(*inputs)
    for i in range(BATCH):
        alone = network(*(part[i : i + 1] for part in inputs))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_permuted_batch_has_the_permuted_output(network, inputs):
    order = torch.tensor([2, 0, 3, 1])
    permuted = network(*(part[order] for part in inputs))
    torch.testing.assert_close(permuted, network(*inputs)[order], rtol=1e-5, atol=1e-5)


def test_gradient_reaches_every_parameter(network, inputs):
    network(*inputs).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_at_the_start_is_finite_and_not_zero(fresh, inputs):
    (fresh(*inputs) - inputs[0]).square().mean().backward()
    gradients = [parameter.grad for parameter in fresh.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)


def test_gradients_per_example_by_vmap_are_those_of_a_loop(network, inputs):
    network.double()
    inputs = inputs[0].double(), inputs[1].double(), inputs[2]
    parameters = dict(network.named_parameters())

    def loss(parameters, x, c_noise, label):
        return functional_call(network, parameters, (x[None], c_noise[None], label[None])).square().mean()

    rows = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *inputs)
    for i in (0, BATCH - 1):
        one = network(*(part[i : i + 1] for part in inputs)).square().mean()
        for name, gradient in zip(parameters, torch.autograd.grad(one, list(parameters.values())), strict=True):
            scale = gradient.abs().max().item()
            torch.testing.assert_close(rows[name][i], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_bfloat16_autocast_computes_the_same_up_to_its_precision_and_can_be_differentiated(network, inputs):
    exact = network(*inputs).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = network(*inputs)
    raw.float().square().mean().backward()
    assert raw.shape == exact.shape
    assert ((raw.float() - exact).norm() / exact.norm()).item() < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_network_has_no_layer_that_mixes_a_batch_and_no_randomness(network, inputs):
    forbidden = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    assert not [module for module in network.modules() if isinstance(module, forbidden)]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad():
        training = network.train()(*inputs)
        assert torch.equal(network.eval()(*inputs), training)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())


@torch.no_grad()
def test_labels_matter_after_training_and_the_null_label_is_one_more_than_the_classes(network, inputs, num_classes):
    x, c_noise, _ = (part[:1].expand(num_classes + 1, *part.shape[1:]) for part in inputs)
    raw = network(x, c_noise, torch.arange(num_classes + 1)).flatten(1)
    distances = torch.cdist(raw, raw, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(1)
    assert (distances > 1e-3).all()
    with pytest.raises(IndexError):
        network(x[:1], c_noise[:1], torch.tensor([num_classes + 1]))


def test_state_is_the_parameters_alone_and_restores_the_network(network, inputs, spec, shape, num_classes):
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    other = spec.build(shape, num_classes=num_classes)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(*inputs), network(*inputs))


@pytest.mark.parametrize("spec", NETWORKS, ids=repr)
def test_same_seed_builds_the_same_network(spec):
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(spec.build((1, 8, 8), num_classes=2))
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)


def test_specifications_are_frozen_values():
    for spec in NETWORKS:
        assert hash(spec) == hash(type(spec)(**vars(spec)))
        assert spec == type(spec)(**vars(spec))
        with pytest.raises(AttributeError):
            spec.width = 64


@every_strategy
@pytest.mark.proof
def test_clipped_gradients_in_bfloat16_are_those_in_float32_up_to_its_precision(network, inputs, strategy):
    x, _, labels = inputs
    loss, denoiser = DenoisingLoss(noise_multiplicity=2), PreconditionedDenoiser(network, EDM())
    batch = loss.draw(x, labels, null_label=0, noise_levels=EDM().noise_levels, random_bytes=os.urandom)
    exact = clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy).vector
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy).vector
    assert 0 < (coarse - exact).norm() < 0.1 * exact.norm()
