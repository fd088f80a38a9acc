"""Tiny tensors: one thread. The same plan's ε is asked for in dozens of worlds: computed once for equal arguments."""

import functools

import pytest
import torch

from dpdm.privacy import accounting, plan


@pytest.fixture(scope="package", autouse=True)
def _quick():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cached = functools.lru_cache(
        lambda events, delta, relation, accountant: accounting.epsilon(
            events, delta=delta, relation=relation, accountant=accountant
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plan,
            "epsilon",
            lambda events, *, delta, relation, accountant="pld": cached(tuple(events), delta, relation, accountant),
        )
        yield
    torch.set_num_threads(threads)
