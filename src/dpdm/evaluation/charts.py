"""Charts as SVG, drawn by the macros of `charts.svg`, which a page may use as well."""

import math
from collections.abc import Mapping, Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

Rates = Sequence[tuple[float, float]]
"""False-positive rates, with the true-positive rate at each."""


def templates(package: str) -> Environment:
    """Return the templates that lie in a package, beside the charts: whatever they are given is escaped."""
    here = [PackageLoader(name, "") for name in dict.fromkeys((package, "dpdm.evaluation"))]
    found = Environment(loader=ChoiceLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found.filters |= {"px": "{:.1f}".format, "rounded_up": _rounded_up, "rate_place": _rate_place}
    found.globals["rate_place"] = _rate_place
    return found


def roc_chart(attacks: Mapping[str, Rates], ceiling: Rates) -> str:
    """Return a file that shows true against false positives of each attack, below what the audited sums allow."""
    text = '{% import "charts.svg" as charts %}{{ charts.roc(attacks, ceiling, alone=true) }}'
    return templates("dpdm.evaluation").from_string(text).render(attacks=attacks, ceiling=ceiling).strip()


def _rate_place(rates: tuple[float, float]) -> tuple[float, float]:
    """Return where (false, true) positives lie in a chart, in logarithms from 0.001 on."""
    x, y = (1 + math.log10(min(1.0, max(1e-3, rate))) / 3 for rate in rates)
    return 54 + 360 * x, 12 + 360 * (1 - y)


def _rounded_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-12))
