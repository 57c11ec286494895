# SPDX-License-Identifier: Apache-2.0
"""What a person, or a program, is told of the faults."""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem_cli.chaos.injector import Struck
from tandem_cli.chaos.plan import Fault
from tandem_cli.chaos.recovery import Recovery


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault of the plan. ``recovery`` is None where it was not done, and ``why`` says why not."""

    fault: Fault
    recovery: Recovery | None
    why: str = ""

    @property
    def recovered(self) -> bool:
        return self.recovery is not None and self.recovery.seconds is not None


class Display(Protocol):
    """Hears of faults as they happen."""

    def begin(self, where: str, faults: Sequence[Fault]) -> None: ...

    def struck(self, struck: Struck) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...

    def end(self, outcomes: Sequence[Outcome]) -> None: ...


class Lines:
    """A line for each fault and each recovery, and a table by what was done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, where: str, faults: Sequence[Fault]) -> None:
        self._print(f"{len(faults)} faults for {where}")

    def struck(self, struck: Struck) -> None:
        late = f", which is {struck.hit} by now" if struck.hit is not struck.fault.phase else ""
        self._print(f"{struck.fault}{late}", "yellow")

    def outcome(self, outcome: Outcome) -> None:
        recovery = outcome.recovery
        if recovery is None:
            self._print(f"{outcome.fault} was not done: {outcome.why}", "red")
        elif recovery.seconds is None:
            self._print(f"  not recovered: {recovery.reason}", "red")
        else:
            how = "in a new world" if recovery.new_world else "without a new world"
            reason = f": {recovery.reason}" if recovery.reason else ""
            self._print(f"  works again after {recovery.seconds:.1f} s, {how}{reason}", "green")

    def end(self, outcomes: Sequence[Outcome]) -> None:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("fault", "tried", "recovered", "median", "longest"):
            table.add_column(heading, justify="left" if heading == "fault" else "right")
        for row in summary(outcomes):
            seconds = (row["median"], row["longest"])
            cells = ("–" if value is None else f"{value:.1f} s" for value in seconds)
            table.add_row(row["fault"], str(row["tried"]), str(row["recovered"]), *cells)
        self._console.print(table)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(f"{time.strftime('%H:%M:%S')}  {text}", style=style), soft_wrap=True)


class JsonLines:
    """The same as JSON, a line each: ``event`` is begin, struck, recovered, lost, refused or end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, where: str, faults: Sequence[Fault]) -> None:
        self._say("begin", job=where, faults=[fault.written() for fault in faults])

    def struck(self, struck: Struck) -> None:
        self._say("struck", fault=struck.fault.written(), hit=struck.hit)

    def outcome(self, outcome: Outcome) -> None:
        if outcome.recovery is None:
            self._say("refused", fault=outcome.fault.written(), why=outcome.why)
        else:
            self._say("recovered" if outcome.recovered else "lost", **outcome.recovery.written())

    def end(self, outcomes: Sequence[Outcome]) -> None:
        self._say("end", recovered=all(outcome.recovered for outcome in outcomes), kinds=summary(outcomes))

    def _say(self, event: str, **said: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **said})
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary(outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]]:
    """How often each fault was tried and recovered from, and the seconds that this took (median, longest)."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[f"{outcome.fault.kind} {outcome.fault.component}"].append(outcome)
    return [_row(name, found) for name, found in sorted(rows.items())]


def _row(name: str, outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    seconds = [one.recovery.seconds for one in outcomes if one.recovery and one.recovery.seconds is not None]
    return {
        "fault": name,
        "tried": len(outcomes),
        "recovered": len(seconds),
        "median": statistics.median(seconds) if seconds else None,
        "longest": max(seconds, default=None),
    }
