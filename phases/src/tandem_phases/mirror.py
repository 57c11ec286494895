# SPDX-License-Identifier: Apache-2.0
"""A local copy of keys in etcd, kept up to date by watches."""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog

from tandem_api.errors import TryAgain
from tandem_phases.store import Change, Entry, Store

log = structlog.get_logger()

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 2.0
_QUICK_LOOK = 0.0001
_STOP_SECONDS = 5.0


class Mirror:
    """What etcd holds under some prefixes, as of the last change that reached us.

    While etcd is away the copy stays as it was; when it is back the copy is read afresh, so a reader sees the newest
    state and may miss states in between. Decide from what *is*, never from what changed. Under one prefix changes
    come in etcd's order; a change under another one may overtake them.

    Ask for no more than is needed: a change is sent to everyone who watches its key.

    >>> async with Mirror(store, keys.prefix) as mirror:
    ...     phase = await mirror.until(lambda entries: entries.get(keys.phase), timeout=30)
    """

    def __init__(self, store: Store, *prefixes: str) -> None:
        self._store = store
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Event()
        self._filled = {prefix: asyncio.Event() for prefix in prefixes}
        self._following: list[asyncio.Task[None]] = []

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def under(self, prefix: str) -> dict[str, Entry]:
        """The entries below a longer prefix, in key order."""
        return {key: self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)}

    async def __aenter__(self) -> Self:
        self._following = [asyncio.create_task(self._follow(p), name=f"mirror of {p}") for p in self._filled]
        try:
            for filled in self._filled.values():
                await filled.wait()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.wait(self._following, timeout=_STOP_SECONDS)

    async def until[T](self, condition: Callable[[Mapping[str, Entry]], T | None], timeout: float | None = None) -> T:
        """The first value other than None that ``condition`` gives on the entries, now or after a change.

        Changes that come in quick succession are looked at together: looks take at most a quarter of the time, or a
        thousand acks would be looked at a thousand times.

        Raises:
            TimeoutError: ``timeout`` seconds passed.
        """
        async with asyncio.timeout(timeout):
            while True:
                changed, began = self._changed, time.monotonic()
                if (value := condition(self._entries)) is not None:
                    return value
                looked = time.monotonic() - began
                await changed.wait()
                if looked > _QUICK_LOOK:
                    await asyncio.sleep(3 * looked)

    async def _follow(self, prefix: str) -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                entries, revision = await self._store.list(prefix)
                async with self._store.watch(prefix, revision) as changes:
                    self._replace(prefix, entries)
                    wait = _FIRST_WAIT
                    async for change in changes:
                        self._apply(change)
            except TryAgain as error:
                log.warning("etcd is away; the last known state stands", prefix=prefix, error=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def _replace(self, prefix: str, entries: dict[str, Entry]) -> None:
        others = {key: entry for key, entry in self._entries.items() if not key.startswith(prefix)}
        self._entries = others | entries
        self._filled[prefix].set()
        self._wake()

    def _apply(self, change: Change) -> None:
        if change.entry is None:
            self._entries.pop(change.key, None)
        else:
            self._entries[change.key] = change.entry
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
