# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reliability.md from what the recovery tests measured: ``python tests/reliability.py [FILE]``."""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MEASURED = ROOT / "build" / "recoveries.jsonl"
PHASES = ("Start", "Rollout", "Release", "Train", "Handoff", "Recover")
BEGIN, END = "<!-- measured: {place} -->\n", "<!-- end: {place} -->\n"


def table(recoveries: Iterable[dict[str, Any]]) -> str:
    """A row for each kind of fault and whether an engine had to be started."""
    rows: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for recovery in recoveries:
        fault = recovery["fault"]
        rows[f"{fault['kind']} {fault['target']['component']}", recovery["engineSeconds"] > 0].append(recovery)
    lines = [
        "| Fault | in | tried | new world | until the job works, median (longest) | of which an engine's start |",
        "|---|---|---|---|---|---|",
    ]
    for (what, engine), found in sorted(rows.items()):
        seconds = [recovery["seconds"] for recovery in found]
        phases = ", ".join(phase for phase in PHASES if any(recovery["hit"] == phase for recovery in found))
        worlds = sum(recovery["new_world"] for recovery in found)
        starts = f"{statistics.median(r['engineSeconds'] for r in found):.1f} s" if engine else "none"
        lines.append(
            f"| {what} | {phases} | {len(found)} | {worlds} | "
            f"{statistics.median(seconds):.1f} s ({max(seconds):.1f} s) | {starts} |"
        )
    return "\n".join(lines) + "\n"


def main(measured: Path) -> None:
    """Write the table of each place that was measured; the others stay as they are."""
    places: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for recovery in map(json.loads, measured.read_text().splitlines()):
        places[recovery.get("place", "local")].append(recovery)
    page = PAGE.read_text()
    for place, recoveries in places.items():
        begin, end = BEGIN.format(place=place), END.format(place=place)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = before + begin + table(recoveries) + end + after
    PAGE.write_text(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MEASURED)
