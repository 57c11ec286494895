# SPDX-License-Identifier: Apache-2.0
"""The objects of a job, as much of them as the commands read."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tandem_api import API_VERSION
from tandem_api.labels import COMPONENT_LABEL, JOB_LABEL, ORCHESTRATOR
from tandem_api.status import Condition, ConditionType, RLJobStatus
from tandem_cli.cluster.connection import MERGE, Connection, Query, Request
from tandem_cli.cluster.errors import ClusterError, Missing
from tandem_operator.times import unix

WATCH_SECONDS = 240

_RLJOBS = "rljobs.tandem-rl.dev"
_STATUS_FIELDS = {field.alias or name for name, field in RLJobStatus.model_fields.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """An RLJob. ``spec`` and ``metadata`` are the server's, so that jobs of a newer operator can be read as well."""

    namespace: str
    name: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: RLJobStatus

    @staticmethod
    def of(raw: dict[str, Any]) -> "Job":
        metadata = raw["metadata"]
        known = {name: value for name, value in raw.get("status", {}).items() if name in _STATUS_FIELDS}
        try:
            status = RLJobStatus.model_validate(known)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ClusterError(
                f"status.{where} of RLJob {metadata['name']} is of another version of Tandem than this plugin: install "
                "the plugin of the operator's version"
            ) from error
        return Job(metadata["namespace"], metadata["name"], metadata, raw["spec"], status)

    @property
    def iterations(self) -> int:
        return int(self.spec["iterations"])

    @property
    def suspended(self) -> bool:
        """Whether its user wants it suspended."""
        return bool(self.spec.get("runPolicy", {}).get("suspend"))

    @property
    def ended(self) -> Condition | None:
        """The condition that says that it has ended."""
        return next(filter(None, map(self.condition, (ConditionType.COMPLETE, ConditionType.FAILED))), None)

    def condition(self, kind: ConditionType, status: str = "True") -> Condition | None:
        """The condition of this kind, if it has this status."""
        found = (one for one in self.status.conditions if one.type is kind and one.status == status)
        return next(found, None)


@dataclass(frozen=True, slots=True)
class Container:
    """``state`` is Running, or why it does not run."""

    name: str
    ready: bool
    restarts: int
    state: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a job, its containers in the order in which they start; those that are over at once left out."""

    name: str
    component: str
    index: int | None
    phase: str
    node: str
    created: float
    containers: tuple[Container, ...]

    @staticmethod
    def of(raw: dict[str, Any]) -> "Pod":
        metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
        labels = metadata.get("labels", {})
        index = labels.get("batch.kubernetes.io/job-completion-index")
        leaving = metadata.get("deletionTimestamp") is not None
        states = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        by_name = {state["name"]: state for state in states}
        sidecars = [one for one in spec.get("initContainers", ()) if one.get("restartPolicy") == "Always"]
        names = [one["name"] for one in (*sidecars, *spec["containers"])]
        return Pod(
            name=metadata["name"],
            component=labels.get(COMPONENT_LABEL, ""),
            index=None if index is None else int(index),
            phase="Terminating" if leaving else status.get("phase", "Pending"),
            node=spec.get("nodeName", ""),
            created=unix(metadata["creationTimestamp"]),
            containers=tuple(_container(name, by_name.get(name, {})) for name in names),
        )

    @property
    def restarts(self) -> int:
        return sum(container.restarts for container in self.containers)

    @property
    def ready(self) -> int:
        """Containers that are ready."""
        return sum(container.ready for container in self.containers)

    def runs(self, container: str) -> bool:
        return any(one.name == container and one.state == "Running" for one in self.containers)


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event of type Warning about an object, last seen at Unix time ``seen``."""

    kind: str
    name: str
    reason: str
    message: str
    count: int
    seen: float

    @staticmethod
    def of(raw: dict[str, Any]) -> "Event":
        about, series = raw.get("involvedObject", {}), raw.get("series") or {}
        times = (series.get("lastObservedTime"), raw.get("lastTimestamp"), raw.get("eventTime"))
        return Event(
            kind=about.get("kind", ""),
            name=about.get("name", ""),
            reason=raw.get("reason", ""),
            message=(raw.get("message") or "").strip(),
            count=int(series.get("count") or raw.get("count") or 1),
            seen=unix(next(filter(None, times), raw["metadata"]["creationTimestamp"])),
        )


class Cluster:
    """The jobs of a cluster, with the rights of the user. Raises what :class:`Connection` raises."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.namespace = connection.namespace

    def jobs(self, namespace: str | None) -> list[Job]:
        """The jobs of a namespace, or of all."""
        try:
            found = self.connection.ask(_rljobs("list", namespace))
        except Missing as error:
            raise ClusterError(
                "this cluster knows no RLJobs: Tandem is not installed there (helm install tandem charts/tandem)"
            ) from error
        return [Job.of(raw) for raw in found["items"]]

    def job(self, name: str, namespace: str | None = None) -> Job:
        """One job.

        Raises:
            Missing: there is none of that name; the message has the names that there are.
        """
        place = namespace or self.namespace
        try:
            return Job.of(self.connection.ask(_rljobs("get", place, name)))
        except Missing:
            names = [job.name for job in self.jobs(place)]
            there = f"there are {', '.join(names)}" if names else "there are none; -n names another namespace"
            raise Missing(f"namespace {place} has no RLJob {name}; {there}") from None

    def patch(self, job: Job, change: dict[str, Any]) -> Job:
        """Merge ``change`` into the RLJob."""
        request = _rljobs("patch", job.namespace, job.name, method="PATCH", body=change, content_type=MERGE)
        return Job.of(self.connection.ask(request))

    def follow(self, job: Job, seconds: float) -> Iterator[Job]:
        """The job as it is, and again after each change; ends after ``seconds``, or earlier if the server says so.

        Raises:
            Missing: the job was deleted.
        """
        most = max(1, min(WATCH_SECONDS, int(seconds)))
        version = job.metadata["resourceVersion"]
        yield job
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={job.name}",
            "resourceVersion": version,
            "timeoutSeconds": str(most),
        }
        for line in self.connection.lines(_rljobs("watch", job.namespace, query=query), most + 10.0):
            event = json.loads(line)
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    yield Job.of(event["object"])
                case "DELETED":
                    raise Missing(f"RLJob {job.name} was deleted")
                case _:
                    return

    def pods(self, job: Job) -> list[Pod]:
        """The job's pods, the orchestrator's first."""
        query = {"labelSelector": f"{JOB_LABEL}={job.name}"}
        found = map(Pod.of, self.connection.ask(_core("list", "pods", job.namespace, query=query))["items"])
        return sorted(found, key=lambda pod: (pod.component != ORCHESTRATOR, pod.index or 0, pod.created))

    def warnings(self, job: Job) -> list[Event]:
        """Warnings about objects of the job's namespace."""
        query = {"fieldSelector": "type=Warning"}
        return list(map(Event.of, self.connection.ask(_core("list", "events", job.namespace, query=query))["items"]))

    def log(self, namespace: str, pod: str, query: Query) -> Iterator[bytes]:
        """Lines of a container's log."""
        return self.connection.lines(_core("get", "pods/log", namespace, f"{pod}/log", query=query), None)

    def workload(self, namespace: str, name: str) -> dict[str, Any]:
        """A batch Job."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"
        found: dict[str, Any] = self.connection.ask(Request("get", "jobs.batch", path, namespace=namespace))
        return found

    def create_pod(self, manifest: dict[str, Any]) -> str:
        """Create it; returns its name."""
        namespace = manifest["metadata"]["namespace"]
        made = self.connection.ask(_core("create", "pods", namespace, method="POST", body=manifest))
        return str(made["metadata"]["name"])

    def pod(self, namespace: str, name: str) -> Pod:
        return Pod.of(self.connection.ask(_core("get", "pods", namespace, name)))

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete it now, if it is still there."""
        query = {"gracePeriodSeconds": "0"}
        with suppress(Missing):
            self.connection.ask(_core("delete", "pods", namespace, name, method="DELETE", query=query))


def _container(name: str, raw: dict[str, Any]) -> Container:
    (kind, detail), *_ = raw.get("state", {}).items() or [("waiting", {})]
    state = "Running" if kind == "running" else str((detail or {}).get("reason") or kind.capitalize())
    return Container(name, bool(raw.get("ready")), int(raw.get("restartCount", 0)), state)


def _rljobs(verb: str, namespace: str | None, name: str = "", **rest: Any) -> Request:
    scope = f"/namespaces/{namespace}" if namespace else ""
    path = f"/apis/{API_VERSION}{scope}/rljobs" + (f"/{name}" if name else "")
    return Request(verb, _RLJOBS, path, namespace=namespace, **rest)


def _core(verb: str, resource: str, namespace: str, name: str = "", **rest: Any) -> Request:
    path = f"/api/v1/namespaces/{namespace}/{resource.partition('/')[0]}" + (f"/{name}" if name else "")
    return Request(verb, resource, path, namespace=namespace, **rest)
