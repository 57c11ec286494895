# SPDX-License-Identifier: Apache-2.0
"""Bringing a job's objects into being: what plan() says, in as few requests as it takes."""

import asyncio
import base64
import hashlib
import json
import secrets as random
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tandem_api.environment import Secrets
from tandem_api.labels import HYBRID
from tandem_api.rljob import RLJobObject
from tandem_operator import certificates
from tandem_operator.cluster import JOB, SECRET, Cluster, Kind, Refused
from tandem_operator.etcd_accounts import Accounts, account_name
from tandem_operator.jobs import keys_of
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.observed import Workload
from tandem_operator.plan import Certificate, Platform, Suspension, accelerators, identity, plan, tls
from tandem_operator.plan.identity import Manifest

_TOKEN_BYTES = 32
_UNSEEN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Outline:
    """What is remembered of a plan, with or without TLS between the pods.

    ``digest`` covers everything but what is random or changes while the job runs.
    """

    generation: int
    secured: bool
    digest: str
    names: frozenset[tuple[Kind, str]]


class Objects:
    """Applies plans. A job whose hybrid Job carries the plan's digest needs no request at all."""

    def __init__(self, cluster: Cluster, accounts: Accounts | None, platform: Platform) -> None:
        self._cluster = cluster
        self._accounts = accounts
        self.platform = platform
        self._unseen: dict[tuple[str, str], float] = {}
        self._outlines: dict[str, _Outline] = {}

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
        outline = self._outline(job, self._secured(known))
        hybrid = identity.hybrid_name(job.metadata.name)
        if rebuild or not self._stands(job, known, outline.digest, withdrawn):
            await self._apply_all(job, suspension, known, outline, withdrawn)
        else:
            await self._suspend(job, suspension, known)
        if withdrawn and hybrid in known:
            await self._cluster.delete(JOB, job.metadata.namespace, hybrid)

    async def quiet(
        self, job: RLJobObject, suspension: Suspension, workloads: tuple[Workload, ...], withdrawn: bool
    ) -> None:
        """Suspend what still runs of a job that has ended, or delete it if ``withdrawn``. Makes and resumes nothing."""
        for work in workloads:
            if work.complete or work.failed or not getattr(suspension, work.component):
                continue
            if withdrawn and work.component == HYBRID:
                await self._cluster.delete(JOB, job.metadata.namespace, work.name)
            elif not work.suspended:
                await self._patch(job, work.name, True, None)

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
        self._outlines.pop(uid, None)
        for key in [key for key in self._unseen if key[0] == uid]:
            del self._unseen[key]

    def guarded(self, job: RLJobObject, kinds: tuple[Kind, ...]) -> set[tuple[Kind, str]]:
        """Kind and name of the job's objects of these kinds."""
        known = self._outlines.get(job.metadata.uid)
        outline = self._outline(job, known is not None and known.secured)
        return {(kind, name) for kind, name in outline.names if kind in kinds}

    def _check(self, job: RLJobObject) -> None:
        if accelerators.claims(job.spec.hybrid.accelerators) and self.platform.capabilities.resource_api is None:
            raise Refused(
                404,
                "NoResourceClaims",
                "hybrid.accelerators.isolation Claim needs Dynamic Resource Allocation (resource.k8s.io/v1), which "
                "this cluster does not serve; upgrade it, or set isolation to Shared, whose isolation is weaker.",
            )

    def _secured(self, known: dict[str, Workload]) -> bool:
        """Whether the job's pods speak TLS: both workloads or neither, as those that are there cannot be changed."""
        return any(work.secured for work in known.values()) if known else self.platform.tls

    def _outline(self, job: RLJobObject, secured: bool) -> _Outline:
        known = self._outlines.get(job.metadata.uid)
        if known is None or (known.generation, known.secured) != (job.metadata.generation, secured):
            planned = plan(job, self.platform, Secrets(""), certificate=Certificate("", "") if secured else None)
            digest = hashlib.sha256(json.dumps(planned, sort_keys=True).encode()).hexdigest()[:16]
            names = frozenset((Kind.of(found), found["metadata"]["name"]) for found in planned)
            known = self._outlines[job.metadata.uid] = _Outline(job.metadata.generation, secured, digest, names)
        return known

    async def _apply_all(
        self,
        job: RLJobObject,
        suspension: Suspension,
        known: dict[str, Workload],
        outline: _Outline,
        withdrawn: bool,
    ) -> None:
        certificate = certificates.draw(tls.server_names(job)) if outline.secured else None
        planned = plan(job, self.platform, self._draw(job), suspension, certificate)
        await self._apply_together(job, [found for found in planned if Kind.of(found) != JOB])
        for manifest in planned:
            name = manifest["metadata"]["name"]
            if Kind.of(manifest) != JOB or (withdrawn and name == identity.hybrid_name(job.metadata.name)):
                continue
            if name in known:
                await self._patch(job, name, manifest["spec"]["suspend"], outline.digest)
            else:
                manifest["metadata"].setdefault("annotations", {})[PLAN_ANNOTATION] = outline.digest
                # A Job is made once and then patched: creating it costs two thirds of what applying it does.
                if not await self._cluster.create(manifest):
                    await self._cluster.apply(manifest)
                self._unseen[job.metadata.uid, name] = time.monotonic()

    async def _apply_together(self, job: RLJobObject, manifests: Iterable[Manifest]) -> None:
        """All of them are tried, whatever becomes of the others; then the first refusal counts."""
        outcomes = await asyncio.gather(
            *(
                self._keep_secret(job, manifest) if Kind.of(manifest) == SECRET else self._cluster.apply(manifest)
                for manifest in manifests
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _suspend(self, job: RLJobObject, suspension: Suspension, known: dict[str, Workload]) -> None:
        for work in known.values():
            wanted = bool(getattr(suspension, work.component))
            if work.suspended != wanted and not work.complete:
                await self._patch(job, work.name, wanted, None)

    async def _patch(self, job: RLJobObject, name: str, suspended: bool, digest: str | None) -> None:
        patch: Manifest = {}
        if identity.queue(job) is None or name != identity.hybrid_name(job.metadata.name):
            patch["spec"] = {"suspend": suspended}
        if digest is not None:
            patch["metadata"] = {"annotations": {PLAN_ANNOTATION: digest}}
        if patch:
            await self._cluster.patch(JOB, job.metadata.namespace, name, patch)

    def _draw(self, job: RLJobObject) -> Secrets:
        token = random.token_urlsafe(_TOKEN_BYTES)
        if self._accounts is None:
            return Secrets(token)
        return Secrets(token, account_name(job.metadata.uid), random.token_urlsafe(_TOKEN_BYTES))

    async def _keep_secret(self, job: RLJobObject, manifest: Manifest) -> None:
        """Secrets are drawn once: pods that run know the old ones."""
        created = await self._cluster.create(manifest)
        values = manifest["stringData"] if created else await self._stored(job, manifest["metadata"]["name"])
        password = values.get("etcd-password")
        if self._accounts is not None and password is not None:
            await self._accounts.add(keys_of(job), password)

    async def _stored(self, job: RLJobObject, name: str) -> dict[str, str]:
        found = await self._cluster.get(SECRET, job.metadata.namespace, name)
        owners = found["metadata"].get("ownerReferences", ()) if found else ()
        if found is None or not any(owner["uid"] == job.metadata.uid for owner in owners):
            raise Refused(409, "AlreadyExists", f"Secret {name} exists and belongs to something else; delete it")
        return {key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()}
