# SPDX-License-Identifier: Apache-2.0
"""One of the replicas leads: the holder of a coordination.k8s.io Lease."""

import asyncio
import time

import structlog

from tandem_api.errors import TryAgain
from tandem_operator.cluster import LEASE, Cluster, Refused
from tandem_operator.configuration import LeaderElection
from tandem_operator.plan.identity import Manifest
from tandem_operator.times import rfc3339_micro

log = structlog.get_logger()


class Elector:
    """Takes the Lease when it is free, keeps it, and says so when it is lost.

    Clocks are not compared between machines: a Lease is free when this process has not seen its record change for the
    Lease's duration. A leader that cannot renew stops within ``renew_deadline``, which is shorter.

    >>> await elector.acquire()
    >>> await elector.keep()      # returns when the lease is lost
    """

    def __init__(self, cluster: Cluster, settings: LeaderElection, identity: str) -> None:
        self._cluster = cluster
        self._settings = settings
        self._identity = identity
        self._record: tuple[str, str] | None = None
        self._changed_at = 0.0

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        log.info("waiting to lead", identity=self._identity)
        while not await self._attempt():  # noqa: ASYNC110 - the Lease is another process's to change
            await asyncio.sleep(self._settings.retry_period)
        log.info("leading", identity=self._identity)

    async def keep(self) -> None:
        """Renew until that fails for too long, or someone else holds the Lease."""
        renewed = time.monotonic()
        while time.monotonic() - renewed < self._settings.renew_deadline:
            await asyncio.sleep(self._settings.retry_period)
            asked = time.monotonic()
            if await self._attempt():
                renewed = asked
            elif self._record is not None and self._record[0] != self._identity:
                break
        log.error("no longer leading", identity=self._identity)

    async def release(self) -> None:
        """Let the next replica lead at once."""
        try:
            lease = await self._read()
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._cluster.replace(lease)
        except (TryAgain, Refused) as error:
            log.warning("could not give the lease back; it will expire", error=str(error))

    async def _read(self) -> Manifest | None:
        lease = await self._cluster.get(LEASE, self._settings.namespace, self._settings.name)
        return None if lease is None else {"spec": {}, **lease}

    async def _attempt(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.renew_deadline):
                lease = await self._read()
                if lease is None:
                    return await self._cluster.create(self._new())
                self._observe(lease["spec"])
                holder = lease["spec"].get("holderIdentity")
                if holder not in (self._identity, "", None) and not self._free(lease["spec"]):
                    return False
                await self._cluster.replace(self._mine(lease))
        except (TryAgain, Refused, TimeoutError) as error:
            log.warning("could not take or renew the lease", error=str(error) or "timeout")
            return False
        return True

    def _observe(self, spec: Manifest) -> None:
        record = (spec.get("holderIdentity") or "", spec.get("renewTime") or "")
        if record != self._record:
            self._record, self._changed_at = record, time.monotonic()

    def _free(self, spec: Manifest) -> bool:
        return time.monotonic() - self._changed_at > float(spec.get("leaseDurationSeconds") or 0)

    def _new(self) -> Manifest:
        metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": self._holding(0)}

    def _mine(self, lease: Manifest) -> Manifest:
        spec = lease["spec"]
        transitions = int(spec.get("leaseTransitions") or 0)
        if spec.get("holderIdentity") == self._identity:
            return {**lease, "spec": {**spec, "renewTime": rfc3339_micro(time.time())}}
        return {**lease, "spec": {**spec, **self._holding(transitions + 1)}}

    def _holding(self, transitions: int) -> Manifest:
        now = rfc3339_micro(time.time())
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._settings.duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
