# SPDX-License-Identifier: Apache-2.0
"""List, then watch: tells of every object of a selection as it is now, and of its end."""

import asyncio
from collections.abc import Callable

import structlog

from tandem_api.errors import TryAgain
from tandem_operator.cluster import Cluster, Expired, Refused, Selection
from tandem_operator.plan.identity import Manifest

log = structlog.get_logger()

_LONGEST_WAIT = 30.0


class Informer:
    """Calls ``changed(object)`` and ``gone(object)`` for a selection until cancelled.

    After a gap in the watch it lists again; what vanished meanwhile is reported gone with the metadata last seen.
    Only names are kept here: whoever is told keeps what it needs.
    """

    def __init__(
        self,
        cluster: Cluster,
        selection: Selection,
        changed: Callable[[Manifest], None],
        gone: Callable[[Manifest], None],
    ) -> None:
        self._cluster = cluster
        self._selection = selection
        self._changed = changed
        self._gone = gone
        self._known: dict[str, Manifest] = {}
        self.synced = asyncio.Event()

    @property
    def selection(self) -> Selection:
        return self._selection

    def knows(self, namespace: str, name: str) -> bool:
        """Whether there is an object of this name."""
        return f"{namespace}/{name}" in self._known

    async def run(self) -> None:
        wait = 1.0
        while True:
            try:
                version = await self._list()
                wait = 1.0
                while True:
                    version = await self._watch(version)
            except Expired:
                log.info("a watch fell behind; listing again", kind=self._selection.kind.name)
            except (TryAgain, Refused) as error:
                log.warning("cannot watch", kind=self._selection.kind.name, error=str(error), retry_in=wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    async def _list(self) -> str:
        items, version = await self._cluster.list(self._selection)
        vanished = dict(self._known)
        for item in items:
            vanished.pop(_key(item), None)
            self._tell(item)
        for item in vanished.values():
            self._forget(item)
        self.synced.set()
        return version

    async def _watch(self, version: str) -> str:
        async for seen in self._cluster.watch(self._selection, version):
            version = seen.object["metadata"]["resourceVersion"]
            if seen.type == "DELETED":
                self._forget(seen.object)
            elif seen.type != "BOOKMARK":
                self._tell(seen.object)
        return version

    def _tell(self, item: Manifest) -> None:
        kept = ("name", "namespace", "labels", "uid")
        metadata = {name: item["metadata"][name] for name in kept if name in item["metadata"]}
        self._known[_key(item)] = {"metadata": metadata}
        self._changed(item)

    def _forget(self, item: Manifest) -> None:
        self._known.pop(_key(item), None)
        self._gone(item)


def _key(item: Manifest) -> str:
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
