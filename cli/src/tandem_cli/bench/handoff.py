# SPDX-License-Identifier: Apache-2.0
"""``tandem bench handoff``: runs the handoff library's own bench as a process, since this program has no torch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table

from tandem_api.errors import Problem, UserError

_PACKAGE = "tandem_handoff"
_MEANING = (
    "The limit is one copy of the same bytes within a process, measured by turns with each handoff. A handoff "
    "ends when another process has mapped every tensor (spec.handoff.verify: Names), has read and checked each "
    "(Checksums), or has copied each into memory of its own, as an engine's loader does. A bucket is used for the "
    "first time at the first handoff only."
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure: sizes in MiB; ``device`` is "cpu", "cuda:N" or None for what there is."""

    mib: int
    bucket_mib: int
    rounds: int
    device: str | None

    def arguments(self) -> list[str]:
        """As the bench's own command line."""
        sizes = ["--mib", str(self.mib), "--bucket-mib", str(self.bucket_mib), "--rounds", str(self.rounds)]
        return sizes + (["--device", self.device] if self.device else [])


def bench_handoff(options: Options, console: Console) -> None:
    """Measure and print a table.

    Raises:
        UserError: the handoff library is not installed beside this program, or a measurement failed.
    """
    title = f"Handoff of {options.mib} MiB of weights in buckets of {options.bucket_mib} MiB"
    table = Table("step", "time", "rate", "of the limit", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    with console.status("measuring") as status:
        for step in _steps(options):
            status.update(f"measured: {step['name']}")
            table.add_row(*row(step))
    console.print(table)
    console.print(_MEANING)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2 + 1:  # this command itself keeps one core busy, at times two
        console.print(f"This machine was busy (load average {load:.1f}, {cores} cores), which lowers every rate.")


def row(step: dict[str, Any]) -> tuple[str, str, str, str]:
    """A measurement as the table shows it."""
    seconds, nbytes, ratio = float(step["seconds"]), int(step["nbytes"]), step["of_limit"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.{1 if seconds >= 1e-3 else 3}f} ms"
    rate = f"{nbytes / seconds / 1e9:.1f} GB/s" if nbytes else ""
    return step["name"], time, rate, "" if ratio is None else f"{100 * float(ratio):.0f} %"


def _steps(options: Options) -> Iterator[dict[str, Any]]:
    if find_spec(_PACKAGE) is None:
        message = "is not installed here; run this in a hybrid pod, or install tandem-handoff beside tandem-cli"
        raise UserError(Problem(_PACKAGE, message))
    command = [sys.executable, "-m", f"{_PACKAGE}.bench", *options.arguments()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield from map(json.loads, process.stdout)
        reason = process.stderr.read().strip().rpartition("\n")[2]
    finally:
        process.kill()
        status = process.wait()
    if status:
        raise UserError(Problem(f"{_PACKAGE}.bench", reason or f"ended with {status}"))
