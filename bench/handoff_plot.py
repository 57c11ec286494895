# SPDX-License-Identifier: Apache-2.0
"""Seconds against bytes on logarithmic axes, as an SVG file."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from growth import power

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 420, 70, 30, 50
COLOURS = ("#7a7a7a", "#1f77b4", "#d62728", "#2ca02c")


@dataclass(frozen=True)
class Point:
    """One measurement of a named series."""

    series: str
    nbytes: int
    seconds: float


def draw(points: Iterable[Point]) -> str:
    """The plot: a line a series, with its fitted slope in the legend."""
    ordered = sorted(points, key=lambda point: (point.series, point.nbytes))
    series = {name: list(found) for name, found in groupby(ordered, key=lambda point: point.series)}
    axes = _Axes([point.nbytes / 1e6 for point in ordered], [point.seconds for point in ordered])
    parts = [*axes.drawn()]
    for number, (name, found) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [axes.place(point.nbytes / 1e6, point.seconds) for point in found]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend = f"{name}: slope {slope(found):.2f}"
        parts.append(f'<text x="{LEFT + 12}" y="{TOP + 18 + 18 * number}" fill="{colour}">{legend}</text>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>", ""])


def slope(points: list[Point]) -> float:
    """Of log seconds against log bytes: 1 is linear."""
    return power([point.nbytes for point in points], [point.seconds for point in points])


class _Axes:
    def __init__(self, megabytes: list[float], seconds: list[float]) -> None:
        self._x = min(megabytes) / 1.2, max(megabytes) * 1.2
        self._y = min(seconds) / 1.5, max(seconds) * 1.5

    def place(self, megabytes: float, seconds: float) -> tuple[float, float]:
        across = math.log(megabytes / self._x[0]) / math.log(self._x[1] / self._x[0])
        up = math.log(seconds / self._y[0]) / math.log(self._y[1] / self._y[0])
        return LEFT + across * (WIDTH - LEFT - 20), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    def drawn(self) -> Iterable[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - 20
        for value in (mark for mark in _marks() if self._x[0] <= mark <= self._x[1]):
            x, _ = self.place(value, self._y[0])
            yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g} MB</text>'
        for value in (mark for mark in _marks() if self._y[0] <= mark <= self._y[1]):
            _, y = self.place(self._x[0], value)
            yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g} s</text>'
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">size of the model</text>'


def _marks() -> list[float]:
    return [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
