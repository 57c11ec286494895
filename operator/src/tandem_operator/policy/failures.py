# SPDX-License-Identifier: Apache-2.0
"""What keeps a job from going on, as a reason for programs and a sentence for the person who can mend it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tandem_operator.observed import Container, Observed, Pod

MEMORY_SECONDS = {"OutOfMemory": 300.0, "CrashLoop": 60.0}
"""How long these are still told of once the container runs again: trouble that came back is one trouble, not many."""

PROVISIONING_SECONDS = 15.0
"""Pods of every new job wait for their volumes to be made; that is told once it takes longer than usual."""

UNCONFIRMED_SECONDS = 60.0
"""A kubelet that is this late with the end of a pod is taken for gone."""

_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"})
_CONFIGURATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"})
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')
_UNBOUND_CLAIM = "unbound immediate PersistentVolumeClaims"
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong. ``placement``: pods cannot be placed; otherwise they are, and do not work."""

    reason: str
    message: str
    placement: bool = False


def troubles(observed: Observed, now: float) -> tuple[Trouble, ...]:
    """Everything wrong, the most fundamental first. ``now`` in Unix seconds."""
    return tuple(_troubles(observed, now))


def _troubles(observed: Observed, now: float) -> Iterator[Trouble]:
    if observed.refusal:
        yield Trouble("ObjectsRefused", f"The API server refused an object of this job: {observed.refusal}", True)
    if observed.etcd_error:
        yield Trouble(
            "EtcdUnreachable",
            f"etcd cannot be reached ({observed.etcd_error}); the job keeps its work and goes on when etcd is back.",
        )
    yield from _of_workloads(observed)
    for pod in observed.pods:
        if pod.unheard or _unconfirmed(pod, now):
            yield _node_lost(pod)
        if pod.active:
            yield from _of_pod(pod, observed, now)
    if observed.progress and observed.progress.buffer_full:
        yield Trouble("BufferFull", "The replay buffer is full; the job waits for room. Enlarge its volume.")
    if observed.progress and observed.progress.error:
        yield Trouble("OrchestratorProblem", observed.progress.error)


def _of_workloads(observed: Observed) -> Iterator[Trouble]:
    waiting = {work.name for work in observed.workloads if not work.active and not work.suspended and not work.complete}
    for warning in observed.warnings:
        if warning.about in waiting and warning.reason == "FailedCreate":
            yield Trouble("PodsRefused", f"Pods of Job {warning.about} cannot be created: {warning.message}", True)


def _unconfirmed(pod: Pod, now: float) -> bool:
    held = pod.deleting and pod.node and pod.phase in ("Pending", "Running")
    return bool(held) and now >= pod.gone_by + UNCONFIRMED_SECONDS


def _node_lost(pod: Pod) -> Trouble:
    return Trouble(
        "NodeLost",
        f"Node {pod.node} does not answer, and pod {pod.name} is on it. The job goes on when the node is back. If it "
        f"is off for good, have another pod made: kubectl delete node {pod.node} (or taint it with "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute). Kubernetes waits for that, since a node that is "
        "merely cut off may still run the pod.",
        placement=pod.deleting,
    )


def _of_pod(pod: Pod, observed: Observed, now: float) -> Iterator[Trouble]:
    if pod.unschedulable is not None:
        yield from _unschedulable(pod, pod.unschedulable, observed, now)
    for container in pod.containers:
        if trouble := _of_container(pod, container, now):
            yield trouble
    if pod.scheduled and pod.phase == "Pending":
        for warning in observed.warnings:
            if warning.about == pod.name and warning.reason in ("FailedMount", "FailedAttachVolume"):
                yield Trouble(
                    "MissingVolume",
                    f"Pod {pod.name} waits for a volume: {warning.message} Create what is missing or mend the "
                    "volumes of the pod template.",
                )


def _unschedulable(pod: Pod, message: str, observed: Observed, now: float) -> Iterator[Trouble]:
    if missing := _MISSING_CLAIM.search(message):
        yield Trouble(
            "MissingVolume",
            f"Pod {pod.name} needs PersistentVolumeClaim {missing[1]}, which does not exist in this namespace; "
            "create it or name another in the job.",
            placement=True,
        )
        return
    if _UNBOUND_CLAIM in message:
        for warning in observed.warnings:
            if warning.reason == "ProvisioningFailed":
                yield Trouble(
                    "MissingVolume",
                    f"Pod {pod.name} waits for PersistentVolumeClaim {warning.about}, which gets no volume: "
                    f"{warning.message}. Name a StorageClass that this cluster has.",
                    placement=True,
                )
                return
        if now - pod.unschedulable_since < PROVISIONING_SECONDS:
            return
    yield Trouble("Unschedulable", f"Pod {pod.name} cannot be placed on a node: {message}", placement=True)


def _of_container(pod: Pod, container: Container, now: float) -> Trouble | None:
    where = f"Container {container.name} of pod {pod.name}"
    if container.waiting in _PULL:
        # The kubelet alternates between the failure and its waiting after it; both are one trouble, told alike.
        why = _BACK_OFF.sub("", container.waiting_message) or container.waiting
        return Trouble(
            "ImagePullFailed",
            f"{where} cannot pull its image: {why}. Check the image's name and the pull secrets.",
        )
    if container.waiting in _CONFIGURATION:
        return Trouble("ContainerRefused", f"{where} cannot start: {container.waiting_message or container.waiting}")
    if not container.running and container.ended == "StartError":
        # The kubelet names it so between its attempts, while it says CrashLoopBackOff; no log was ever written.
        return Trouble("ContainerRefused", f"{where} cannot start: {container.last_words or container.ended}")
    if container.ended == "OOMKilled" and _fresh(container, "OutOfMemory", now):
        return Trouble(
            "OutOfMemory",
            f"{where} was killed for using more memory than its limit; raise the limit, or lower engine.kvCache or "
            "trainer.microBatchTokens.",
        )
    if container.user_error and _fresh(container, "CrashLoop", now):
        return Trouble("InvalidData", f"{where} cannot go on: {container.user_error}")
    times = container.restarts + (not container.running)
    if container.exit_code and times > 1 and _fresh(container, "CrashLoop", now):
        return Trouble(
            "CrashLoop",
            f"{where} ends again and again ({times} times, the last with exit code {container.exit_code}). Its log "
            f"says why: kubectl logs {pod.name} -c {container.name} --previous",
        )
    return None


def _fresh(container: Container, reason: str, now: float) -> bool:
    return not container.running or now - container.ended_at < MEMORY_SECONDS[reason]
