"""Charts as inline SVG: lines, bars, points. Colours come from the page's style sheet, for light and dark.

They are as wide as a telephone can show with letters that can be read; on a wide page they grow by a third.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 12, 44
_TICKS = 5


def line_chart(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    limit: float | None = None,
    said: Callable[[float], str] = "{:.4g}".format,
) -> str:
    """Return a line through `points` (x, y), each with its values where the pointer rests; `limit` is drawn across.

    `said` says a y: rounded up, where it is a bound.
    """
    right, top = max(x for x, _ in points) or 1.0, _round_up(max(*(y for _, y in points), limit or 0.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * x / right, _TOP + up * (1 - y / top)

    parts = [_head(title, _HEIGHT)]
    for tick in range(_TICKS + 1):
        y, x = top * tick / _TICKS, right * tick / _TICKS
        (_, down), (along, _) = place(0, y), place(x, 0)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(_text(_LEFT - 8, down + 4, f"{y:.3g}", "end"))
        parts.append(_text(along, _HEIGHT - _BOTTOM + 18, f"{x:,.0f}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_label, "middle"))
    parts.append(f'<g transform="translate(14 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>')
    if limit is not None:
        _, down = place(0, limit)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
    placed = [place(x, y) for x, y in points]
    parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>')
    if len(points) <= 50:
        for (x, y), (across, down) in zip(points, placed, strict=True):
            value = f"{x_label} {x:,.0f}: {y_label} {said(y)}"
            parts.append(
                f'<circle class="point" cx="{across:.1f}" cy="{down:.1f}" r="4" data-value="{escape(value)}">'
                f"<title>{escape(value)}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def bar_chart(
    rows: Sequence[tuple[str, float]],
    *,
    title: str,
    said: Callable[[float], str],
    most: float | None = None,
    references: Sequence[float] = (),
) -> str:
    """Return one bar for each (name, value >= 0), longest value or `most` at full width, and a reference across it.

    `said` says a value: rounded up, where it is a bound.
    """
    most = most or max((value for _, value in rows), default=1.0) or 1.0
    height, left = 28 * len(rows) + 8, 196
    full = _WIDTH - left - 64
    parts = [_head(title, height)]
    for number, (name, value) in enumerate(rows):
        y, length = 28 * number + 6, full * min(1.0, value / most)
        label = said(value)
        parts.append(_text(left - 8, y + 14, name, "end"))
        parts.append(
            f'<rect class="bar" x="{left}" y="{y}" width="{length:.1f}" height="18" '
            f'data-value="{escape(name)}: {label}"><title>{escape(name)}: {label}</title></rect>'
        )
        end = length
        if references:
            across = left + full * min(1.0, references[number] / most)
            parts.append(f'<line class="limit" x1="{across:.1f}" x2="{across:.1f}" y1="{y - 3}" y2="{y + 21}"/>')
            end = max(length, across - left)
        parts.append(_text(left + end + 6, y + 14, label, "start"))
    return "".join([*parts, "</svg>"])


def roc_chart(rates: dict[str, list[tuple[float, float]]], ceiling: Sequence[tuple[float, float]]) -> str:
    """Return points (false positives, true positives) of attacks, log-log, under what the audited sums allow."""
    side, lowest = 240, math.log(1e-3)

    def place(false: float, true: float) -> tuple[float, float]:
        x, y = (1 - math.log(min(1.0, max(1e-3, rate))) / lowest for rate in (false, true))
        return 60 + side * x, 12 + side * (1 - y)

    parts = [_head("True positives against false positives of each attack, and what the audited sums allow", side + 66)]
    for rate in (1e-3, 1e-2, 1e-1, 1.0):
        x, y = place(rate, rate)
        parts.append(_text(x, side + 36, f"{100 * rate:g} %", "middle") + _text(52, y + 4, f"{100 * rate:g} %", "end"))
        parts.append(f'<line class="grid" x1="60" x2="{60 + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(_text(60 + side / 2, side + 58, "false positives", "middle"))
    (x1, y1), (x2, y2) = place(1e-3, 1e-3), place(1, 1)
    parts.append(f'<line class="guess" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    allowed = " ".join("{:.1f},{:.1f}".format(*place(*pair)) for pair in ceiling)
    parts.append(f'<polyline class="limit" points="{allowed}"/>')
    for number, (name, pairs) in enumerate(rates.items()):
        for false, true in pairs:
            x, y = place(false, true)
            value = f"{name}: {100 * true:.2g} % at {100 * false:g} %"
            parts.append(
                f'<circle class="attack a{number}" cx="{x:.1f}" cy="{y:.1f}" r="5" data-value="{escape(value)}">'
                f"<title>{escape(value)}</title></circle>"
            )
        parts.append(f'<circle class="attack a{number}" cx="320" cy="{42 + 22 * number}" r="5"/>')
        parts.append(_text(332, 46 + 22 * number, name, "start"))
    parts.append(_text(314, 22, "dashed: what the audited sums allow", "start"))
    return "".join([*parts, "</svg>"])


def _head(title: str, height: float) -> str:
    return f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {height:g}">'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _round_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-12))
