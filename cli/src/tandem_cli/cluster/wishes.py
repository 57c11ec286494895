# SPDX-License-Identifier: Apache-2.0
"""What a user wants of a running job: to rest, to go on, to save. Each is a patch of the RLJob and nothing else."""

import time
from collections.abc import Callable

from tandem_api.rljob import CHECKPOINT_ANNOTATION
from tandem_api.status import CheckpointStatus
from tandem_cli.cluster.errors import ClusterError
from tandem_cli.cluster.objects import Cluster, Job

type Tell = Callable[[str], None]


def suspend(cluster: Cluster, job: Job) -> str:
    """Have a job drain, save and free its devices; what to tell."""
    _expect_alive(job, "suspended")
    if job.suspended:
        return f"{job.name} is suspended already."
    cluster.patch(job, {"spec": {"runPolicy": {"suspend": True}}})
    return (
        f"{job.name} will be suspended: it finishes what it cannot put down, saves a checkpoint, frees its devices.\n"
        f"To wait for that: kubectl wait rljob/{job.name} -n {job.namespace} --for=condition=Suspended --timeout=20m"
    )


def resume(cluster: Cluster, job: Job) -> str:
    """Let a suspended job go on; what to tell."""
    _expect_alive(job, "resumed")
    if not job.suspended:
        return f"{job.name} is not suspended."
    cluster.patch(job, {"spec": {"runPolicy": {"suspend": False}}})
    return f"{job.name} goes on at iteration {job.status.iteration} with the buffer that it had."


def checkpoint(cluster: Cluster, job: Job, seconds: float | None, tell: Tell) -> str:
    """Have a job save, and wait for that; what to tell. ``tell`` hears what it does meanwhile.

    ``seconds``: how long to wait; None to wait not at all.

    Raises:
        ClusterError: the job ended or was deleted, or the time was up, before there was one.
    """
    wanted = job.status.iteration
    if (there := _covering(job, wanted)) is not None:
        return f"{job.name} has nothing new to save: {_described(there)} is its present state."
    _expect_alive(job, "saved")
    asked = cluster.patch(job, {"metadata": {"annotations": {CHECKPOINT_ANNOTATION: str(wanted)}}})
    if seconds is None:
        return f"{job.name} saves at the end of the next Train."
    tell(f"{job.name} saves at the end of the next Train; waiting for that")
    return _awaited(cluster, asked, wanted, seconds, tell)


def _awaited(cluster: Cluster, job: Job, wanted: int, seconds: float, tell: Tell) -> str:
    until, phase = time.monotonic() + seconds, None
    while time.monotonic() < until:
        for seen in cluster.follow(job, until - time.monotonic()):
            if (there := _covering(seen, wanted)) is not None:
                return f"{job.name} has saved {_described(there)}."
            _expect_alive(seen, "saved")
            if seen.status.phase is not phase:
                phase = seen.status.phase
                tell(f"{phase}, iteration {seen.status.iteration}")
        job = cluster.job(job.name, job.namespace)
    raise ClusterError(f"{job.name} has saved nothing within {seconds:.0f} s; the wish stands: it saves when it can")


def _covering(job: Job, wanted: int) -> CheckpointStatus | None:
    """The newest durable checkpoint, if it covers ``wanted`` iterations."""
    saved = job.status.checkpoint
    return saved if saved is not None and saved.iteration >= wanted else None


def _described(saved: CheckpointStatus) -> str:
    return f"checkpoint {saved.path} (after iteration {saved.iteration})"


def _expect_alive(job: Job, what: str) -> None:
    if (ended := job.ended) is not None:
        raise ClusterError(f"{job.name} cannot be {what}: it has ended ({ended.reason}: {ended.message})")
