# SPDX-License-Identifier: Apache-2.0
"""Why a job does not go on: the first condition that is not as it should be, and the Event behind it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tandem_api.status import Condition, ConditionType, JobPhase
from tandem_cli.cluster.objects import Event, Job, Pod
from tandem_cli.cluster.table import age
from tandem_operator.times import unix

PATIENCE_SECONDS = 60.0
"""How long pods may take to be placed, and the operator to look at a job, before that counts as not going on."""

_AWAITED = {"Pending", "PodsNotReady", "Disrupted"}
"""Reasons of conditions that every start, and every new start after a pod was taken away, goes through."""
_REMEMBERED = {"OutOfMemory", "CrashLoop"}
"""Reasons of Degraded that are told for a while after the container runs again."""

_ADVICE = {
    "Unschedulable": "Free or add nodes with what it asks for, or ask for less in the job.",
    "PodsRefused": "Raise the namespace's quota, or mend what its admission policy objects to.",
    "ObjectsRefused": "Grant the operator what it lacks, or mend the part of the job that is named.",
    "EtcdUnreachable": "Look at etcd's pods in Tandem's namespace.",
    "Queued": "It goes on when the queue has quota for it.",
    "RestartsExhausted": "Its pods' logs say why: kubectl tandem logs {name}",
    "RunFailed": "The logs say more: kubectl tandem logs {name}",
    "WorkloadFailed": "The logs say more: kubectl tandem logs {name}",
}
_DOING = {
    JobPhase.PENDING: "waits for its pods to be placed",
    JobPhase.STARTING: "starts engines and trainers",
    JobPhase.WARMUP: "does its supervised warm-up",
    JobPhase.ROLLOUT: "generates and scores responses",
    JobPhase.RELEASE: "takes the device back from its engines",
    JobPhase.TRAIN: "updates the policy",
    JobPhase.HANDOFF: "hands new weights to its engines",
    JobPhase.RECOVERING: "starts again from its newest checkpoint",
    JobPhase.SUSPENDED: "is suspended",
    JobPhase.SUCCEEDED: "writes its final weights",
    JobPhase.FAILED: "has failed",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in a job's way. ``condition`` is what it was read from, where it was read from a condition."""

    reason: str
    message: str
    condition: Condition | None = None

    @property
    def quiet(self) -> bool:
        """Whether somebody wants it so, and no Event would say more."""
        return self.reason in ("Deleting", "Suspended", "Queued", "Draining") or self.condition is None


@dataclass(frozen=True, slots=True)
class Explanation:
    """``going``: whether the job progresses, or has succeeded."""

    going: bool
    sentence: str


def explain(job: Job, pods: Sequence[Pod], warnings: Iterable[Event], now: float) -> Explanation:
    """Whether a job progresses, and the one thing to know about that. ``now`` in Unix seconds."""
    obstacle = first_obstacle(job, now)
    if obstacle is None:
        return Explanation(True, _progress(job))
    event = None if obstacle.quiet else underlying(obstacle, job, pods, warnings)
    advice = _ADVICE.get(obstacle.reason, "").format(name=job.name)
    message = obstacle.message.rstrip()
    sentence = message if message.endswith((".", "!", "?")) else f"{message}."
    parts = [sentence, _of_event(event, message, now) if event else "", advice]
    return Explanation(False, f"{job.name} is not progressing: " + " ".join(filter(None, parts)))


def first_obstacle(job: Job, now: float) -> Obstacle | None:
    """The most fundamental thing in a job's way; None if it goes on or has succeeded."""
    if "deletionTimestamp" in job.metadata:
        holders = ", ".join(job.metadata.get("finalizers", ()))
        return Obstacle("Deleting", "it is being deleted" + (f"; finalizers hold it: {holders}" if holders else ""))
    if ended := job.ended:
        failed = ended.type is ConditionType.FAILED
        return Obstacle(ended.reason, f"it has failed: {ended.message}", ended) if failed else None
    return _unseen(job, now) or _suspended(job) or _unmet(job, now)


def _unseen(job: Job, now: float) -> Obstacle | None:
    """The operator writes a status at its first look."""
    waited = now - unix(job.metadata["creationTimestamp"])
    if job.status.observed_generation or waited < PATIENCE_SECONDS:
        return None
    return Obstacle(
        "NotObserved",
        f"no operator has looked at it for {age(waited)}; see that Tandem's operator runs and watches namespace "
        f"{job.namespace}: kubectl get pods -A -l app.kubernetes.io/component=operator",
    )


def _suspended(job: Job) -> Obstacle | None:
    queued = job.condition(ConditionType.SUSPENDED)
    if not job.suspended:
        return Obstacle("Queued", "its queue has not admitted it", queued) if queued else None
    draining = job.condition(ConditionType.SUSPENDED, "Unknown")
    if draining is not None:
        return Obstacle("Draining", f"it is being suspended: {_lowered(draining.message)}", draining)
    return Obstacle("Suspended", f"it is suspended; kubectl tandem resume {job.name} lets it go on")


def _unmet(job: Job, now: float) -> Obstacle | None:
    unwanted = (
        job.condition(ConditionType.SCHEDULED, "False"),
        job.condition(ConditionType.PROGRESSING, "False"),
        None if _overcome(job) else job.condition(ConditionType.DEGRADED),
        job.condition(ConditionType.READY, "False"),
    )
    for condition in filter(None, unwanted):
        waited = now - unix(condition.last_transition_time)
        if condition.reason in _AWAITED and (waited < PATIENCE_SECONDS or job.status.phase is JobPhase.STARTING):
            continue
        return Obstacle(condition.reason, condition.message or f"{condition.type} is {condition.status}", condition)
    return None


def _overcome(job: Job) -> Condition | None:
    """What went wrong lately, if all pods are ready again."""
    degraded = job.condition(ConditionType.DEGRADED)
    past = degraded is not None and degraded.reason in _REMEMBERED and job.condition(ConditionType.READY)
    return degraded if past else None


def underlying(obstacle: Obstacle, job: Job, pods: Sequence[Pod], warnings: Iterable[Event]) -> Event | None:
    """The newest warning about an object that the obstacle names, else about any object of the job."""
    names = {pod.name for pod in pods} | {f"{job.name}{suffix}" for suffix in _WORKLOADS}
    ours = sorted((event for event in warnings if event.name in names), key=lambda event: event.seen)
    named = [event for event in ours if event.name in obstacle.message]
    return next(reversed(named or ours), None)


_WORKLOADS = ("-hybrid", "-orchestrator", "-checkpoints")


def _of_event(event: Event, told: str, now: float) -> str:
    times = f", {event.count} times" if event.count > 1 else ""
    news = "" if event.message in told or told in event.message else f": {event.message}"
    return f"(Event {event.reason} of {event.kind} {event.name}{times}, last {age(now - event.seen)} ago{news})"


def _progress(job: Job) -> str:
    status = job.status
    if job.ended:
        return f"{job.name} has succeeded: {_lowered(job.ended.message)}"
    if not status.observed_generation:
        return f"{job.name} is new; the operator is about to look at it."
    where = f"iteration {status.iteration} of {job.iterations}"
    ready = f"{status.hybrid_ready} hybrid pods ready"
    sentence = f"{job.name} is progressing: it {_DOING[status.phase]} ({status.phase}, {where}, {ready})."
    lately = _overcome(job)
    return f"{sentence} Lately: {lately.message}" if lately else sentence


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
