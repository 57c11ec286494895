# SPDX-License-Identifier: Apache-2.0
"""Which job is looked at next. One that always fails waits longer and longer, and holds up nobody."""

import asyncio
import heapq
import time

from tandem_operator import metrics

type Key = tuple[str, str]
"""Namespace and name of an RLJob."""

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 120.0


class WorkQueue:
    """Keys that are due, each at most once, and never with two workers at a time.

    A worker takes a key with :meth:`take` and gives it back with :meth:`done` or :meth:`failed`. A key added while a
    worker has it becomes due again afterwards.
    """

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._taken: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Make a key due in ``delay`` seconds, or sooner if it already is."""
        at = time.monotonic() + delay
        if self._due.get(key, float("inf")) <= at:
            return
        self._due[key] = at
        metrics.queue_depth.set(len(self._due))
        if key not in self._taken:
            self._push(key)

    def _push(self, key: Key) -> None:
        heapq.heappush(self._heap, (self._due[key], key))
        self._wake.set()

    async def take(self) -> Key:
        """The next key that is due; waits for one."""
        while True:
            self._wake.clear()
            self._drop_outdated()
            wait = self._heap[0][0] - time.monotonic() if self._heap else None
            if wait is not None and wait <= 0:
                return self._pop()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _drop_outdated(self) -> None:
        """An entry is outdated when its key became due sooner, was taken or was forgotten since."""
        while self._heap:
            at, key = self._heap[0]
            if self._due.get(key) == at and key not in self._taken:
                return
            heapq.heappop(self._heap)

    def _pop(self) -> Key:
        _, key = heapq.heappop(self._heap)
        del self._due[key]
        metrics.queue_depth.set(len(self._due))
        self._taken.add(key)
        return key

    def done(self, key: Key, again_in: float | None = None) -> None:
        """The key was looked at; in ``again_in`` seconds it is due again."""
        self._failures.pop(key, None)
        self._give_back(key)
        if again_in is not None:
            self.add(key, again_in)

    def failed(self, key: Key) -> float:
        """Looking at the key failed; returns the seconds after which it is tried again, whatever else happens."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(FIRST_BACKOFF * 2.0**failures, LONGEST_BACKOFF)
        self._due.pop(key, None)
        self._give_back(key)
        self.add(key, delay)
        return delay

    def _give_back(self, key: Key) -> None:
        self._taken.discard(key)
        if key in self._due:
            self._push(key)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._due.pop(key, None)
        self._failures.pop(key, None)
