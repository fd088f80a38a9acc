"""What `dpdm audit` tests of noise and batches."""

import numpy as np
import pytest
from scipy.stats import poisson

from dpdm.audit import parametric


@pytest.mark.parametrize("counted", [0.5, 1.7, 5.0, 17.0, 100.0, 3000.0])
def test_limits_hold_for_counts_of_rare_events(counted):
    """Of overlaps that are Poisson, sound ones are beyond the limits no more often than said."""
    seen = np.arange(int(counted + 40 * counted**0.5 + 40))
    beyond = [not parametric._around_one("overlap", k / counted, 1 / counted).passed for k in seen]
    assert poisson.pmf(seen[beyond], counted).sum() <= parametric._SIGNIFICANCE
    assert beyond[-1]  # and not everything passes
