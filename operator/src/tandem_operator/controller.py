# SPDX-License-Identifier: Apache-2.0
"""Keeps every job as it should be: takes what is observed, asks the policies, and does what they say."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from tandem_api.errors import TryAgain, UserError
from tandem_api.keys import JobKeys
from tandem_api.labels import JOB_LABEL
from tandem_api.rljob import RLJobObject
from tandem_operator import jobs, metrics, policy
from tandem_operator.cluster import EVENT, JOB, POD, RLJOB, Cluster, Kind, Refused, Selection
from tandem_operator.etcd import JobStates
from tandem_operator.etcd_accounts import Accounts, Protection, account_name
from tandem_operator.informer import Informer
from tandem_operator.janitor import Janitor
from tandem_operator.objects import Objects
from tandem_operator.observations import Observations, owner
from tandem_operator.observed import Observed
from tandem_operator.plan import Platform, identity
from tandem_operator.plan.identity import Manifest
from tandem_operator.reporting import Reporter
from tandem_operator.workqueue import Key, WorkQueue
from tandem_phases.store import Store

log = structlog.get_logger()

RECONCILE_SECONDS = 60.0
"""No look at a job takes longer; it is then tried again later."""

_ETCD_PATIENCE = 5.0
_CLAIM = Kind("v1", "PersistentVolumeClaim")
_GUARDED = (
    Kind("v1", "Service"),
    Kind("v1", "ConfigMap"),
    _CLAIM,
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("policy/v1", "PodDisruptionBudget"),
)
"""Kinds whose objects are made again when someone deletes them while the job runs."""


class Controller:
    """Remembers RLJobs from the start; acts while :meth:`lead` runs, which is while this replica leads."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        accounts: Accounts | None,
        platform: Platform,
        namespaces: tuple[str, ...],
    ) -> None:
        self._cluster = cluster
        self._protection = Protection(accounts, self.accounts_known) if accounts else None
        self._users: frozenset[str] | None = None
        doubt = self._protection.doubt if self._protection else None
        self._states = JobStates(store, self.state_changed, self.etcd_came_or_went, doubt)
        self._objects = Objects(cluster, accounts, platform)
        self._janitor = Janitor(cluster, self._states, accounts)
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._observations = Observations()
        self._reporter = Reporter(cluster)
        self._queue = WorkQueue()
        self._jobs: dict[Key, RLJobObject] = {}
        self._refusals: dict[Key, str] = {}
        self._damaged: set[Key] = set()
        self._inspected: set[str] = set()
        self._guards: list[Informer] = []

    def seen(self, raw: Manifest) -> None:
        """An RLJob as it is now, or as it was before what is known already."""
        key = raw["metadata"]["namespace"], raw["metadata"]["name"]
        known = self._jobs.get(key)
        if known is not None and not jobs.newer(raw, known):
            return
        try:
            self._jobs[key] = jobs.read(raw)
        except UserError as error:
            log.error("cannot read an RLJob; leaving it alone", namespace=key[0], job=key[1], error=str(error))
            return
        self._queue.add(key)

    def gone(self, raw: Manifest) -> None:
        """An RLJob was deleted. Kubernetes collects its objects, the janitor what etcd holds."""
        meta = raw["metadata"]
        key = meta["namespace"], meta["name"]
        self._jobs.pop(key, None)
        self._refusals.pop(key, None)
        self._damaged.discard(key)
        self._observations.forget(key)
        self._reporter.forget(key)
        self._queue.forget(key)
        self._inspected.discard(meta["uid"])
        self._objects.forget(meta["uid"])
        self._janitor.gone(JobKeys(*key, meta["uid"]))

    def state_changed(self, keys: JobKeys, what: str) -> None:
        """etcd has something new of a job."""
        key = keys.namespace, keys.name
        if key in self._jobs and what != "desired":
            self._queue.add(key)

    def etcd_came_or_went(self) -> None:
        if self._protection is not None and self._states.error is None:
            self._protection.doubt()
        for key in self._jobs:
            self._queue.add(key)

    def accounts_known(self, users: frozenset[str]) -> None:
        """These users are in etcd; a job whose user is not, since etcd lost its data, gets it anew."""
        self._users = users
        for key, job in self._jobs.items():
            if account_name(job.metadata.uid) not in users:
                self._damaged.add(key)
                self._queue.add(key)

    def count_phases(self) -> None:
        """Bring the gauge of jobs by phase up to date."""
        metrics.jobs.clear()
        for phase, count in Counter(job.status.phase.value for job in self._jobs.values()).items():
            metrics.jobs.labels(phase).set(count)

    async def lead(self, workers: int) -> None:
        """Look after all jobs until cancelled."""
        metrics.leading.set(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._states.run(), name="etcd")
                if self._protection is not None:
                    tasks.create_task(self._protection.run(), name="etcd authentication")
                tasks.create_task(self._janitor.run(self._namespaces), name="janitor")
                informers = [
                    Informer(self._cluster, *watched) for place in self._namespaces for watched in self._watched(place)
                ]
                for informer in informers:
                    tasks.create_task(informer.run(), name="informer")
                await self._wait_for(informers)
                self._guards = [informer for informer in informers if informer.selection.kind in _GUARDED]
                for key in self._jobs:
                    self._queue.add(key)
                for number in range(workers):
                    tasks.create_task(self._work(), name=f"worker {number}")
        finally:
            metrics.leading.set(0)

    async def _wait_for(self, informers: list[Informer]) -> None:
        """A decision on half of what there is would be wrong; without etcd it is merely not the newest."""
        await asyncio.gather(*(informer.synced.wait() for informer in informers))
        try:
            async with asyncio.timeout(_ETCD_PATIENCE):
                await self._states.synced.wait()
        except TimeoutError:
            log.warning("etcd does not answer; starting without it")

    def _inspect(self, key: Key, job: RLJobObject) -> None:
        """What was deleted while nobody watched is made again: at the first look that this process takes at a job."""
        if job.metadata.uid in self._inspected:
            return
        self._inspected.add(job.metadata.uid)
        if self._users is not None and account_name(job.metadata.uid) not in self._users:
            self._damaged.add(key)
        for kind, name in self._objects.guarded(job, _GUARDED):
            if not any(guard.selection.kind == kind and guard.knows(key[0], name) for guard in self._guards):
                self._damaged.add(key)

    def _watched(
        self, namespace: str | None
    ) -> list[tuple[Selection, Callable[[Manifest], None], Callable[[Manifest], None]]]:
        ours = f"app.kubernetes.io/managed-by={identity.MANAGER},{JOB_LABEL}"
        seen = self._observations

        def wakes(note: Callable[[Manifest], Key | None]) -> Callable[[Manifest], None]:
            return lambda raw: self._wake(note(raw))

        return [
            (Selection(POD, namespace, ours), wakes(seen.pod_changed), wakes(seen.pod_gone)),
            (Selection(JOB, namespace, ours), wakes(seen.workload_changed), wakes(seen.workload_gone)),
            (Selection(EVENT, namespace, fields="type=Warning"), wakes(seen.warned), _ignore),
            *(
                (
                    Selection(kind, namespace, ours, "", True),
                    wakes(seen.claim_changed) if kind == _CLAIM else _ignore,
                    self._guard,
                )
                for kind in _GUARDED
            ),
        ]

    def _wake(self, key: Key | None) -> None:
        if key in self._jobs:
            self._queue.add(key)

    def _guard(self, raw: Manifest) -> None:
        key = owner(raw)
        if key in self._jobs:
            self._damaged.add(key)
            self._queue.add(key)

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            outcome = "done"
            started = time.monotonic()
            try:
                async with asyncio.timeout(RECONCILE_SECONDS):
                    again = await self._look(key)
                self._queue.done(key, again)
            except (TryAgain, Refused, TimeoutError) as error:
                outcome = "failed"
                wait = self._queue.failed(key)
                log.warning("will try again", namespace=key[0], job=key[1], error=str(error) or "timeout", seconds=wait)
            except Exception:
                # A mistake of ours must cost one job, never all.
                outcome = "error"
                wait = self._queue.failed(key)
                log.exception("looking at a job failed", namespace=key[0], job=key[1], seconds=wait)
            metrics.reconciles.labels(outcome).observe(time.monotonic() - started)

    async def _look(self, key: Key) -> float | None:
        """One look at a job; returns the seconds after which it wants another."""
        job = self._jobs.get(key)
        if job is None or job.metadata.deletion_timestamp is not None:
            return None
        decision = self._decide(key, job)
        if decision.delete:
            await self._cluster.delete(RLJOB, *key, job.metadata.uid)
            return None
        problem = await self._act(key, job, decision)
        if problem is not None or key in self._refusals:
            decision = self._decide(key, job)
        wait = await self._report(key, job, decision)
        if problem is not None:
            raise problem
        return wait

    def _decide(self, key: Key, job: RLJobObject) -> policy.Decision:
        gang = self._objects.platform.capabilities.gang
        return policy.decide(job, self._observed(key, job), time.time(), gang)

    def _observed(self, key: Key, job: RLJobObject) -> Observed:
        state = self._states.of(jobs.keys_of(job))
        return replace(
            self._observations.of(key),
            phase=state.phase,
            progress=state.progress,
            etcd_error=self._states.error,
            refusal=self._refusals.get(key),
        )

    async def _act(self, key: Key, job: RLJobObject, decision: policy.Decision) -> TryAgain | Refused | None:
        workloads = self._observations.of(key).workloads
        try:
            if decision.active:
                self._inspect(key, job)
                await self._objects.ensure(
                    job, decision.suspension, workloads, decision.withdrawn, rebuild=key in self._damaged
                )
                self._damaged.discard(key)
            else:
                await self._objects.quiet(job, decision.suspension, workloads, decision.withdrawn)
            await self._states.set_desired(jobs.keys_of(job), jobs.desired(job, decision.desired))
        except TryAgain as error:
            return error
        except Refused as error:
            self._refusals[key] = str(error)
            return error
        self._refusals.pop(key, None)
        return None

    async def _report(self, key: Key, job: RLJobObject, decision: policy.Decision) -> float | None:
        now = time.time()
        again = None if decision.look_again is None else max(0.0, decision.look_again - now)
        if decision.status == job.status:
            return again
        if wait := self._reporter.postponed(key, job.status, decision.status):
            return min(wait, again) if again is not None else wait
        written = await self._reporter.write(job, decision.status)
        if written is not None and key in self._jobs:
            self._jobs[key] = jobs.read(written)
            if decision.status.disruptions > job.status.disruptions:
                self._observations.booked(key)
            await self._reporter.announce(job, decision.announcements)
        return again


def _ignore(_: Any) -> None:
    """This change means nothing to the controller."""
