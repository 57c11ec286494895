# SPDX-License-Identifier: Apache-2.0
"""The end of the log that says why a run failed."""

import json
from collections.abc import Iterable
from pathlib import Path

_LINES = 20
_TAIL_BYTES = 64 * 1024
_ALARMS = ("Traceback (most recent call last)", '"level": "error"', '"level": "critical"', "ERROR", "FATAL")
_FIELDS_OF_THE_LOGGER = ("event", "level", "timestamp", "job", "exception")


def log_that_matters(logs: Path, failed: Iterable[Path]) -> Path | None:
    """The log of the container that failed last; else the newest that holds an error; else the newest.

    ``failed``: logs of containers that ended with an error, oldest first.
    """
    for path in reversed(list(failed)):
        if path.exists() and path.stat().st_size:
            return path
    newest = sorted((path for path in logs.glob("*.log") if path.stat().st_size), key=lambda path: path.stat().st_mtime)
    with_error = [path for path in newest if any(alarm in _tail(path) for alarm in _ALARMS)]
    return next(reversed(with_error or newest), None)


def last_lines(path: Path, lines: int = _LINES) -> list[str]:
    """The last lines of a log, structured ones as sentences."""
    readable = [line for raw in _tail(path).splitlines() for line in sentence(raw).splitlines()]
    return readable[-lines:]


def sentence(line: str) -> str:
    """``{"event": "engine is ready", "seconds": 3}`` -> ``engine is ready (seconds=3)``; other lines as they are."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line.rstrip()
    if not isinstance(fields, dict) or "event" not in fields:
        return line.rstrip()
    rest = ", ".join(f"{name}={value}" for name, value in fields.items() if name not in _FIELDS_OF_THE_LOGGER)
    text = f"{fields['event']} ({rest})" if rest else str(fields["event"])
    return f"{text}\n{fields['exception']}" if "exception" in fields else text


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
