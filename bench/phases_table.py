# SPDX-License-Identifier: Apache-2.0
"""What bench-phases found as a table, and its goals."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from growth import power
from percentile import p99
from rich.table import Column, Table

GOAL_MEMBERS = 256
MOST_P50 = 0.050
MOST_P99 = 0.250
"""Seconds, with ``GOAL_MEMBERS`` members."""

_TIMES = ("barrier p50", "p99", "bare p50", "ratio", "at once p50", "p99", "bare p50", "ratio")
_LOADS = ("requests", "proposals", "KiB in", "KiB out", "etcd CPU")

Cost = dict[str, float]
"""What etcd did, by kind: requests, proposals to Raft, bytes received and sent, seconds of processor time."""


@dataclass(slots=True)
class Result:
    """One number of members: ascending seconds of each kind of barrier, bare too, and what all of it cost etcd."""

    members: int
    spread: list[float]
    bare_spread: list[float]
    at_once: list[float]
    bare_at_once: list[float]
    load: Cost


def table(results: Sequence[Result]) -> Table:
    units = "barriers in milliseconds; load of etcd for each switch, its processor time in milliseconds"
    shown = Table("members", *(Column(title, justify="right") for title in (*_TIMES, *_LOADS)), caption=units)
    for result in results:
        switches = len(result.spread) + len(result.at_once) + 1
        cost = {kind: value / switches for kind, value in result.load.items()}
        shown.add_row(
            f"{result.members:,}",
            *times(result.spread, result.bare_spread),
            *times(result.at_once, result.bare_at_once),
            *(f"{cost[name]:,.0f}" for name in ("requests", "proposals")),
            *(f"{cost[name] / 1024:,.0f}" for name in ("received", "sent")),
            f"{1e3 * cost['cpu']:.1f}",
        )
    return shown


def times(barriers: Sequence[float], bare: Sequence[float]) -> Iterator[str]:
    """Median and 99th percentile, the bare median, and how many times that the first is."""
    middle, least = statistics.median(barriers), statistics.median(bare)
    yield from (f"{1e3 * seconds:.1f}" for seconds in (middle, p99(barriers), least))
    yield f"{middle / least:.2f}"


def verdicts(results: Sequence[Result]) -> dict[str, bool]:
    """Each goal with its figures, and whether it is met."""
    goals = {}
    for result in results:
        if result.members == GOAL_MEMBERS:
            for name, value, most in (
                ("p50", statistics.median(result.spread), MOST_P50),
                ("p99", p99(result.spread), MOST_P99),
            ):
                goal = f"barrier {name} {1e3 * value:.1f} ms with {result.members} members, under {1e3 * most:.0f} ms"
                goals[goal] = value < most
    for few, many in itertools.pairwise(results):
        fold, growth = many.members / few.members, statistics.median(many.at_once) / statistics.median(few.at_once)
        goal = f"at once p50 grows {growth:.2f} fold from {few.members} to {many.members:,} members, at most {fold:.0f}"
        goals[goal] = growth <= fold
    if len(results) > 1:
        for kind, barriers, bare in (
            ("barrier", [result.spread for result in results], [result.bare_spread for result in results]),
            ("at once", [result.at_once for result in results], [result.bare_at_once for result in results]),
        ):
            members = [result.members for result in results]
            grown, least = (power(members, [*map(statistics.median, each)]) for each in (barriers, bare))
            goal = f"{kind} p50 grows with members to the power of {grown:.2f}, at most 1 (bare: {least:.2f})"
            goals[goal] = grown <= 1.0
    return goals
