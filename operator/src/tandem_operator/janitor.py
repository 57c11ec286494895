# SPDX-License-Identifier: Apache-2.0
"""Clears etcd of jobs that are gone, also of those deleted while no operator ran."""

import asyncio

import structlog

from tandem_api.errors import TryAgain
from tandem_api.keys import JobKeys
from tandem_operator.cluster import RLJOB, Cluster, Refused, Selection
from tandem_operator.etcd import JobStates
from tandem_operator.etcd_accounts import Accounts

log = structlog.get_logger()

_RETRY_SECONDS = 5.0


class Janitor:
    """Jobs are named by :meth:`gone`, or found by :meth:`run` when it starts; each is cleared until that succeeds."""

    def __init__(self, cluster: Cluster, states: JobStates, accounts: Accounts | None) -> None:
        self._cluster = cluster
        self._states = states
        self._accounts = accounts
        self._gone: asyncio.Queue[JobKeys] = asyncio.Queue()

    def gone(self, keys: JobKeys) -> None:
        self._gone.put_nowait(keys)

    async def run(self, namespaces: tuple[str | None, ...]) -> None:
        await self._states.synced.wait()
        await self._find_forgotten(namespaces)
        while True:
            keys = await self._gone.get()
            try:
                await self._states.forget(keys)
                if self._accounts is not None:
                    await self._accounts.remove(keys.uid)
                log.info("cleared etcd of a deleted job", namespace=keys.namespace, job=keys.name)
            except TryAgain as error:
                log.warning("could not clear etcd of a deleted job", job=keys.name, error=str(error))
                self._gone.put_nowait(keys)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _find_forgotten(self, namespaces: tuple[str | None, ...]) -> None:
        """A job counts as gone only if its namespace is one of ours and a list taken *after* its keys lacks it."""
        candidates = [keys for keys in self._states.known() if namespaces == (None,) or keys.namespace in namespaces]
        alive = {item["metadata"]["uid"] for namespace in namespaces for item in await self._list(namespace)}
        for keys in candidates:
            if keys.uid not in alive:
                self.gone(keys)

    async def _list(self, namespace: str | None) -> list[dict[str, dict[str, str]]]:
        while True:
            try:
                items, _ = await self._cluster.list(Selection(RLJOB, namespace, metadata_only=True))
            except (TryAgain, Refused) as error:
                log.warning("could not list RLJobs", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return items
