"""W + B A beside each matrix of a network: what it computes, shares and trains, and its gradients by every strategy."""

import copy

import pytest
import torch
from torch import nn

from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.methods import ImageFacts
from dpdm.methods.made_up import bytes_of_one, made_up_batch
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.networks.low_rank import LowRank, low_rank, matrices, merged
from dpdm.privacy import LayerWise, OneBackwardEach, clipped_grad_sum
from dpdm.runs.rehearsal import bytes_of_parameters
from strategies import every_strategy

pytestmark = pytest.mark.usefixtures("one_thread")
FACTS = ImageFacts((1, 16, 16), ("a", "b", "c"))
NETWORKS = {
    "compact U-Net": CompactUNet(width=16),
    "U-Net with attention": UNet(width=16, multipliers=(1, 2), blocks=1, attention=(8,)),
    "MLP": MLP(width=8, blocks=1),
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def built(network):
    torch.manual_seed(0)
    made = network.build(FACTS.shape, num_classes=3)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def moved(network):
    """Return the network with A and B that are not as they began."""
    adapted = low_rank(network, 4, seed=0)
    for layer in adapted.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.b.weight, std=0.1)
    return adapted


def answer(network):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(5, *FACTS.shape, generator=random)
    return network(x, torch.linspace(-1, 1, 5), torch.tensor([0, 1, 2, 3, 0]))


@every_network
def test_it_begins_as_the_network_it_is_made_of_and_shares_its_tensors(network):
    plain = built(network)
    before = copy.deepcopy(plain.state_dict())
    adapted = low_rank(plain, 4, seed=0)
    assert torch.equal(answer(adapted), answer(plain))
    plain.load_state_dict({name: tensor + 1 for name, tensor in before.items()})
    assert torch.equal(answer(adapted), answer(plain)), "a start is loaded into both"
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained == [f"{name}.{part}.weight" for name in matrices(plain) for part in "ab"]


@every_network
def test_merged_into_the_plain_network_it_answers_the_same(network):
    plain = built(network)
    adapted = moved(plain)
    whole = copy.deepcopy(plain)
    weights = dict(merged(adapted))
    assert [*weights] == [f"{name}.weight" for name in matrices(plain)]
    whole.load_state_dict(plain.state_dict() | weights)
    assert torch.allclose(answer(whole), answer(adapted), atol=1e-4)
    assert not torch.allclose(answer(whole), answer(plain), atol=1e-2)


def test_rows_of_a_are_at_right_angles_and_the_rank_is_no_more_than_a_matrix_has():
    network = built(CompactUNet(width=16))
    ranks = []
    for layer in low_rank(network, 100, seed=3).modules():
        if isinstance(layer, LowRank):
            rows = layer.a.weight.flatten(1)
            ranks.append(len(rows))
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
            assert len(rows) <= min(layer.layer.weight.flatten(1).shape)
    assert min(ranks) < max(ranks) <= 100
    one, same, other = (low_rank(network, 2, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.a.weight"], other["stem.a.weight"])


@every_strategy
@every_network
@pytest.mark.parametrize("copies", [1, 2])
def test_gradients_of_a_and_b_are_those_of_one_backward_pass_for_each_example(network, strategy, copies):
    loss = DenoisingLoss(noise_multiplicity=copies)
    denoiser = PreconditionedDenoiser(moved(built(network)), EDM())
    batch = made_up_batch(loss, denoiser, FACTS)
    settings = {"max_grad_norm": 0.5}
    wanted = clipped_grad_sum(loss, denoiser, batch, strategy=OneBackwardEach(), **settings)
    found = clipped_grad_sum(loss, denoiser, batch, strategy=strategy, **settings)
    assert len(found.vector) == sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    assert (found.vector - wanted.vector).norm() <= 1e-4 * wanted.vector.norm()


@every_network
def test_the_chain_rule_says_what_the_gradients_of_a_and_b_are(network):
    """∂/∂B = G Aᵀ and ∂/∂A = Bᵀ G, with the gradient G of the merged weight."""
    plain = built(network)
    adapted = moved(plain)
    whole = copy.deepcopy(plain).requires_grad_(True)
    whole.load_state_dict(plain.state_dict() | dict(merged(adapted)))
    answer(adapted).square().sum().backward()
    answer(whole).square().sum().backward()
    for name in matrices(plain):
        layer, gradient = adapted.get_submodule(name), whole.get_submodule(name).weight.grad.flatten(1)
        a, b = layer.a.weight.detach().flatten(1), layer.b.weight.detach().flatten(1)
        for found, wanted in ((layer.b.weight.grad, gradient @ a.T), (layer.a.weight.grad, b.T @ gradient)):
            assert torch.allclose(found.flatten(1), wanted, rtol=1e-3, atol=1e-3 * float(wanted.norm()))


def test_frozen_weights_cost_no_row_of_a_gradient_and_an_eighth_of_the_memory():
    loss, network = DenoisingLoss(noise_multiplicity=2), built(CompactUNet(width=16))
    whole = PreconditionedDenoiser(network, EDM())
    numbers = sum(parameter.numel() for parameter in network.parameters())
    kept, held = bytes_of_one(loss, whole, FACTS), bytes_of_parameters(whole)
    assert held == 44 * numbers
    network.requires_grad_(False)
    network.head.weight.requires_grad_(True)
    few = network.head.weight.numel()
    assert bytes_of_one(loss, whole, FACTS) <= kept - 4 * (numbers - few)
    assert bytes_of_parameters(whole) == 8 * numbers + 36 * few


def test_squared_norms_of_each_parameter_are_those_of_one_backward_pass():
    loss, denoiser = DenoisingLoss(noise_multiplicity=2), PreconditionedDenoiser(built(CompactUNet(width=16)), EDM())
    batch = made_up_batch(loss, denoiser, FACTS)
    found = LayerWise().squared_norms(loss, denoiser, batch)
    for number, rows in enumerate(OneBackwardEach()(loss, denoiser, batch)):
        parts = rows.rows[0].split([p.numel() for p in denoiser.parameters()])
        for squared, part in zip(found, parts, strict=True):
            assert float(squared[number]) == pytest.approx(float(part.double().square().sum()), rel=1e-3)
