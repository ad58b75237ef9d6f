"""Curves of PSNR against scale, drawn as SVG that takes its colours from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from liif_cli.evaluate import Row
from liif_cli.published import Rows

# In units of the drawing, which a telephone shows about one to one.
_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 12, 34
_COLOURS = 6  # of own methods, s0 to s5 in the page's style; more begin again


class Curve(NamedTuple):
    """One method's scores."""

    name: str
    points: Mapping[float, float]
    style: str  # class names


def draw_curves(title: str, rows: Sequence[Row], printed: Rows) -> str:
    """A figure of all methods on a data set; nothing where there are fewer than two scales."""
    own: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.dataset == title and math.isfinite(row.psnr):
            own.setdefault(row.method, {})[row.scale] = row.psnr
    scales = sorted({scale for points in own.values() for scale in points})
    if len(scales) < 2:
        return ""
    drawn = [Curve(name, points, f"s{number % _COLOURS}") for number, (name, points) in enumerate(own.items())]
    for name, values in printed.items():
        points = {scale: value for scale, value in values.items() if scale in scales}
        if len(points) > 1 and name not in own:
            drawn.append(Curve(f"{name}, in print", points, f"printed p{sum('printed' in c.style for c in drawn) % 8}"))
    legend = "".join(
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="line {curve.style}" d="M1 4H27"/></svg>'
        f"{html.escape(curve.name)}</li>"
        for curve in drawn
    )
    return (
        f'<figure class="curve"><figcaption><h3>{html.escape(title)}</h3></figcaption>'
        f"{_drawing(title, scales, drawn)}<ul>{legend}</ul></figure>"
    )


def _drawing(title: str, scales: Sequence[float], drawn: Sequence[Curve]) -> str:
    values = [value for curve in drawn for value in curve.points.values()]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = math.log(scales[0]), math.log(scales[-1])

    def x(scale: float) -> float:
        return _LEFT + 8 + (math.log(scale) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT - 16)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    label = html.escape(f"PSNR in decibels against scale on {title}; the table has the numbers")
    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">']
    for tick in ticks:
        out.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        out.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    taken = -math.inf
    for scale in scales:
        if x(scale) - taken >= 22:  # neighbours would run into one another
            out.append(
                f'<text class="tick" x="{x(scale):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                f"×{scale:g}</text>"
            )
            taken = x(scale)
    out.append(f'<text class="tick" x="{_LEFT + 4}" y="{_TOP - 2}">dB</text>')
    for curve in reversed(drawn):  # own methods over those in print
        line = "L".join(f"{x(scale):.1f} {y(curve.points[scale]):.1f}" for scale in sorted(curve.points))
        out.append(f'<path class="line {curve.style}" d="M{line}"/>')
        for scale, value in sorted(curve.points.items()):
            said = html.escape(f"{curve.name}, ×{scale:g}: {value:.2f} dB")
            out.append(
                f'<circle class="dot {curve.style}" cx="{x(scale):.1f}" cy="{y(value):.1f}" r="3">'
                f"<title>{said}</title></circle>"
            )
    out.append("</svg>")
    return "".join(out)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, about five of them."""
    rough = max(high - low, 1e-3) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough)
    start = math.floor(low / step)
    stop = max(math.ceil(high / step), start + 1)
    return [round(number * step, 6) for number in range(start, stop + 1)]
