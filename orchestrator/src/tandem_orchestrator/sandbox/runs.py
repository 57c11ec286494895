# SPDX-License-Identifier: Apache-2.0
"""What is asked of the sandbox and what it answers."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

MIB = 2**20


class Verdict(StrEnum):
    """How a run ended."""

    PASSED = "passed"
    WRONG = "wrong answer"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output limit"
    KILLED = "killed"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. ``memory``, ``output`` and ``disk`` are bytes, ``seconds`` is wall-clock time.

    ``memory`` is on top of the interpreter's own. ``tasks`` are threads and processes begun over the whole run, so
    that a program which begins them faster than it can be watched has a bound too.
    """

    seconds: float = 10.0
    memory: int = 512 * MIB
    output: int = 16 * MIB
    disk: int = 16 * MIB
    entries: int = 256
    descriptors: int = 64
    tasks: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended and what it left.

    ``rule`` says what a killed program did (``network``, ``tracing``, ...). ``complaint`` is the end of standard error.
    ``exit_code`` is negative for a signal, ``None`` if the program was stopped. ``seconds`` counts from the program's
    first instruction, ``cpu_seconds`` is of it and of its children that it waited for.
    """

    verdict: Verdict
    rule: str | None
    exit_code: int | None
    output: bytes
    complaint: str
    seconds: float
    cpu_seconds: float

    def header(self) -> dict[str, Any]:
        """All but the output, for JSON."""
        fields = asdict(self)
        del fields["output"]
        return fields

    @classmethod
    def of(cls, header: dict[str, Any], output: bytes) -> Self:
        """The reverse of :meth:`header`."""
        return cls(**{**header, "verdict": Verdict(header["verdict"])}, output=output)


def same_output(found: bytes, expected: bytes) -> bool:
    """Whether two outputs are equal but for blanks at line ends and empty lines at the end."""
    return _lines(found) == _lines(expected)


def _lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.rstrip().split(b"\n")]
