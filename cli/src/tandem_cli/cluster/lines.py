# SPDX-License-Identifier: Apache-2.0
"""Log lines as a person reads them: the sentence first, its fields after it, times in a column."""

import json
from dataclasses import dataclass

from click import style

_LOGGERS_OWN = frozenset({"event", "level", "timestamp", "exception", "job", "pod", "process", "program"})
_COLOURS = ("cyan", "magenta", "green", "blue", "bright_cyan", "bright_magenta", "bright_green", "bright_blue")
_LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}
_TIME = slice(11, 23)


@dataclass(frozen=True, slots=True)
class Source:
    """A container whose log is shown. ``label`` as short as tells it apart, ``number`` chooses its colour."""

    pod: str
    container: str
    label: str
    number: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log. ``time`` is the kubelet's, RFC 3339 in UTC to the nanosecond, so that times sort as text."""

    time: str
    source: Source
    text: str

    @staticmethod
    def of(raw: bytes, source: Source) -> "Line":
        """A line as the API server sends it with ``timestamps``."""
        time, _, text = raw.decode(errors="replace").partition(" ")
        return Line(_padded(time), source, text)


def rendered(line: Line, width: int) -> str:
    """One line for the terminal, of more where there is an exception. ``width`` of the column of sources."""
    colour = _COLOURS[line.source.number % len(_COLOURS)]
    head = f"{style(line.time[_TIME], dim=True)} {style(line.source.label.ljust(width), fg=colour)} "
    first, *more = _sentence(line.text).splitlines() or [""]
    indent = " " * (_TIME.stop - _TIME.start + width + 2)
    return "\n".join([head + first, *(indent + text for text in more)])


def _sentence(text: str) -> str:
    """``{"event": "engine is ready", "seconds": 3}`` -> ``engine is ready  seconds=3``; other lines as they are."""
    try:
        fields = json.loads(text)
    except ValueError:
        return text
    if not isinstance(fields, dict) or "event" not in fields:
        return text
    level = str(fields.get("level", ""))
    event = style(str(fields["event"]), fg=_LEVELS.get(level), bold=level in ("error", "critical"))
    told = {name: value for name, value in fields.items() if name not in _LOGGERS_OWN and value is not None}
    rest = " ".join(f"{name}={_value(value)}" for name, value in told.items())
    sentence = f"{event}  {style(rest, dim=True)}" if rest else event
    return f"{sentence}\n{fields['exception']}" if fields.get("exception") else sentence


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)


def _padded(time: str) -> str:
    """Nanoseconds have their trailing zeros back, without which times would not sort as text."""
    whole, dot, rest = time.removesuffix("Z").partition(".")
    return f"{whole}.{rest:<09}" if dot else f"{whole}.{'0' * 9}"
