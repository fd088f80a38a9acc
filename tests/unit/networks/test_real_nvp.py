"""A flow: what it makes of rows can be undone, and its determinant is that of its derivative."""

import pytest
import torch

from dpdm.networks.real_nvp import RealNVP


def flow(numbers, *, couplings=5, moved=0.5):
    """Return a flow of three classes, whose parameters are far from those with which it begins."""
    torch.manual_seed(0)
    made = RealNVP(numbers, classes=3, couplings=couplings, width=8).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(moved * torch.randn_like(p))
    return made


@pytest.mark.parametrize("numbers", [2, 3, 8, 13])
def test_the_inverse_undoes_what_a_flow_does(numbers):
    made, x, labels = flow(numbers), torch.randn(6, numbers).double(), torch.arange(6) % 3
    normal, _ = made(x, labels)
    assert not torch.allclose(normal, x, atol=0.1)
    assert torch.allclose(made.inverse(normal, labels), x, atol=1e-9)
    assert torch.allclose(made(made.inverse(x, labels), labels)[0], x, atol=1e-9)


@pytest.mark.parametrize("numbers", [2, 5, 8])
def test_the_determinant_is_that_of_the_derivative(numbers):
    made, x, labels = flow(numbers), torch.randn(3, numbers).double(), torch.arange(3)
    _, log_det = made(x, labels)
    for row, label, found in zip(x, labels, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r, of=label: made(r[None], of[None])[0][0], row)
        sign, expected = torch.linalg.slogdet(jacobian)
        assert sign == 1
        assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_it_begins_as_the_identity_and_a_row_depends_on_itself_and_its_class():
    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    normal, log_det = RealNVP(6, classes=3, couplings=4, width=8)(x, labels)
    assert torch.equal(normal, x)
    assert torch.equal(log_det, torch.zeros(4))
    made = flow(6)
    normal, log_det = made(x.double(), labels)
    alone, of_one = made(x[2:3].double(), labels[2:3])
    assert torch.allclose(alone, normal[2:3], atol=1e-12)
    assert torch.allclose(of_one, log_det[2:3], atol=1e-12)
    other, _ = made(x.double(), labels.roll(1))
    assert not torch.allclose(other[1], normal[1], atol=1e-3)


def test_each_number_is_moved_and_moves_others():
    made, x = flow(7, couplings=4, moved=1.0), torch.randn(1, 7).double()
    labels = torch.zeros(1, dtype=torch.long)
    jacobian = torch.autograd.functional.jacobian(lambda r: made(r, labels)[0][0], x)[:, 0]
    off = jacobian - torch.diag(torch.diag(jacobian))
    assert (off.abs().sum(0) > 0).all()
    assert (off.abs().sum(1) > 0).all()
