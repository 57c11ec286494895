# SPDX-License-Identifier: Apache-2.0
"""A deed that is under way in a process elsewhere, by the lines that it reads and writes (:mod:`.deeds`)."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from tandem_cli.chaos.place import NotDone
from tandem_cli.chaos.plan import LASTING, Fault, Kind

_AT_ONCE_SECONDS = {Kind.OUT_OF_MEMORY: 60.0, Kind.CORRUPT_SEGMENT: 60.0}
"""How long what is done at once may take: memory must run out, or a handoff must come to its segments."""


class Channel(Protocol):
    """Standard input and output of a process."""

    async def line(self) -> bytes:
        """Its next line; empty when it has ended."""

    def write(self, line: bytes) -> None: ...

    async def close(self) -> None:
        """End its standard input, and return when it has ended."""


class ArmedDeed:
    """A deed that waits for the word, is done, and is over."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ended = False

    async def armed(self) -> None:
        """Returns once it is ready.

        Raises:
            NotDone: it cannot be done.
        """
        self._said("armed", await self._channel.line())

    async def strike(self) -> float:
        self._channel.write(b"go\n")
        return float(self._said("struck", await self._channel.line()))

    async def over(self) -> None:
        """As :class:`tandem_cli.chaos.place.ArmedFault` has it. A container that it ends takes the deed along."""
        if not self._ended and (line := await self._channel.line()):
            self._said("over", line)

    async def end(self) -> None:
        self._ended = True
        await self._channel.close()

    @staticmethod
    def _said(name: str, line: bytes) -> Any:
        said = json.loads(line) if line else {"refused": "the process that does it has ended"}
        if name not in said:
            raise NotDone(said["refused"])
        return said[name]


def order_of(fault: Fault, **place: Any) -> Mapping[str, Any]:
    """What the process is told: ``place`` are ``ancestor``, ``index`` and ``directory`` where they matter."""
    seconds = fault.seconds if fault.kind in LASTING else _AT_ONCE_SECONDS.get(fault.kind, 0.0)
    what = {"deed": fault.kind.value, "component": fault.component.value}
    return {**what, "seconds": seconds, "factor": fault.factor, **place}
