"""What a sequence of Gaussian releases costs: ε(δ), and the noise that meets a target ε.

Events are data. dp-accounting interprets them, by privacy loss distributions (PLD, the number that is claimed) and by
Rényi divergences (RDP, the second opinion). Both are upper bounds; PLD is the tighter one.
"""

import dataclasses
import functools
import logging
import math
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dpdm.types import InputError, require_counts_or_none, require_in_range, require_positive

Relation = Literal["add_or_remove_one", "replace_special"]
"""What "neighbouring" means: one record more or fewer, or (size public) one record replaced by a blank."""

Accountant = Literal["pld", "rdp"]


@dataclass(frozen=True, kw_only=True)
class GaussianRelease:
    """One sum over all records with Gaussian noise of `noise_multiplier` times its L2 sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        require_in_range(noise_multiplier=self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))  # one number has one spelling


@dataclass(frozen=True, kw_only=True)
class PoissonGaussianSteps:
    """`steps` noisy sums, each over records that enter independently with probability `sample_rate`."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        require_in_range(noise_multiplier=self.noise_multiplier)
        require_positive(sample_rate=self.sample_rate)
        if self.sample_rate > 1:
            raise InputError(f"sample_rate is a probability, not {self.sample_rate}")
        require_counts_or_none(steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class ShardGaussianSteps(PoissonGaussianSteps):
    """`steps` noisy sums, each over shards of records that enter independently with probability `sample_rate`.

    One record may exchange the vector of its whole shard. No vector is longer than half of the sensitivity, so an
    exchanged one is at most the sensitivity away. Unlike in `PoissonGaussianSteps`, neither world is then the one in
    which the shard adds nothing. A step follows from two independent sums, each with half of the noise's variance: the
    old vector enters one of them, and the new one the other. Each is at most half of the sensitivity.
    """


@dataclass(frozen=True, kw_only=True)
class RepeatedSelection:
    """The best of a random number of runs, each of which releases `events`; of the others, nothing is released.

    The number of runs follows the truncated negative binomial distribution of this `mean` and `shape`: geometric for a
    shape of 1, logarithmic for 0. Only RDP can account for it.

    Source:
        Papernot & Steinke 2022.
    """

    events: "tuple[GaussianRelease | PoissonGaussianSteps, ...]"
    mean: float
    shape: float

    def __post_init__(self) -> None:
        require_positive(mean=self.mean)
        if not self.mean > 1:
            raise InputError(f"mean must be above 1, the least number of runs there can be, not {self.mean}")
        if not 0 <= self.shape < math.inf:
            raise InputError(f"shape must be a number from 0, not {self.shape}")
        if any(isinstance(event, RepeatedSelection) for event in self.events):
            raise InputError("a search among searches cannot be accounted for")


Event = GaussianRelease | PoissonGaussianSteps | ShardGaussianSteps | RepeatedSelection

_PLD_ENDS = 90.0, 110.0  # ε by RDP, between which the claim goes over from PLD to RDP: PLD takes ever longer beyond
_RDP_IS_ENOUGH = 50.0  # beyond this ε a guess can be as good as certain
_RDP_REACHES = 0.05  # below this ε the orders of RDP end, and only PLD can bracket a calibration
_PLD_REACHES = 1e-12  # below this δ its round-off of 1e-15 counts, and may hide what δ should have paid for
_RDP_ROUNDS_BELOW = 1e-6  # below this ε the RDP bound can round to nothing
_TOLERANCE = 5e-4  # of a calibrated noise multiplier
_OF_ARITHMETIC = 1e-7  # of ε, or ε below 1: ten times what processors were seen to differ by
_ORDERS = (1.1, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 128, 256, 512)


def epsilon(events: Sequence[Event], *, delta: float, relation: Relation, accountant: Accountant = "pld") -> float:
    """Return the ε that all `events` together cost at `delta`.

    Args:
        events: What is released, in any order; composition is exact up to numerical pessimism.
        delta: δ in (0, 1).
        relation: The neighbouring relation of the claim.
        accountant: "pld" for the claim, "rdp" for the second opinion.

    Returns:
        An upper bound on ε. Where PLD is unfit, "pld" is the RDP bound: for a `RepeatedSelection`, above ε = 110, at
        a δ below 10⁻¹², and where the round-off of PLD at a tiny δ would make it the larger of the two. From an RDP
        bound of 90 to one of 110 it is a mixture of both, so that no ε is out of a calibration's reach.

    Source:
        PLD: Doroshenko et al. 2022 (connect-the-dots). RDP: Mironov 2017; Zhu & Wang 2019. Exchanged vectors of shards
        are ours, by two sums that dominate each step, and their composition (Zhu, Dong & Wang 2022).
    """
    return _epsilon(tuple(merged(events)), delta, relation, accountant)


@functools.cache
def _epsilon(events: tuple[Event, ...], delta: float, relation: Relation, accountant: Accountant) -> float:
    if all(isinstance(event, PoissonGaussianSteps) and not event.steps for event in events):
        return 0.0
    by_rdp: Any = _rdp_accountant(relation)
    for event in events:
        by_rdp._rdp += _rdp_of(event, relation)  # as composing them all does, to the last bit
    rdp = float(by_rdp.get_epsilon(delta))
    pure, end = _PLD_ENDS
    if accountant == "rdp" or rdp > end or any(isinstance(event, RepeatedSelection) for event in events):
        return rdp
    if delta < _PLD_REACHES and rdp > _RDP_ROUNDS_BELOW:
        return rdp
    interval = 1e-5 if rdp < 0.55 else 1e-4 if rdp < 15 else 1e-3 * max(1, rdp / 50) ** 3  # of ever wider distributions
    pld = float(_compose(_pld_accountant(relation, interval=interval), events).get_epsilon(delta))
    if rdp > pure:
        pld += max(0.0, rdp - pld) * (rdp - pure) / (end - pure)
    return min(pld, rdp) if rdp > _RDP_ROUNDS_BELOW else pld


@functools.cache
def _rdp_of(event: Event, relation: Relation) -> Any:  # noqa: ANN401 (dp-accounting has no types)
    """Return an event's divergences at the usual orders: a ledger asks for sums of the same ones again and again."""
    return _compose(_rdp_accountant(relation), [event])._rdp


def merged(events: Sequence[Event]) -> list[Event]:
    """Return fewer events that cost the same: one Gaussian release for all, and equal steps counted together.

    Source:
        Dong, Roth & Su 2022, corollary 2: the squares of μ, which is 1 / noise multiplier, add up.
    """
    precision, steps, others = 0.0, Counter[tuple[type[PoissonGaussianSteps], float, float]](), []
    for event in events:
        match event:
            case GaussianRelease(noise_multiplier=noise):
                precision += noise**-2
            case PoissonGaussianSteps(noise_multiplier=noise, sample_rate=1.0, steps=taken):  # all records take part
                precision += taken * noise**-2
            case PoissonGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=taken):
                steps[type(event), noise, rate] += taken
            case RepeatedSelection():
                others.append(event)
    # At the least noise there can be, ε is 10³⁸ already.
    whole: list[Event] = [GaussianRelease(noise_multiplier=max(precision**-0.5, 2.0**-64))] if precision else []
    whole += [kind(noise_multiplier=each, sample_rate=rate, steps=n) for (kind, each, rate), n in steps.items()]
    return [*whole, *others]


def renyi_divergence(events: Sequence[Event], *, order: float, relation: Relation) -> float:
    """Return the Rényi divergence of `order`, above 1, that all `events` together are within: it adds up over events.

    Source:
        Mironov 2017; Zhu & Wang 2019 (Poisson sampling); Papernot & Steinke 2022 (selection).
    """
    return sum(_renyi_divergence(event, order, relation) for event in events)


@functools.cache
def _renyi_divergence(event: Event, order: float, relation: Relation) -> float:
    # A selection's bound at one order is a minimum over others, so the usual ones come along.
    orders = [*_ORDERS, order] if isinstance(event, RepeatedSelection) else [order]
    found: Any = _compose(_rdp_accountant(relation, orders=orders), [event])
    divergence = float(found._rdp[-1])  # which dp-accounting computes and has no public name for
    return divergence if divergence >= 0 else math.inf  # "not a number" too: nothing is known


def decode_event(table: dict[str, Any]) -> Event:
    """Return the event that a claim's or a ledger's table of it describes.

    Raises:
        InputError: It is of an unknown type, or its numbers are impossible.
    """
    values = dict(table)
    kind = values.pop("type", None)
    try:
        if kind == "RepeatedSelection":
            values["events"] = tuple(map(decode_event, values["events"]))
        made: Event = {cls.__name__: cls for cls in typing.get_args(Event)}[kind](**values)
    except (KeyError, TypeError) as error:
        raise InputError(f"{table!r} is no event that this version can account for ({error})") from None
    return made


def encode_event(event: Event) -> dict[str, Any]:
    """Return the table that `decode_event` takes."""
    table = {"type": type(event).__name__, **dataclasses.asdict(event)}
    if isinstance(event, RepeatedSelection):
        table["events"] = [encode_event(of_each) for of_each in event.events]
    return table


def calibrate(
    events_of: Callable[[float], Sequence[Event]], *, target: float, delta: float, relation: Relation
) -> float:
    """Return the smallest noise multiplier, to 0.05 %, whose events cost at most `target`.

    RDP brackets the answer in a quarter of a second. So PLD is evaluated a few times, and never at a noise level so
    small that its distribution would be huge. For a tiny ε, PLD goes on from there by itself.

    Args:
        events_of: Maps a noise multiplier to the events it would produce.
        target: ε > 0.
        delta: δ in (0, 1).
        relation: The neighbouring relation of the claim.

    Guarantees:
        * epsilon(events_of(result)) < target, recomputed before returning, by more than what another processor's
          arithmetic may add: a figure that is kept costs at most the target wherever its ε is computed.

    Raises:
        InputError: When no noise multiplier up to 10^6 reaches the target.
    """
    require_positive(epsilon=target)
    margin = _OF_ARITHMETIC * min(target, 1)
    aim = target - 2 * margin

    def cost(noise_multiplier: float, accountant: Accountant) -> float:
        return epsilon(events_of(noise_multiplier), delta=delta, relation=relation, accountant=accountant)

    def excess(noise_multiplier: float, accountant: Accountant) -> float:
        return math.log(max(cost(noise_multiplier, accountant), 1e-300) / aim)  # ε is 0 where δ covers everything

    def double(noise_multiplier: float, enough: float, accountant: Accountant) -> float:
        while cost(noise_multiplier, accountant) > enough:
            noise_multiplier *= 2
            if noise_multiplier > 1e6:
                raise InputError(
                    f"epsilon = {target} at delta = {delta} cannot be reached by any amount of noise: these "
                    f"releases cost at least {upwards(cost(noise_multiplier, accountant))}; ask for a larger epsilon "
                    "or fewer releases"
                )
        return noise_multiplier

    reached = max(aim, _RDP_REACHES)
    try:
        high = double(1.0, reached, "rdp")
        low = high / 2
        while cost(low, "rdp") <= reached:
            low /= 2
        high = low = _root(lambda noise: excess(noise, "rdp") + math.log(aim / reached), low, high) * 1.001
    except InputError:  # what other releases cost is too much for RDP, and perhaps not for PLD
        high = low = 1.0
    high = double(high, aim, "pld")
    while cost(low := low * 0.85, "pld") <= aim:
        high = low
    result = _root(lambda noise: excess(noise, "pld"), low, high)
    while cost(result, "pld") > target - margin:
        result *= 1 + _TOLERANCE / 2
    return result


def true_positive_rates(
    events: Sequence[Event], *, false_positive_rates: Sequence[float], relation: Relation
) -> list[float]:
    """Return the most true positives that guesses "this record took part" can have at each of `false_positive_rates`.

    That is for anyone who sees every release and knows all other records. The bound is the least over all (ε, δ) that
    the events satisfy, so it is at or below that of any single pair.

    Source:
        Kairouz, Oh & Viswanath 2015: the two lines that (ε, δ)-DP puts above every trade-off.
    """
    import numpy as np

    events = merged(events)
    about = epsilon(events, delta=1e-6, relation=relation, accountant="rdp")
    if about > _RDP_IS_ENOUGH:
        return [1.0 for _ in false_positive_rates]
    epsilons = np.linspace(0, 20, 2001)
    if any(isinstance(event, RepeatedSelection) for event in events):
        by_rdp = _compose(_rdp_accountant(relation), events)
        deltas = np.array([by_rdp.get_delta(epsilon) for epsilon in epsilons])
    else:
        interval = 1e-4 if about < 3 else 5e-4 if about < 15 else 1e-3  # for seconds, of whatever plan
        deltas = np.asarray(_compose(_pld_accountant(relation, interval=interval), events).get_delta(epsilons))
    deltas = deltas.clip(0, 1)
    bounds = []
    for rate in false_positive_rates:
        first = np.exp(epsilons) * rate + deltas
        second = 1 - np.exp(-epsilons) * (1 - deltas - rate)
        bounds.append(float(min(first.min(), second.min(), 1.0)))
    return bounds


def round_up(epsilon: float) -> float:
    """Round ε to four decimals, upwards: a printed claim is never below the computed one."""
    return math.ceil(epsilon * 1e4) / 1e4


def upwards(epsilon: float) -> str:
    """Say ε to four decimals, upwards and in full: 1, 9.9995, 123.4562."""
    return f"{round_up(epsilon):.4f}".rstrip("0").rstrip(".") if epsilon < math.inf else "∞"


def downwards(epsilon: float) -> str:
    """Say a lower bound of ε to three decimals, downwards: never more than was proved."""
    return f"{math.floor(epsilon * 1e3) / 1e3:.3f}" if epsilon < math.inf else "∞"


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where the falling `function` crosses zero, to a relative tolerance; in logarithms ε(σ) is near a line."""
    from scipy.optimize import brentq

    return math.exp(brentq(lambda x: function(math.exp(x)), math.log(low), math.log(high), xtol=_TOLERANCE / 4))


def _compose(accountant: object, events: Sequence[Event]) -> Any:  # noqa: ANN401 (dp-accounting has no types)
    import dp_accounting
    from dp_accounting import dp_event, pld

    assert isinstance(accountant, dp_accounting.PrivacyAccountant)

    def translated(event: Event) -> Any:  # noqa: ANN401
        match event:
            case GaussianRelease(noise_multiplier=noise):
                return dp_accounting.GaussianDpEvent(noise)
            case ShardGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=steps):  # divergences add up
                half = {"noise_multiplier": math.sqrt(2) * noise, "sample_rate": rate}
                return translated(PoissonGaussianSteps(**half, steps=2 * steps))
            case PoissonGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=steps):
                step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
                return dp_accounting.SelfComposedDpEvent(step, steps) if steps else dp_accounting.NoOpDpEvent()
            case RepeatedSelection(events=events, mean=mean, shape=shape):
                run = dp_accounting.ComposedDpEvent([translated(of_each) for of_each in events])
                return dp_event.RepeatAndSelectDpEvent(run, mean, shape)

    for event in events:
        if isinstance(event, ShardGaussianSteps) and event.steps and isinstance(accountant, pld.PLDAccountant):
            accountant._pld = accountant._pld.compose(_exchanged(event, accountant._value_discretization_interval))
        else:
            accountant.compose(translated(event))
    return accountant


def _exchanged(event: ShardGaussianSteps, interval: float) -> Any:  # noqa: ANN401
    """Return the privacy losses of a vector that leaves one sum of each step and of another that enters a second one.

    Losses of a record that enters, or of one that leaves, are not those of an exchange; composed, they bound them.
    """
    from dp_accounting.pld import privacy_loss_distribution as of

    noise, rate = math.sqrt(2) * event.noise_multiplier, event.sample_rate
    one = of.from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate)
    return of.PrivacyLossDistribution(one._pmf_remove.compose(one._pmf_add)).self_compose(event.steps)


def _pld_accountant(relation: Relation, *, interval: float) -> object:
    from dp_accounting import NeighboringRelation, pld

    return pld.PLDAccountant(NeighboringRelation[relation.upper()], value_discretization_interval=interval)


def _rdp_accountant(relation: Relation, *, orders: Sequence[float] | None = None) -> object:
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of orders that it leaves out, which is harmless
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from dp_accounting import NeighboringRelation, rdp

    return rdp.RdpAccountant(orders, neighboring_relation=NeighboringRelation[relation.upper()])
