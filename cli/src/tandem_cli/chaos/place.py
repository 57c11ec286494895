# SPDX-License-Identifier: Apache-2.0
"""What the injector asks of a place where a job runs."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from tandem_api.errors import Problem, TandemError
from tandem_api.messages.phases import PhaseRecord
from tandem_cli.chaos.plan import Fault


class NotDone(TandemError):
    """A fault could not be done; the message says why. The job goes on unharmed by it."""


class JobEnded(TandemError):
    """The job came to its end, and nothing more can be done to it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A job at one moment. ``leader``: what tells one leadership from the next, or None while nobody leads."""

    record: PhaseRecord
    leader: int | None


def problems(faults: Iterable[Fault], refusals: Callable[[Fault], Iterable[str]]) -> list[Problem]:
    """What is refused of ``faults``, and why, each once."""
    found = {(fault.what, reason) for fault in faults for reason in refusals(fault)}
    return [Problem(what, reason) for what, reason in sorted(found)]


class ArmedFault(Protocol):
    """A fault that is ready to be done at once."""

    async def strike(self) -> float:
        """Do it; when that was, in Unix seconds.

        Raises:
            NotDone: it cannot be done.
        """

    async def over(self) -> None:
        """Returns when its time is over and everything it changed is put right.

        Raises:
            NotDone: it turned out that it cannot be done.
        """

    async def end(self) -> None:
        """End it now; returns when everything it changed is put right."""


class AtOnce:
    """A fault that is done by one call and leaves nothing to put right."""

    def __init__(self, deed: Callable[[], Awaitable[object]]) -> None:
        self._deed = deed

    async def strike(self) -> float:
        at = time.time()
        await self._deed()
        return at

    async def over(self) -> None:
        return

    async def end(self) -> None:
        return


class Job(Protocol):
    """A running job in its place."""

    @property
    def seen(self) -> Seen | None:
        """The job as it is now; None before its first phase."""

    async def refusals(self, faults: Sequence[Fault]) -> list[Problem]:
        """The faults that cannot be done here, and why. Nothing is done yet."""

    async def until[T](self, condition: Callable[[Seen], T | None], timeout: float | None = None) -> T:
        """The first value other than None that ``condition`` gives, now or after a change.

        Raises:
            TimeoutError: ``timeout`` seconds passed.
            JobEnded: the job is over, so that nothing will change any more.
        """

    def armed(self, fault: Fault) -> AbstractAsyncContextManager[ArmedFault]:
        """Get ready for a fault. Leaving the context puts right what it changed, at whatever moment."""
