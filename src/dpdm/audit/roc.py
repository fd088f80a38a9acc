"""ROC curves as an SVG: true against false positives, both in logarithms, below what the audited sums allow."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

Curve = tuple[Sequence[float] | ndarray, Sequence[float] | ndarray]
"""False-positive rates, and the true-positive rate at each."""

_SIDE, _LEFT, _TOP = 360, 54, 12  # of the square that the curves lie in
_LOWEST = 1e-3  # rate at which both axes begin
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def roc_picture(attacks: Mapping[str, Curve], ceiling: Curve) -> str:
    """Return the picture.

    Args:
        attacks: The curve of each attack, by its name.
        ceiling: The most true positives that the audited sums allow.
    """
    right, bottom = _LEFT + _SIDE, _TOP + _SIDE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 12} {bottom + 48}"',
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#666666"/>',
    ]
    for rate in (1e-3, 1e-2, 1e-1, 1.0):
        x, y = _place(rate, rate)
        parts.append(_text(x, bottom + 16, "middle", f"{rate:g}"))
        parts.append(_text(_LEFT - 6, y + 4, "end", f"{rate:g}"))
    parts.append(_text(_LEFT + _SIDE / 2, bottom + 38, "middle", "false positives"))
    parts.append(
        f'<g transform="translate(12 {_TOP + _SIDE / 2}) rotate(-90)">{_text(0, 0, "middle", "true positives")}</g>'
    )
    guessing = (_LOWEST, 1.0), (_LOWEST, 1.0)
    lines = [("what the audited sums allow", ceiling, "#000000", "6 3"), ("guessing", guessing, "#767676", "2 3")]
    lines += [(name, roc, colour, "none") for (name, roc), colour in zip(attacks.items(), _COLOURS, strict=False)]
    for number, (name, (false, true), colour, dashes) in enumerate(lines):
        points = " ".join("{:.1f},{:.1f}".format(*_place(*rates)) for rates in zip(false, true, strict=True))
        style = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{points}" {style}/>')
        parts.append(_text(right - 8, bottom - 16 * (len(lines) - number), "end", name, colour))
    return "\n".join([*parts, "</svg>", ""])


def _place(false: float, true: float) -> tuple[float, float]:
    """Return where in the picture a pair of rates lies."""
    x, y = (1 - np.log(np.clip(rate, _LOWEST, 1)) / np.log(_LOWEST) for rate in (false, true))
    return _LEFT + _SIDE * x, _TOP + _SIDE * (1 - y)


def _text(x: float, y: float, anchor: str, text: str, colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
