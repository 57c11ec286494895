# SPDX-License-Identifier: Apache-2.0
"""The operator's side of etcd: it reads phase and progress of all jobs by one watch, and writes what is desired."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import structlog
from pydantic import ValidationError

from tandem_api.base import Message
from tandem_api.errors import TryAgain
from tandem_api.keys import ROOT, JobKeys
from tandem_api.messages.phases import Desired, PhaseRecord, Progress
from tandem_operator import metrics
from tandem_operator.etcd_accounts import NOT_ENABLED
from tandem_phases.store import Store

log = structlog.get_logger()

HICCUP_SECONDS = 10.0
"""For so long etcd may be away without anyone being told."""

_LONGEST_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class JobState:
    """What etcd says of one job."""

    phase: PhaseRecord | None = None
    progress: Progress | None = None
    desired: Desired | None = None


_MESSAGES: dict[str, type[Message]] = {"phase": PhaseRecord, "progress": Progress, "desired": Desired}


class JobStates:
    """The states of all jobs, kept up to date while :meth:`run` runs.

    ``changed(keys, what)`` is called after each change with the key's last part (``phase``, ``progress``),
    ``reachable()`` when etcd comes or goes, and ``unprotected()`` when it does not ask for the password that it is
    given; by default that is an error as any other.
    """

    def __init__(
        self,
        store: Store,
        changed: Callable[[JobKeys, str], None],
        reachable: Callable[[], None],
        unprotected: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._changed = changed
        self._reachable = reachable
        self._unprotected = unprotected
        self._states: dict[JobKeys, JobState] = {}
        self._away_since: float | None = None
        self._error = ""
        self.synced = asyncio.Event()

    def of(self, keys: JobKeys) -> JobState:
        return self._states.get(keys, JobState())

    def known(self) -> Iterator[JobKeys]:
        """Jobs that have keys in etcd."""
        return iter(tuple(self._states))

    @property
    def error(self) -> str | None:
        """Why etcd cannot be reached, once that has lasted longer than a hiccup."""
        away = self._away_since is not None and time.monotonic() - self._away_since > HICCUP_SECONDS
        return self._error if away else None

    async def set_desired(self, keys: JobKeys, desired: Desired) -> None:
        """Write what is desired, if that is news.

        Raises:
            TryAgain: etcd is away.
        """
        if self.of(keys).desired != desired:
            await self._store.put(keys.desired, desired.wire())
            self._states[keys] = replace(self.of(keys), desired=desired)

    async def forget(self, keys: JobKeys) -> None:
        """Delete all that etcd holds of a job.

        Raises:
            TryAgain: etcd is away.
        """
        await self._store.delete_prefix(keys.prefix)
        self._states.pop(keys, None)

    async def run(self) -> None:
        wait = 0.5
        while True:
            try:
                entries, revision = await self._store.list(ROOT)
                async with self._store.watch(ROOT, revision) as changes:
                    self._states = {}
                    for key, entry in entries.items():
                        self._take(key, entry.value)
                    self._came()
                    wait = 0.5
                    async for change in changes:
                        self._take(change.key, change.entry.value if change.entry else None)
            except TryAgain as error:
                self._went(error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def _take(self, key: str, value: str | None) -> None:
        found = JobKeys.of(key)
        if found is None or found[1] not in _MESSAGES:
            return
        keys, what = found
        try:
            message = _MESSAGES[what].model_validate_json(value) if value is not None else None
        except ValidationError as error:
            log.error("etcd holds something that is no message of ours", key=key, error=str(error))
            return
        state = replace(self.of(keys), **{what: message})  # type: ignore[arg-type]
        if state == JobState():
            self._states.pop(keys, None)
        else:
            self._states[keys] = state
        self._changed(keys, what)

    def _came(self) -> None:
        metrics.etcd_up.set(1)
        was_away, self._away_since = self._away_since is not None, None
        self.synced.set()
        if was_away:
            log.info("etcd is back")
            self._reachable()

    def _went(self, error: TryAgain) -> None:
        metrics.etcd_up.set(0)
        self._error = str(error)
        new = self._unprotected is not None and NOT_ENABLED in self._error
        if self._unprotected is not None and new:
            self._unprotected()
        if self._away_since is None:
            self._away_since = time.monotonic()
            if new:
                log.info("etcd asks for no password yet")
                return
            log.warning("etcd is away; jobs keep their phase until it is back", error=str(error))
        elif self.error is not None:
            self._reachable()
