import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """For networks too small for more: threads that wait for one another are slow on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
