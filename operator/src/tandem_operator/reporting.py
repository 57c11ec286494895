# SPDX-License-Identifier: Apache-2.0
"""Telling users: RLJob.status and Kubernetes Events."""

import itertools
import time

import structlog

from tandem_api import API_VERSION, KIND
from tandem_api.errors import TryAgain
from tandem_api.rljob import RLJobObject
from tandem_api.status import ConditionType, RLJobStatus
from tandem_operator.cluster import EVENT, RLJOB, Cluster, Refused
from tandem_operator.plan.identity import Manifest
from tandem_operator.policy.announcements import Announcement
from tandem_operator.times import rfc3339
from tandem_operator.workqueue import Key

log = structlog.get_logger()

COUNTER_SECONDS = 10.0
"""Counters alone are written no more often than this."""
PHASE_SECONDS = 1.0

_NEWS = ("phase", "restarts", "disruptions", "hybrid_ready", "checkpoint", "observed_generation", "completion_time")


class Reporter:
    """Writes what has changed, and no more often than people can read it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: dict[Key, float] = {}
        self._numbers = itertools.count()

    def forget(self, key: Key) -> None:
        self._written.pop(key, None)

    def postponed(self, key: Key, before: RLJobStatus, after: RLJobStatus) -> float:
        """Seconds for which writing ``after`` can wait; 0 for news."""
        if _truths(before) != _truths(after):
            return 0.0
        news = any(getattr(before, name) != getattr(after, name) for name in _NEWS)
        pause = PHASE_SECONDS if news else COUNTER_SECONDS
        return max(0.0, self._written.get(key, -COUNTER_SECONDS) + pause - time.monotonic())

    async def write(self, job: RLJobObject, status: RLJobStatus) -> Manifest | None:
        """Write the status; returns the RLJob as it now is, None if it is gone."""
        meta = job.metadata
        self._written[meta.namespace, meta.name] = time.monotonic()
        body = {"status": status.model_dump(mode="json", by_alias=True)}
        return await self._cluster.patch(RLJOB, meta.namespace, meta.name, body, "status")

    async def announce(self, job: RLJobObject, announcements: tuple[Announcement, ...]) -> None:
        """Post Events. One that cannot be posted is logged: no job waits for its Events."""
        for announcement in announcements:
            log.info("told the user", job=job.metadata.name, reason=announcement.reason)
            try:
                await self._cluster.create(self._event(job, announcement))
            except (TryAgain, Refused) as error:
                log.warning("could not post an Event", reason=announcement.reason, error=str(error))

    def _event(self, job: RLJobObject, announcement: Announcement) -> Manifest:
        meta, now = job.metadata, time.time()
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {
                "name": f"{meta.name}.{time.time_ns():x}.{next(self._numbers):x}",
                "namespace": meta.namespace,
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
            "type": "Warning" if announcement.warning else "Normal",
            "reason": announcement.reason,
            "message": announcement.message[:1024],
            "source": {"component": "tandem-operator"},
            "reportingComponent": "tandem-rl.dev/operator",
            "reportingInstance": "tandem-operator",
            "firstTimestamp": rfc3339(now),
            "lastTimestamp": rfc3339(now),
            "count": 1,
        }


def _truths(status: RLJobStatus) -> list[tuple[str, str, str]]:
    """The conditions but for what the phase alone changes."""
    return [
        (condition.type, condition.status, "" if condition.type is ConditionType.PROGRESSING else condition.reason)
        for condition in status.conditions
    ]
