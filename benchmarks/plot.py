"""Curves as SVG, from points: axes, a grid, one line with dots a series, and its name at its end.

Law: it draws what it is given and nothing else; both axes are logarithmic, so that a factor is the
same distance everywhere. Points that are not positive numbers are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 60, 110, 46, 46
COLOURS = ("#3b6ea5", "#c2571a", "#5b8a3c", "#8a4f9e", "#777777", "#b0902a")


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Points]


def draw(charts: Sequence[Chart], caption: str) -> str:
    """All of them side by side, with one line of text below."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(charts)}"'
        f' height="{HEIGHT + 24}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, chart in enumerate(charts):
        parts += [f'<g transform="translate({place * WIDTH} 0)">', *_chart(chart), "</g>"]
    parts += [f'<text x="12" y="{HEIGHT + 14}" fill="#555">{escape(caption)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


class _Axis:
    """Logarithmic, from the decade or half decade below the least to that above the largest."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = (min(values), max(values)) if values else (1.0, 10.0)
        self.ticks = [
            step * 10.0**power
            for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
            for step in (1, 2, 5)
        ]
        first = max(tick for tick in self.ticks if tick <= low * 1.0001)
        last = min(tick for tick in self.ticks if tick >= high * 0.9999 and tick > first)
        self.ticks = [tick for tick in self.ticks if first <= tick <= last]
        self._low, self._span = math.log10(first), math.log10(last) - math.log10(first)
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / self._span
        return round(self._begin + share * (self._end - self._begin), 1)


def _chart(chart: Chart) -> list[str]:
    series = {
        name: [(x, y) for x, y in points if x > 0 and y > 0 and math.isfinite(x + y)]
        for name, points in chart.series.items()
    }
    everything = [point for points in series.values() for point in points]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = _Axis([x for x, _ in everything], LEFT, right)
    up = _Axis([y for _, y in everything], bottom, TOP)
    parts = [f'<text x="{LEFT}" y="20" font-size="13">{escape(chart.title)}</text>']
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<path d="M{x} {TOP}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path d="M{LEFT} {y}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    parts.append(f'<text x="{LEFT - 46}" y="{TOP - 12}">{escape(chart.y_label)}</text>')
    ends: list[tuple[float, float, str, str]] = []
    for place, (name, points) in enumerate(series.items()):
        if not points:
            continue
        colour = COLOURS[place % len(COLOURS)]
        spots = [(across.at(x), up.at(y)) for x, y in points]
        line = " ".join(f"{x},{y}" for x, y in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots]
        x, y = spots[-1]
        ends.append((y, x, name, colour))
    free = 0.0
    for y, x, name, colour in sorted(ends):
        free = max(free + 13, y + 4)
        parts.append(f'<text x="{x + 8}" y="{free}" fill="{colour}">{escape(name)}</text>')
    return parts
