# SPDX-License-Identifier: Apache-2.0
"""Columns as kubectl prints them, and how times and shares read in them."""

from collections.abc import Iterable, Sequence

_GAP = "  "
NOTHING = "–"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns under capitals; the last one is not padded."""
    lines = [tuple(name.upper() for name in heading), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    padded = (_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def age(seconds: float) -> str:
    """As kubectl says it: ``42s``, ``3m10s``, ``12m``, ``5h2m``, ``3d4h``.

    >>> [age(seconds) for seconds in (42, 190, 720, 18120, 273600)]
    ['42s', '3m10s', '12m', '5h2m', '3d4h']
    """
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next((place for place, (_, size) in enumerate(units) if whole >= size), len(units) - 1)
    name, size = units[first]
    text = f"{whole // size}{name}"
    if first + 1 < len(units) and whole // size < 10:
        smaller, unit = units[first + 1]
        rest = whole % size // unit
        return f"{text}{rest}{smaller}" if rest else text
    return text


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}%"


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
