# SPDX-License-Identifier: Apache-2.0
"""Jobs of Kubernetes manifests, run as processes of this machine."""

import asyncio
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from tandem_api.errors import Problem, UserError
from tandem_cli.local.devices import Devices
from tandem_cli.local.environment import PodFacts
from tandem_cli.local.manifests import Manifest, Manifests, dig
from tandem_cli.local.node import Node
from tandem_cli.local.pod import Pod

log = structlog.get_logger()

_INDEX = "batch.kubernetes.io/job-completion-index"
_DEFAULT_BACKOFF_LIMIT = 6
_FIRST_NUMBER = 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pod of a Job runs: its template, number and address stay the same when it is replaced."""

    job: Manifest
    template: Manifest
    name: str
    number: int
    address: str


class Kubelet:
    """Runs every Job among the objects; Services, ConfigMaps, Secrets and claims are what their pods refer to.

    Everything is settled when the object is made, so what cannot run raises before anything is started. Leaving the
    context kills what still runs.

    >>> async with Kubelet(node, objects) as kubelet:
    ...     succeeded = await kubelet.wait()

    Raises:
        UserError: an object refers to something missing, or needs what local mode does not have.
    """

    def __init__(self, node: Node, objects: Manifests) -> None:
        self._node = node
        self._objects = objects
        self._places = list(_places(node, objects))
        self._hosts = _hosts(objects, self._places)
        self.pods = [self._pod(place) for place in self._places]
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._stopping: set[str] = set()

    @property
    def jobs(self) -> list[Manifest]:
        """The Jobs as the API server would return them."""
        return [self._job(job) for job in self._objects.kind("Job")]

    async def __aenter__(self) -> Self:
        for number, place in enumerate(self._places):
            self._running[place.name] = asyncio.create_task(self._run(number, place), name=f"pod {place.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def wait(self) -> dict[str, bool]:
        """Wait for all pods to end; whether each succeeded, by name."""
        await _ended(self._running.values())
        return {name: task.result() for name, task in self._running.items()}

    async def stop(self, *jobs: str) -> None:
        """End the pods of some Jobs, or of all, as suspending a Job does: SIGTERM, grace period, SIGKILL."""
        stopping = {place.name for place in self._places if not jobs or place.job["metadata"]["name"] in jobs}
        self._stopping |= stopping
        for place, pod in zip(self._places, self.pods, strict=True):
            if place.name in stopping:
                pod.stop()
        await _ended(self._running[name] for name in stopping)

    async def _run(self, number: int, place: _Place) -> bool:
        """A Job's pod that fails is replaced until the Job's backoffLimit is reached."""
        for _ in range(dig(place.job, "spec", "backoffLimit", default=_DEFAULT_BACKOFF_LIMIT) + 1):
            if await self.pods[number].run():
                return True
            if place.name in self._stopping:
                return False
            log.warning("a pod failed", pod=place.name)
            self.pods[number] = self._pod(place)
        return False

    def _job(self, job: Manifest) -> Manifest:
        places = [place for place in self._places if place.job is job]
        ended = [self._running[place.name] for place in places if self._running[place.name].done()]
        failed = any(not task.result() for task in ended) and not self._stopping
        conditions = []
        if places and len(ended) == len(places) and all(task.result() for task in ended):
            conditions.append({"type": "Complete", "status": "True"})
        if failed:
            conditions.append({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"})
        suspended = not places or any(place.name in self._stopping for place in places)
        return {
            "kind": "Job",
            "metadata": job["metadata"],
            "spec": {"suspend": suspended},
            "status": {"active": len(places) - len(ended), "conditions": conditions},
        }

    def _pod(self, place: _Place) -> Pod:
        metadata = place.template.get("metadata") or {}
        facts = PodFacts(
            name=place.name,
            namespace=dig(place.job, "metadata", "namespace", default="default"),
            uid=str(uuid.uuid4()),
            address=place.address,
            annotations=metadata.get("annotations") or {},
            labels=metadata.get("labels") or {},
        )
        return Pod(place.template, facts, place.number, self._node, self._objects, self._hosts)


async def _ended(pods: Iterable[asyncio.Task[bool]]) -> None:
    """Wait for pods. Giving up the wait, unlike that of a gather, leaves them running."""
    if waiting := list(pods):
        await asyncio.wait(waiting)


def _places(node: Node, objects: Manifests) -> Iterator[_Place]:
    devices = Devices()
    number = _FIRST_NUMBER
    for job in objects.kind("Job"):
        name = job["metadata"]["name"]
        if dig(job, "spec", "suspend"):
            continue
        indexed = dig(job, "spec", "completionMode") == "Indexed"
        completions = dig(job, "spec", "completions", default=1)
        if not indexed and completions != 1:
            raise UserError(Problem(f"Job {name}", "local mode runs Indexed Jobs, or Jobs with one completion"))
        if dig(job, "spec", "parallelism", default=1) < completions:
            raise UserError(Problem(f"Job {name}, parallelism", "must equal completions in local mode"))
        for index in range(completions):
            template = _with_variables(
                job["spec"]["template"], devices.variables(job["spec"]["template"]["spec"], objects)
            )
            pod = f"{name}-{index}" if indexed else name
            yield _Place(job, _indexed(template, index) if indexed else template, pod, number, node.subnet.pod())
            number += 1


def _indexed(template: Manifest, index: int) -> Manifest:
    """The template as the controller of Indexed Jobs completes it for one index."""
    metadata = template.get("metadata") or {}
    marks = {_INDEX: str(index)}
    marked = {kind: {**(metadata.get(kind) or {}), **marks} for kind in ("annotations", "labels")}
    completed = _with_variables(template, {"JOB_COMPLETION_INDEX": str(index)})
    return {**completed, "metadata": {**metadata, **marked}}


def _with_variables(template: Manifest, added: Mapping[str, str]) -> Manifest:
    """The template with variables in front of every container's own."""
    variables = [{"name": name, "value": value} for name, value in added.items()]
    spec = dict(template["spec"])
    for kind in ("initContainers", "containers"):
        spec[kind] = [{**item, "env": [*variables, *(item.get("env") or [])]} for item in spec.get(kind) or []]
    return {**template, "spec": spec}


def _hosts(objects: Manifests, places: list[_Place]) -> dict[str, str]:
    """DNS names of Services and of pods behind a headless Service -> address."""
    hosts: dict[str, str] = {}
    for place in places:
        subdomain = place.template["spec"].get("subdomain")
        if subdomain:
            hosts |= dict.fromkeys(_dns_names(f"{place.name}.{subdomain}", place.job), place.address)
    for service in objects.kind("Service"):
        selector = dig(service, "spec", "selector", default={})
        behind = [place for place in places if selector and selector.items() <= _labels(place).items()]
        if behind:
            _check_ports(service, behind[0].template)
            hosts |= dict.fromkeys(_dns_names(service["metadata"]["name"], service), behind[0].address)
    return hosts


def _labels(place: _Place) -> dict[str, str]:
    given = dig(place.template, "metadata", "labels", default={})
    job = place.job["metadata"]["name"]
    return {"batch.kubernetes.io/job-name": job, "job-name": job, **given}


def _dns_names(name: str, owner: Manifest) -> list[str]:
    namespace = dig(owner, "metadata", "namespace", default="default")
    service = f"{name}.{namespace}"
    return [name, service, f"{service}.svc", f"{service}.svc.cluster.local"]


def _check_ports(service: Manifest, template: Manifest) -> None:
    """Only hosts are rewritten, so a Service's port must be the container's."""
    spec = template["spec"]
    containers = (spec.get("initContainers") or []) + spec["containers"]
    names = {port.get("name"): port["containerPort"] for item in containers for port in item.get("ports") or []}
    for port in dig(service, "spec", "ports", default=[]):
        target = port.get("targetPort", port["port"])
        if names.get(target, target) != port["port"]:
            raise UserError(
                Problem(
                    f"Service {service['metadata']['name']}, port {port['port']}",
                    f"goes to {target}; in local mode a Service's port must be its container's",
                )
            )
