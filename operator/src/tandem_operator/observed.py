# SPDX-License-Identifier: Apache-2.0
"""What is known of a job's pods and workloads: as much of Kubernetes' objects as the policies read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tandem_api.environment import EXIT_USER_ERROR
from tandem_api.labels import COMPONENT_LABEL
from tandem_api.messages.phases import PhaseRecord, Progress
from tandem_operator.plan.tls import VOLUME as TLS_VOLUME
from tandem_operator.times import unix

_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_DISRUPTIONS = ("Evicted", "Preempted", "Preempting", "NodeShutdown", "Shutdown", "NodeLost", "Terminated")


@dataclass(frozen=True, slots=True)
class Container:
    """``waiting`` is why it does not run; ``ended`` is why it last ended (``OOMKilled``), at Unix time ``ended_at``,
    and ``last_words`` what it left in its termination log.
    """

    name: str
    ready: bool = False
    running: bool = False
    restarts: int = 0
    waiting: str | None = None
    waiting_message: str = ""
    ended: str | None = None
    ended_at: float = 0.0
    exit_code: int | None = None
    last_words: str = ""

    @property
    def user_error(self) -> str | None:
        """What is wrong with what the user gave, if that ended it."""
        return self.last_words if self.exit_code == EXIT_USER_ERROR and self.last_words else None


@dataclass(frozen=True, slots=True)
class Pod:
    """``disruption`` is why something outside the job takes the pod away; ``unschedulable`` the scheduler's message.

    ``unheard``: Kubernetes hears no more from its node. ``gone_by``: Unix time by which a pod that is being deleted
    should be gone.
    """

    name: str
    component: str
    uid: str = ""
    node: str = ""
    unheard: bool = False
    index: int | None = None
    phase: str = "Pending"
    ready: bool = False
    scheduled: bool = False
    unschedulable: str | None = None
    unschedulable_since: float = 0.0
    disruption: str | None = None
    deleting: bool = False
    gone_by: float = 0.0
    containers: tuple[Container, ...] = ()

    @property
    def active(self) -> bool:
        """Whether it runs or will run."""
        return not self.deleting and self.phase in ("Pending", "Running")


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the job's two batch Jobs. ``plan`` is the digest of the plan that it was applied with.

    ``secured``: its pods speak TLS with those of the other.
    """

    name: str
    component: str
    suspended: bool = False
    active: int = 0
    complete: bool = False
    failed: str | None = None
    plan: str | None = None
    secured: bool = False


@dataclass(frozen=True, slots=True)
class Warning:
    """A Kubernetes Event of type Warning about one of the job's objects, last seen at Unix time ``seen``."""

    about: str
    reason: str
    message: str
    seen: float


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything a decision depends on besides the RLJob itself.

    ``disruption``: a pod was taken away since the last new start. ``etcd_error``: etcd has been out of reach for
    longer than a hiccup. ``refusal``: the API server refused an object of the job.
    """

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    warnings: tuple[Warning, ...] = ()
    phase: PhaseRecord | None = None
    progress: Progress | None = None
    disruption: str | None = None
    etcd_error: str | None = None
    refusal: str | None = None

    def workload(self, component: str) -> Workload | None:
        return next((found for found in self.workloads if found.component == component), None)

    def active_pods(self, component: str) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.component == component and pod.active)


def pod(raw: dict[str, Any]) -> Pod:
    """A pod as the API server returns it."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    scheduling = conditions.get("PodScheduled", {})
    index = labels.get(_INDEX_LABEL)
    return Pod(
        name=metadata["name"],
        component=labels.get(COMPONENT_LABEL, ""),
        uid=metadata.get("uid", ""),
        node=spec.get("nodeName", ""),
        unheard=_unheard(spec, conditions),
        index=int(index) if index is not None else None,
        phase=status.get("phase", "Pending"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        scheduled=scheduling.get("status") == "True",
        unschedulable=scheduling.get("message", "") if scheduling.get("status") == "False" else None,
        unschedulable_since=unix(scheduling.get("lastTransitionTime")) if scheduling.get("status") == "False" else 0.0,
        disruption=_disruption(status, conditions),
        deleting=metadata.get("deletionTimestamp") is not None,
        gone_by=unix(metadata.get("deletionTimestamp")),
        containers=tuple(
            map(_container, [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())])
        ),
    )


def _unheard(spec: dict[str, Any], conditions: dict[str, Any]) -> bool:
    """A kubelet takes Ready from ContainersReady; the controller of nodes sets Ready alone to False."""
    ready, containers_ready = (conditions.get(kind, {}).get("status") for kind in ("Ready", "ContainersReady"))
    return (ready, containers_ready) == ("False", "True") and not spec.get("readinessGates")


def _disruption(status: dict[str, Any], conditions: dict[str, Any]) -> str | None:
    target = conditions.get("DisruptionTarget", {})
    if target.get("status") == "True":
        return str(target.get("reason", "DisruptionTarget"))
    reason = status.get("reason")
    return str(reason) if reason in _DISRUPTIONS else None


def _container(raw: dict[str, Any]) -> Container:
    state = raw.get("state", {})
    waiting = state.get("waiting", {})
    ended = state.get("terminated") or raw.get("lastState", {}).get("terminated") or {}
    return Container(
        name=raw["name"],
        ready=bool(raw.get("ready")),
        running="running" in state,
        restarts=int(raw.get("restartCount", 0)),
        waiting=waiting.get("reason"),
        waiting_message=waiting.get("message", ""),
        ended=ended.get("reason"),
        ended_at=unix(ended.get("finishedAt")),
        exit_code=ended.get("exitCode"),
        last_words=ended.get("message", "").strip(),
    )


def workload(raw: dict[str, Any], plan_annotation: str) -> Workload:
    """A batch/v1 Job as the API server returns it."""
    metadata, status = raw["metadata"], raw.get("status", {})
    conditions: Iterable[dict[str, Any]] = status.get("conditions", ())
    held = {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
    failed = held.get("Failed")
    spec = raw.get("spec", {})
    volumes = spec.get("template", {}).get("spec", {}).get("volumes", ())
    return Workload(
        name=metadata["name"],
        component=metadata.get("labels", {}).get(COMPONENT_LABEL, ""),
        suspended=bool(spec.get("suspend")),
        active=int(status.get("active", 0)),
        complete="Complete" in held,
        failed=f"{failed.get('reason', 'Failed')}: {failed.get('message', '')}" if failed else None,
        plan=metadata.get("annotations", {}).get(plan_annotation),
        secured=any(volume["name"] == TLS_VOLUME for volume in volumes),
    )
