# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another process, thread or task brings about: for a condition and with a deadline."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator

DEADLINE = 120.0
"""Seconds in which what takes one here comes to pass on the most loaded machine."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.2
"""Seconds between two looks: what comes at once is seen at once, what takes long is seldom asked for."""


def until[T](condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Block until ``condition`` is true; returns its value.

    Raises:
        TimeoutError: it is not within ``seconds``.
    """
    pause, end = _FIRST_PAUSE, time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
        pause = _longer(pause)
    return value


async def reached[T](condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """As :func:`until`, while the tasks of this loop go on."""

    async def look() -> T | None:
        return condition()

    try:
        return await eventually(look, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"not within {seconds:g} s: {what}") from error


async def eventually[T](look: Callable[[], Awaitable[T | None]], seconds: float = DEADLINE) -> T:
    """The first true result of ``look``.

    Raises:
        TimeoutError: there is none within ``seconds``.
    """
    pause = _FIRST_PAUSE
    async with asyncio.timeout(seconds):
        while not (found := await look()):
            await asyncio.sleep(pause)
            pause = _longer(pause)
    return found


def attempts(what: str, seconds: float = DEADLINE) -> Iterator[int]:
    """1, 2, ... for a loop that ends itself once it has hit a moment that one attempt may miss.

    Raises:
        TimeoutError: it has not within ``seconds``.
    """
    end = time.monotonic() + seconds
    for number in itertools.count(1):
        yield number
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s and {number} attempts: {what}")


def _longer(pause: float) -> float:
    return min(1.5 * pause, _LONGEST_PAUSE)
