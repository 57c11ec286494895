# SPDX-License-Identifier: Apache-2.0
"""A local copy of the keys under a prefix, kept up to date by a watch."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog

from tandem_api.errors import TryAgain
from tandem_phases.store import Change, Entry, Store

log = structlog.get_logger()

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 2.0


class Mirror:
    """What etcd holds under a prefix, as of the last change that reached us.

    While etcd is away the copy stays as it was; when it is back the copy is read afresh, so a reader sees the newest
    state and may miss states in between. Decide from what *is*, never from what changed.

    >>> async with Mirror(store, keys.prefix) as mirror:
    ...     phase = await mirror.until(lambda entries: entries.get(keys.phase), timeout=30)
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Condition()
        self._filled = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def under(self, prefix: str) -> dict[str, Entry]:
        """The entries below a longer prefix, in key order."""
        return {key: self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)}

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow(), name=f"mirror of {self._prefix}")
        await self._filled.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    async def until[T](self, condition: Callable[[Mapping[str, Entry]], T | None], timeout: float | None = None) -> T:
        """The first value other than None that ``condition`` gives on the entries, now or after a change.

        Raises:
            TimeoutError: ``timeout`` seconds passed.
        """
        async with asyncio.timeout(timeout), self._changed:
            while (value := condition(self._entries)) is None:
                await self._changed.wait()
            return value

    async def _follow(self) -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                entries, revision = await self._store.list(self._prefix)
                async with self._store.watch(self._prefix, revision) as changes:
                    await self._replace(entries)
                    wait = _FIRST_WAIT
                    async for change in changes:
                        await self._apply(change)
            except TryAgain as error:
                log.warning("etcd is away; the last known state stands", prefix=self._prefix, error=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    async def _replace(self, entries: dict[str, Entry]) -> None:
        async with self._changed:
            self._entries = entries
            self._filled.set()
            self._changed.notify_all()

    async def _apply(self, change: Change) -> None:
        async with self._changed:
            if change.entry is None:
                self._entries.pop(change.key, None)
            else:
                self._entries[change.key] = change.entry
            self._changed.notify_all()
