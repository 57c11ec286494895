# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem top``: what jobs' accelerators are held for (docs/utilisation.md)."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tandem_api import metrics as declared
from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.status import JobPhase
from tandem_api.utilisation import Use, shares, utilisation
from tandem_cli.cluster.errors import ClusterError
from tandem_cli.cluster.objects import Cluster, Job, Pod
from tandem_cli.cluster.reading import metrics
from tandem_cli.cluster.table import NOTHING, age, percent, table

_AT_A_TIME = 8
_ENGINE = "engine"

type Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class Member:
    """What one hybrid pod says of itself now; None where it does not answer."""

    activity: str | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds by member and use, as the orchestrator has booked them; ``why_not`` where they could not be read."""

    job: Job
    seconds: Mapping[int, Mapping[Use, float]] = field(default_factory=dict)
    members: Mapping[int, Member] = field(default_factory=dict)
    why_not: str = ""


def usages(cluster: Cluster, jobs: Sequence[Job]) -> list[Usage]:
    """The usage of each job, several asked at a time."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(functools.partial(usage, cluster), jobs))


def usage(cluster: Cluster, job: Job) -> Usage:
    """What a job's own processes measure: the orchestrator each pod's seconds, each sidecar what it does now."""
    pods = cluster.pods(job)
    orchestrator = next((pod for pod in pods if pod.runs(ORCHESTRATOR)), None)
    if orchestrator is None:
        return Usage(job, why_not="its orchestrator does not run")
    hybrid = [pod for pod in pods if pod.component == HYBRID and pod.runs(_ENGINE)]
    engines = {pod.index: pod for pod in hybrid if pod.index is not None}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        booking = pool.submit(metrics, cluster, job, orchestrator.name, ORCHESTRATOR)
        saying = {index: pool.submit(_member, cluster, job, pod) for index, pod in engines.items()}
        try:
            seconds = booked(booking.result())
        except ClusterError as error:
            return Usage(job, why_not=str(error))
        return Usage(job, seconds, {index: said.result() for index, said in saying.items()})


def _member(cluster: Cluster, job: Job, pod: Pod) -> Member:
    """A pod that does not answer, since it ends or starts just now, must not take the others' figures away."""
    try:
        return member(metrics(cluster, job, pod.name, _ENGINE))
    except ClusterError:
        return Member()


def booked(exposition: str) -> dict[int, dict[Use, float]]:
    """Accelerator seconds by member and use, from the orchestrator's metrics."""
    seconds: dict[int, dict[Use, float]] = {}
    for labels, value in _samples(exposition, declared.ACCELERATOR_SECONDS.name):
        if labels["use"] in set(Use):
            seconds.setdefault(int(labels["member"]), dict.fromkeys(Use, 0.0))[Use(labels["use"])] = value
    return seconds


def member(exposition: str) -> Member:
    """What a sidecar's metrics say of now."""
    activity = next((value for _, value in _samples(exposition, declared.ACTIVITY.name)), None)
    requests = next((value for _, value in _samples(exposition, declared.ENGINE_REQUESTS.name)), None)
    return Member(
        None if activity is None else declared.ACTIVITIES[int(activity)], None if requests is None else int(requests)
    )


def _samples(exposition: str, name: str) -> Iterable[Sample]:
    for family in text_string_to_metric_families(exposition):
        yield from ((sample.labels, sample.value) for sample in family.samples if sample.name == name)


def page(usages: Sequence[Usage], namespaces: bool) -> str:
    """A line a job and one a pod of it, and what the figures rest on."""
    heading = ("job / pod", "now", "utilisation", *(use.value for use in Use), "held", "requests")
    rows = [row for one in usages for row in _rows(one, namespaces)]
    notes = [f"{one.job.name}: from status, by phase alone, since {one.why_not}." for one in usages if one.why_not]
    return "\n".join([table(heading, rows), *notes])


def _rows(usage: Usage, namespaces: bool) -> Iterable[tuple[str, ...]]:
    job = usage.job
    name = f"{job.namespace}/{job.name}" if namespaces else job.name
    if not usage.seconds:
        yield (name, job.status.phase.value, *_by_phase(job))
        return
    total = {use: sum(pod[use] for pod in usage.seconds.values()) for use in Use}
    busy = percent(utilisation(usage.seconds.values()))
    yield (name, job.status.phase.value, busy, *_shares(total), age(sum(total.values())), "")
    for index, seconds in sorted(usage.seconds.items()):
        said = usage.members.get(index, Member())
        requests = NOTHING if said.requests is None else str(said.requests)
        busy, held = percent(utilisation([seconds])), age(sum(seconds.values()))
        yield (f"  hybrid-{index}", said.activity or NOTHING, busy, *_shares(seconds), held, requests)


def _shares(seconds: Mapping[Use, float]) -> Iterable[str]:
    parts = shares(seconds)
    return (percent(parts.get(use)) for use in Use)


def _by_phase(job: Job) -> tuple[str, ...]:
    """Shares of phases, of a job whose books cannot be read: its pods' waits within a phase count as the phase."""
    phases = job.status.phase_seconds.model_dump()
    total = sum(phases.values())
    if total <= 0 or job.status.phase is JobPhase.PENDING:
        return (NOTHING,) * (len(Use) + 3)
    share = {name: value / total for name, value in phases.items()}
    share["train"] += share.pop("warmup")
    share["recovery"] = share.pop("recover")
    busy = share["rollout"] + share["train"]
    return (f"≤{percent(busy)}", *(percent(share.get(use.value)) for use in Use), age(total), "")
