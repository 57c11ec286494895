# SPDX-License-Identifier: Apache-2.0
"""Bringing a job's objects into being: what plan() says, in as few requests as it takes."""

import base64
import hashlib
import json
import secrets as random
import time

from tandem_api.environment import Secrets
from tandem_api.rljob import RLJobObject
from tandem_operator.cluster import JOB, SECRET, Cluster, Kind, Refused
from tandem_operator.etcd_accounts import Accounts, account_name
from tandem_operator.jobs import keys_of
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.observed import Workload
from tandem_operator.plan import Platform, Suspension, accelerators, identity, plan
from tandem_operator.plan.identity import Manifest

_TOKEN_BYTES = 32
_UNSEEN_SECONDS = 30.0


class Objects:
    """Applies plans. A job whose hybrid Job carries the plan's digest needs no request at all."""

    def __init__(self, cluster: Cluster, accounts: Accounts | None, platform: Platform) -> None:
        self._cluster = cluster
        self._accounts = accounts
        self.platform = platform
        self._unseen: dict[tuple[str, str], float] = {}
        self._digests: dict[str, tuple[int, str]] = {}

    async def ensure(
        self,
        job: RLJobObject,
        suspension: Suspension,
        workloads: tuple[Workload, ...],
        withdrawn: bool,
        rebuild: bool = False,
    ) -> None:
        """All objects exist as planned; the hybrid Job does not, if it is ``withdrawn``.

        The digest on the Job that is applied last vouches for the others, unless ``rebuild``: one was deleted.

        Raises:
            Refused: the API server does not accept an object.
            TryAgain: the API server or etcd is away.
        """
        self._check(job)
        known = {work.name: work for work in workloads}
        digest = self._digest(job)
        hybrid = identity.hybrid_name(job.metadata.name)
        if rebuild or not self._stands(job, known, digest, withdrawn):
            await self._apply_all(job, suspension, known, digest, withdrawn)
        else:
            await self._suspend(job, suspension, known)
        if withdrawn and hybrid in known:
            await self._cluster.delete(JOB, job.metadata.namespace, hybrid)

    async def quiet(self, job: RLJobObject, suspension: Suspension, workloads: tuple[Workload, ...]) -> None:
        """Suspend what still runs of a job that has ended. Makes and resumes nothing."""
        wanted = Suspension(
            hybrid=suspension.hybrid and self._runs(workloads, identity.HYBRID),
            orchestrator=suspension.orchestrator and self._runs(workloads, identity.ORCHESTRATOR),
        )
        for work in workloads:
            if getattr(wanted, work.component):
                await self._patch(job, work.name, True, None)

    @staticmethod
    def _runs(workloads: tuple[Workload, ...], component: str) -> bool:
        return any(
            work.component == component and not (work.suspended or work.complete or work.failed) for work in workloads
        )

    def _stands(self, job: RLJobObject, known: dict[str, Workload], digest: str, withdrawn: bool) -> bool:
        """Whether both Jobs are there as planned, or were made a moment ago and have not been seen yet."""
        name = job.metadata.name
        wanted = [identity.orchestrator_name(name)] + ([] if withdrawn else [identity.hybrid_name(name)])
        for found in known:
            self._unseen.pop((job.metadata.uid, found), None)
        soon = time.monotonic() - _UNSEEN_SECONDS
        return all(
            known[one].plan == digest if one in known else self._unseen.get((job.metadata.uid, one), soon) > soon
            for one in wanted
        )

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._digests.pop(uid, None)
        for key in [key for key in self._unseen if key[0] == uid]:
            del self._unseen[key]

    def guarded(self, job: RLJobObject, kinds: tuple[Kind, ...]) -> set[tuple[Kind, str]]:
        """Kind and name of the job's objects of these kinds."""
        planned = plan(job, self.platform, Secrets(""))
        return {(Kind.of(found), found["metadata"]["name"]) for found in planned if Kind.of(found) in kinds}

    def _check(self, job: RLJobObject) -> None:
        if accelerators.claims(job.spec.hybrid.accelerators) and self.platform.capabilities.resource_api is None:
            raise Refused(
                404,
                "NoResourceClaims",
                "hybrid.accelerators.isolation Claim needs Dynamic Resource Allocation (resource.k8s.io/v1), which "
                "this cluster does not serve; upgrade it, or set isolation to Shared, whose isolation is weaker.",
            )

    def _digest(self, job: RLJobObject) -> str:
        """Of everything but what is drawn at random or changes while the job runs."""
        generation, digest = self._digests.get(job.metadata.uid, (-1, ""))
        if generation != job.metadata.generation:
            planned = plan(job, self.platform, Secrets(""))
            digest = hashlib.sha256(json.dumps(planned, sort_keys=True).encode()).hexdigest()[:16]
            self._digests[job.metadata.uid] = job.metadata.generation, digest
        return digest

    async def _apply_all(
        self,
        job: RLJobObject,
        suspension: Suspension,
        known: dict[str, Workload],
        digest: str,
        withdrawn: bool,
    ) -> None:
        credentials = self._draw(job)
        planned = plan(job, self.platform, credentials, suspension)
        for manifest in planned:
            name = manifest["metadata"]["name"]
            match Kind.of(manifest):
                case kind if kind == SECRET:
                    await self._keep_secret(job, manifest, credentials)
                case kind if kind == JOB and name in known:
                    await self._patch(job, name, manifest["spec"]["suspend"], digest)
                case kind if kind == JOB:
                    if not (withdrawn and name == identity.hybrid_name(job.metadata.name)):
                        manifest["metadata"].setdefault("annotations", {})[PLAN_ANNOTATION] = digest
                        await self._cluster.apply(manifest)
                        self._unseen[job.metadata.uid, name] = time.monotonic()
                case _:
                    await self._cluster.apply(manifest)

    async def _suspend(self, job: RLJobObject, suspension: Suspension, known: dict[str, Workload]) -> None:
        for work in known.values():
            wanted = bool(getattr(suspension, work.component))
            if work.suspended != wanted and not work.complete:
                await self._patch(job, work.name, wanted, None)

    async def _patch(self, job: RLJobObject, name: str, suspended: bool, digest: str | None) -> None:
        patch: Manifest = {"spec": {"suspend": suspended}}
        if digest is not None:
            patch["metadata"] = {"annotations": {PLAN_ANNOTATION: digest}}
        await self._cluster.patch(JOB, job.metadata.namespace, name, patch)

    def _draw(self, job: RLJobObject) -> Secrets:
        token = random.token_urlsafe(_TOKEN_BYTES)
        if self._accounts is None:
            return Secrets(token)
        return Secrets(token, account_name(job.metadata.uid), random.token_urlsafe(_TOKEN_BYTES))

    async def _keep_secret(self, job: RLJobObject, manifest: Manifest, drawn: Secrets) -> None:
        """Secrets are drawn once: pods that run know the old ones."""
        created = await self._cluster.create(manifest)
        if self._accounts is None:
            return
        password = drawn.etcd_password
        if not created:
            password = await self._stored_password(job, manifest["metadata"]["name"])
        if password is not None:
            await self._accounts.add(keys_of(job), password)

    async def _stored_password(self, job: RLJobObject, name: str) -> str | None:
        found = await self._cluster.get(SECRET, job.metadata.namespace, name)
        owners = found["metadata"].get("ownerReferences", ()) if found else ()
        if found is None or not any(owner["uid"] == job.metadata.uid for owner in owners):
            raise Refused(409, "AlreadyExists", f"Secret {name} exists and belongs to something else; delete it")
        stored = found.get("data", {}).get("etcd-password")
        return base64.b64decode(stored).decode() if stored else None
