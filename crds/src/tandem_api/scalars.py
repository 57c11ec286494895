# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' scalar notations as Python values: durations become seconds, byte quantities integers."""

import re
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

PATH_PATTERN = r"^/[^\s]*$"


def seconds_of(text: Any) -> Any:
    """``"1h30m"`` -> 5400.0. What is no string passes through, to be judged as a number.

    Raises:
        ValueError: it is not a metav1.Duration.
    """
    if not isinstance(text, str):
        raise ValueError("must be a duration string such as 90s, 2m or 1h30m")
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 2m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def duration_of(seconds: float) -> str:
    """5400.0 -> ``"5400s"``."""
    return f"{seconds:g}s" if seconds < 1e6 else f"{int(seconds)}s"


def bytes_of(value: Any) -> Any:
    """``"4Gi"`` -> 4294967296; integers are bytes already.

    Raises:
        ValueError: it is not a byte quantity.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a quantity of bytes such as 512Mi or 4Gi")
    return int(float(match[1]) * _BYTES[match[2] or ""])


Seconds = Annotated[
    float,
    BeforeValidator(seconds_of),
    PlainSerializer(duration_of, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
"""A metav1.Duration, in seconds here."""

Bytes = Annotated[
    int,
    BeforeValidator(bytes_of),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A Kubernetes quantity of bytes, an integer here."""

AbsolutePath = Annotated[str, Field(pattern=PATH_PATTERN, max_length=1024)]
"""A path as the containers see it."""


Fragment = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A piece of Kubernetes' or Hugging Face's own schema, passed on as it is."""
