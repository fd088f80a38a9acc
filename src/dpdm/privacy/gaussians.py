"""What Gaussian releases cost in closed form: ε, δ and μ, the sensitivity ÷ the noise."""

import math

from dpdm.types import InputError, require_positive


def gaussian_mu(*, epsilon: float, delta: float) -> float:
    """Return the μ of the Gaussian mechanism that is exactly (ε, δ)-DP: its sensitivity ÷ its noise.

    The squares of several mechanisms' μ add up to that of all, so they are shares of a budget.

    Raises:
        InputError: `epsilon` or `delta` is not positive, or `delta` not below 1.

    Source:
        Dong, Roth & Su 2022, corollary 1 (δ of μ and ε) and corollary 2 (composition).
    """
    from scipy.optimize import brentq

    require_positive(epsilon=epsilon, delta=delta)
    if delta >= 1:
        raise InputError(f"delta must be below 1, not {delta}")
    high = 1.0
    while _gaussian_delta(high, epsilon) < delta:
        high *= 2
    low = high / 2
    while _gaussian_delta(low, epsilon) > delta:
        low /= 2
    return float(brentq(lambda mu: _gaussian_delta(mu, epsilon) - delta, low, high, rtol=1e-12))


def gaussian_epsilon(*, mu: float, delta: float) -> float:
    """Return the ε at which the μ-Gaussian mechanism is exactly (ε, δ)-DP: the inverse of `gaussian_mu`."""
    from scipy.optimize import brentq

    if mu <= 0 or _gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while _gaussian_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda epsilon: _gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-12))


def _gaussian_delta(mu: float, epsilon: float) -> float:
    from scipy.special import log_ndtr

    return math.exp(log_ndtr(mu / 2 - epsilon / mu)) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
