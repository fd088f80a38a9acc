import os

import pytest
import torch

os.environ.setdefault("DPDM_LEDGER", "none")  # what tests train is not for the user's own ledger


@pytest.fixture(scope="module")
def one_thread():
    """For networks too small for more: threads that wait for one another are slow on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
