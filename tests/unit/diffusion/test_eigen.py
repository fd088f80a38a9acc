"""Eigenvalues are found of matrices on which some processors' library gives up."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dpdm
from dpdm.diffusion.spectrum import eigen


def symmetric(*shape):
    drawn = torch.from_numpy(np.random.default_rng(0).normal(size=(*shape, shape[-1])))
    return drawn + drawn.mT


def is_decomposed(matrix):
    values, vectors = eigen(matrix)
    assert (values.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(vectors @ values.diag_embed() @ vectors.mT, matrix, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(len(matrix[0])).expand_as(matrix).double())


def test_features_most_of_which_are_zero_in_all_images_are_decomposed():
    """1,132 of 1,280 are: on a Xeon with AMX, torch 2.13.0 says that this fails to converge."""
    live = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 148))) / 60
    matrix = torch.zeros(1280, 1280, dtype=torch.float64)
    matrix[:148, :148] = live.T @ live
    values, vectors = eigen(matrix)
    assert (values > 1e-9).sum() == 60
    assert (vectors @ values.diag() @ vectors.T - matrix).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_where_torch_gives_up_numpy_goes_on(monkeypatch, shape):
    def gives_up(matrix):
        raise torch._C._LinAlgError("the algorithm failed to converge")

    is_decomposed(symmetric(*shape))
    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    is_decomposed(symmetric(*shape))


def test_a_matrix_that_is_not_finite_is_an_error():
    with pytest.raises((RuntimeError, np.linalg.LinAlgError)):
        eigen(torch.full((3, 3), torch.nan, dtype=torch.float64))


def test_nothing_else_in_the_package_asks_torch():
    package = Path(dpdm.__file__).parent
    asking = {path.name for path in package.rglob("*.py") if "linalg.eig" in path.read_text(encoding="utf-8")}
    assert asking == {"spectrum.py"}
