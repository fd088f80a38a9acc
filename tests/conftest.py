import os

import jaxtyping
import pytest
import torch

import shapes

os.environ.setdefault("DPDM_LEDGER", "none")  # what tests train is not for the user's own ledger
shapes.install()  # before any test imports the package


@pytest.fixture
def unchecked():
    """For arguments that the package itself refuses: nobody but the tests checks shapes before it does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def one_thread():
    """For networks too small for more: threads that wait for one another are slow on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
