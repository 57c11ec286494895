# SPDX-License-Identifier: Apache-2.0
"""Whole runs for tests: the demo's manifest made small, started by the real command line."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs import ROOT, TANDEM, changed

__all__ = ["ROOT", "finish", "manifest", "metrics", "processes_of", "start"]


def manifest(path: Path, changes: Mapping[str, Any]) -> Path:
    """Write the demo's manifest with values replaced by dotted path."""
    path.write_text(changed(ROOT / "examples" / "chain-sum.yaml", changes))
    return path


def start(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start ``tandem run`` with its output in ``out``.log."""
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen([TANDEM, "run", file, "--out", out, *options], stdout=log, stderr=log, text=True)


def finish(process: subprocess.Popen[str], out: Path, seconds: float) -> int:
    """The exit status, once the run is over; what it printed goes to the test's output."""
    try:
        return process.wait(seconds)
    finally:
        print(out.with_suffix(".log").read_text())


def metrics(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl so far."""
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def processes_of(out: Path) -> list[int]:
    """Processes whose command line or environment names the run's directory, other than this one."""
    needle = str(out).encode()
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            named = needle in (directory / "cmdline").read_bytes() or needle in (directory / "environ").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if named:
            found.append(int(directory.name))
    return found
