"""Every way of computing clipped gradients that settings know, so that a new one is asked all that the others are."""

from typing import get_args, get_type_hints

import pytest

from dpdm.config import Machine

STRATEGIES = {name: Machine(strategy=name).clipping for name in get_args(get_type_hints(Machine)["strategy"])}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
