# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' scalar notations as Python values: durations become seconds, byte quantities integers."""

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
DURATION_PATTERN = r"^(\d+(\.\d+)?(h|ms|m|s))+$"

_BYTES = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
QUANTITY_PATTERN = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"
MAX_SCALAR = 32
"""Characters of a duration or quantity; a bound that the API server's cost estimates need."""

_INDICES = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
MAX_INDICES = 10**6
"""As many members as keys in etcd have room for."""

PATH_PATTERN = r"^/[^\s]*$"
URL_PATTERN = r"^https?://[^\s]+$"
LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
CALLABLE_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

PATTERNS = {
    PATH_PATTERN: "an absolute path without spaces, such as /data/prompts.jsonl",
    URL_PATTERN: "a URL such as http://judge:8000/v1",
    LABEL_PATTERN: "lower case letters, digits and hyphens",
    CALLABLE_PATTERN: "module:function, such as my_rewards:score",
}
"""What the regular expressions of the contract mean, for people."""


def seconds_of(text: Any) -> float:
    """``"1h30m"`` -> 5400.0.

    Raises:
        ValueError: it is not a metav1.Duration, or no time at all.
    """
    if not isinstance(text, str) or len(text) > MAX_SCALAR or not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError("must be a duration such as 90s, 2m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    if not seconds:
        raise ValueError("must be longer than 0s")
    return seconds


def duration_of(seconds: float) -> str:
    """5400.0 -> ``"1h30m"``, 0.25 -> ``"0.25s"``."""
    if not float(seconds).is_integer():
        return f"{Decimal(repr(seconds)):f}s"
    minutes, rest = divmod(int(seconds), 60)
    parts = ((minutes // 60, "h"), (minutes % 60, "m"), (rest, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def bytes_of(value: Any) -> int:
    """``"4Gi"`` -> 4294967296; integers are bytes already. Parts of a byte are rounded up.

    Raises:
        ValueError: it is not a byte quantity.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) <= MAX_SCALAR else None
    if match is None:
        raise ValueError("must be a quantity of bytes such as 512Mi or 4Gi")
    return math.ceil(Decimal(match[1]) * _BYTES[match[2] or ""])


def some_bytes_of(value: Any) -> int:
    """As :func:`bytes_of`, but not 0."""
    number = bytes_of(value)
    if not number:
        raise ValueError("must be more than 0 bytes")
    return number


def quantity_of(number: int) -> str:
    """4294967296 -> ``"4Gi"``; without a unit where no binary one divides it."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if number and number % _BYTES[unit] == 0:
            return f"{number // _BYTES[unit]}{unit}"
    return str(number)


def indices_of(value: Any) -> Any:
    """``"0-2,5"`` -> (0, 1, 2, 5), as Kubernetes writes a Job's ``completedIndexes``; a sequence is left as it is.

    Raises:
        ValueError: it is no such list, not ascending, or longer than ``MAX_INDICES``.
    """
    if not isinstance(value, str):
        return value
    found: list[int] = []
    for part in value.split(",") if value else ():
        ends = _INDICES.fullmatch(part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if not (found[-1] if found else -1) < first <= last < MAX_INDICES:
            raise ValueError(f"must be ascending indices below {MAX_INDICES} such as 0-2,5")
        found.extend(range(first, last + 1))
    return tuple(found)


def indices_text(indices: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> ``"0-2,5"``."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _not_zero(cel: str, message: str) -> list[dict[str, str]]:
    return [{"rule": cel, "message": message}]


_BYTES_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "minimum": 0,
    "maxLength": MAX_SCALAR,
    "pattern": QUANTITY_PATTERN,
    "x-kubernetes-int-or-string": True,
}

Seconds = Annotated[
    float,
    BeforeValidator(seconds_of),
    PlainSerializer(duration_of, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": MAX_SCALAR,
            "pattern": DURATION_PATTERN,
            "x-kubernetes-validations": _not_zero("self.matches('[1-9]')", "must be longer than 0s"),
        }
    ),
]
"""A metav1.Duration, in seconds here. Never 0."""

Bytes = Annotated[
    int,
    BeforeValidator(bytes_of),
    PlainSerializer(quantity_of, return_type=str, when_used="json"),
    WithJsonSchema(_BYTES_SCHEMA),
]
"""A Kubernetes quantity of bytes, an integer here."""

SomeBytes = Annotated[
    int,
    BeforeValidator(some_bytes_of),
    PlainSerializer(quantity_of, return_type=str, when_used="json"),
    WithJsonSchema(
        _BYTES_SCHEMA
        | {
            "x-kubernetes-validations": _not_zero(
                "type(self) == int ? self > 0 : self.matches('[1-9]')", "must be more than 0 bytes"
            )
        }
    ),
]
"""Bytes that are not 0."""

Indices = Annotated[
    tuple[int, ...], BeforeValidator(indices_of), PlainSerializer(indices_text, return_type=str, when_used="json")
]
"""Indices of members, ascending; a thousand in a row are a few bytes of JSON."""

AbsolutePath = Annotated[str, Field(pattern=PATH_PATTERN, max_length=1024)]
"""A path as the containers see it."""


Fragment = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A piece of Kubernetes' or Hugging Face's own schema, passed on as it is."""
