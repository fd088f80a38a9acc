"""Fifty processes that reserve at once from one ledger: `python many_at_once.py URL`, prints who was let in."""

import json
import os
import sys

import numpy as np

from dpdm.ledger import Ledger, Records
from dpdm.privacy import DPSGD
from dpdm.types import InputError

PROCESSES = 50
SCANS = Records("scans", np.zeros((4, 8, 8, 1), np.uint8))
RUN = DPSGD(dataset_size=100, expected_batch_size=10, steps=0, delta=1e-5, releases={"first": 10.0})


def reserve(url: str, number: int) -> bool:
    """Reserve and complete one run; whether it was let in."""
    ledger = Ledger(url)
    try:
        ledger.reserve(f"run {number}", RUN, SCANS, place=f"runs/{number}")
    except InputError:
        return False
    ledger.complete(f"run {number}", RUN.events())
    return True


def main(url: str) -> None:
    """Start all processes behind one gate, open it, and gather what they say."""
    RUN.epsilon()  # imports and computes once, for all
    gate, opened = os.pipe()
    results = []
    for number in range(PROCESSES):
        answer, mine = os.pipe()
        if os.fork() == 0:
            os.close(opened)
            os.read(gate, 1)
            try:
                os.write(mine, b"1" if reserve(url, number) else b"0")
            finally:
                os._exit(0)
        os.close(mine)
        results.append(answer)
    os.close(opened)
    print(json.dumps([os.read(answer, 1).decode() for answer in results]))


if __name__ == "__main__":
    main(sys.argv[1])
