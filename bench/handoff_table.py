# SPDX-License-Identifier: Apache-2.0
"""What bench/handoff.py found, as Markdown for docs/performance.md, between two comments that mark its place."""

import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handoff_plot import Point, slope

MEMCPY, OWN, TANDEM = "memcpy of the same bytes", "Tandem's own work", "Tandem"
SAFETENSORS, GLOO, RESTART = "safetensors on tmpfs", "gloo", "restart of the engine"
LOADING = "vLLM loads and repacks"
MAPPED, LOADED = "Tandem, mapped", "Tandem, loaded"
BEGIN, END = "<!-- from bench/handoff.py --write -->", "<!-- to here -->"


@dataclass(frozen=True)
class Row:
    """One way: seconds of each repetition, the bytes, the median seconds of its parts, and its share of the speed of a
    copy that was measured by turns with it.
    """

    name: str
    seconds: list[float]
    nbytes: int
    parts: dict[str, float]
    of_copy: float | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.3f}" for name, seconds in self.parts.items()]
        parts += [] if self.of_copy is None else [f"{self.of_copy:.2f} of the copy beside it"]
        cells = [
            self.name,
            f"{self.median:.3f}",
            f"{min(self.seconds):.3f}",
            f"{self.nbytes / self.median / 1e9:.2f}",
            ", ".join(parts),
        ]
        return f"| {' | '.join(cells)} |"


def conditions(nbytes: int, tensors: int, rounds: int) -> str:
    """A sentence: the model, the machine, and how busy it was at the start."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{nbytes / 1e6:.0f} MB of bfloat16 in {tensors} tensors, {rounds} rounds of two versions each, on "
        f"{os.cpu_count()} cores ({_processor()}) with load averages of {load} at the start."
    )


def table(rows: list[Row], said: str, points: list[Point]) -> str:
    """The rows, and how they stand to each other."""
    head = ["| way | median, s | best, s | GB/s | of which, medians, s |", "|---|---|---|---|---|"]
    found = {row.name: row for row in rows}
    series = {point.series: [other for other in points if other.series == point.series] for point in points}
    slopes = ", ".join(f"{name} {slope(of_series):.2f}" for name, of_series in series.items())
    lines = [said, "", *head, *map(str, rows), "", *_ratios(found)]
    return "\n".join([*lines, f"- Seconds grow with bytes to the power of (1 is linear): {slopes}."])


def written(page: str, made: str) -> str:
    """The page with the new table in the place of the old one."""
    before, _, rest = page.partition(BEGIN)
    _, marked, after = rest.partition(END)
    if not marked:
        raise ValueError(f"the page lacks {BEGIN!r} and then {END!r}: there is no place for the table")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def _ratios(found: dict[str, Row]) -> Iterator[str]:
    if TANDEM not in found:
        return
    tandem = found[TANDEM]
    loading = tandem.parts[LOADING]
    for name in (SAFETENSORS, GLOO):
        other = found[name].median
        without = (other - loading) / (tandem.median - loading)
        yield (
            f"- {name}: {other / tandem.median:.1f} times Tandem's time, {other / loading:.1f} times the "
            f"{loading:.2f} s in which vLLM loads and repacks whoever brings the weights; {without:.1f} times without "
            "them."
        )
    yield f"- {RESTART}: {found[RESTART].median / tandem.median:.0f} times Tandem's time."


def _processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
