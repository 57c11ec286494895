# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem status``: jobs in a table, or one job with its pods and conditions."""

from collections.abc import Iterable, Iterator, Sequence

from tandem_cli.cluster.explain import first_obstacle
from tandem_cli.cluster.objects import Job, Pod
from tandem_cli.cluster.table import NOTHING, age, number, percent, table
from tandem_operator.times import unix

_HEADING = ("name", "phase", "iteration", "accuracy", "reward", "pods", "condition", "restarts", "age")


def jobs_table(jobs: Iterable[Job], now: float, namespaces: bool) -> str:
    """A line a job; with ``namespaces`` the first column names them. ``now`` in Unix seconds."""
    rows = ((*((job.namespace,) if namespaces else ()), *_row(job, now)) for job in jobs)
    return table(("namespace", *_HEADING) if namespaces else _HEADING, rows)


def _row(job: Job, now: float) -> tuple[str, ...]:
    status = job.status
    return (
        job.name,
        status.phase.value,
        f"{status.iteration}/{job.iterations}",
        percent(status.accuracy),
        number(status.reward),
        status.hybrid_ready,
        _condition(job, now),
        str(status.restarts),
        age(now - unix(job.metadata["creationTimestamp"])),
    )


def _condition(job: Job, now: float) -> str:
    """The reason of what is in its way, else how it goes."""
    obstacle = first_obstacle(job, now)
    if obstacle is not None:
        return obstacle.reason
    return "Complete" if job.ended else "Progressing" if job.status.observed_generation else NOTHING


def job_page(job: Job, pods: Sequence[Pod], now: float) -> str:
    """All that is known of one job."""
    parts = [_facts(job, now), _pods(pods, now), _conditions(job, now)]
    return "\n\n".join(filter(None, parts))


def _facts(job: Job, now: float) -> str:
    facts = dict(_known(job, now))
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in facts.items())


def _known(job: Job, now: float) -> Iterator[tuple[str, str]]:
    status = job.status
    yield "Name", f"{job.name} in namespace {job.namespace}"
    yield "Phase", f"{status.phase}, iteration {status.iteration} of {job.iterations}"
    yield "Weights", f"version {status.weight_version}"
    yield "Accuracy", f"{percent(status.accuracy)} of the held-out set"
    yield "Reward", f"{number(status.reward)} mean of the last batch"
    switch = status.last_switch
    yield "Last switch", f"{switch.to_train_seconds:.2f} s to training, {switch.to_rollout_seconds:.2f} s to rollout"
    buffer = status.buffer
    yield "Buffer", f"{buffer.finished} finished, {buffer.partial} unfinished trajectories, {buffer.tokens} tokens"
    saved = status.checkpoint
    yield "Checkpoint", f"{saved.path}, after iteration {saved.iteration}" if saved else "none yet"
    yield "Restarts", f"{status.restarts}, and {status.disruptions} disruptions"
    if status.skipped_records:
        yield "Skipped", f"{status.skipped_records} records of the data that could not be read"
    if status.start_time:
        end = unix(status.completion_time) if status.completion_time else now
        yield "Took" if status.completion_time else "Running for", age(end - unix(status.start_time))


def _pods(pods: Sequence[Pod], now: float) -> str:
    heading = ("pod", "ready", "phase", "containers", "restarts", "node", "age")
    return table(heading, (_pod_row(pod, now) for pod in pods)) if pods else "It has no pods."


def _pod_row(pod: Pod, now: float) -> tuple[str, ...]:
    return (
        pod.name,
        f"{pod.ready}/{len(pod.containers)}",
        pod.phase,
        ", ".join(f"{container.name} {container.state}" for container in pod.containers),
        str(pod.restarts),
        pod.node or NOTHING,
        age(now - pod.created),
    )


def _conditions(job: Job, now: float) -> str:
    rows = (
        (
            condition.type.value,
            condition.status,
            condition.reason,
            age(now - unix(condition.last_transition_time)),
            condition.message,
        )
        for condition in job.status.conditions
    )
    return table(("condition", "status", "reason", "for", "message"), rows) if job.status.conditions else ""
