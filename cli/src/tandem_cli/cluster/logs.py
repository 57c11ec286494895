# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem logs``: all containers of a job in one stream."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from tandem_api.labels import HYBRID
from tandem_cli.cluster.errors import ClusterError, Missing
from tandem_cli.cluster.lines import Line, Source
from tandem_cli.cluster.objects import Cluster, Job, Pod

LOOK_SECONDS = 2.0
"""How often a followed job is asked for pods and containers that are new."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which lines: of which container (all), from the last ``since`` seconds, at most the last ``tail`` of each."""

    container: str | None = None
    since: int | None = None
    tail: int | None = None

    def query(self) -> dict[str, str]:
        limits = {"sinceSeconds": self.since, "tailLines": self.tail}
        return {name: str(value) for name, value in limits.items() if value is not None}


def sources(job: Job, pods: Iterable[Pod], container: str | None) -> list[Source]:
    """The containers that have or will have a log.

    Raises:
        ClusterError: ``container`` is the name of none.
    """
    pods = list(pods)
    names = dict.fromkeys(one.name for pod in pods for one in pod.containers)
    if container is not None and pods and container not in names:
        raise ClusterError(f"{job.name} has no container {container}; there are {', '.join(names)}")
    indices = [pod.index for pod in pods if pod.component == HYBRID]
    several = len(set(indices)) < len(indices)
    chosen = [(pod, one.name) for pod in pods for one in pod.containers if container in (None, one.name)]
    return [
        Source(pod.name, name, _label(job, pod, name, several), number) for number, (pod, name) in enumerate(chosen)
    ]


def _label(job: Job, pod: Pod, container: str, several: bool) -> str:
    """``hybrid-0/engine``: the pod less the job's name and, unless two have one index, its random suffix."""
    short = pod.name.removeprefix(f"{job.name}-")
    if pod.index is not None and not several:
        short = f"{HYBRID}-{pod.index}"
    elif pod.index is None:
        short = pod.component or short
    return short if short == container else f"{short}/{container}"


def past(cluster: Cluster, job: Job, chosen: Sequence[Source], selection: Selection) -> Iterator[Line]:
    """What the logs hold, in the order in which it was written. They are read as they are merged, not kept."""
    return interleaved(_lines(cluster, job, source, selection.query()) for source in chosen)


def interleaved(logs: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """Logs merged by time; lines of one log stay in their order."""
    return merge(*map(_monotonic, logs), key=lambda line: line.time)


def _monotonic(log: Iterable[Line]) -> Iterator[Line]:
    """A clock that went back must not tear a log apart: a line is never older than the one before it."""
    latest = ""
    for line in log:
        latest = max(latest, line.time)
        yield line if line.time == latest else Line(latest, line.source, line.text)


def _lines(cluster: Cluster, job: Job, source: Source, query: dict[str, str]) -> Iterator[Line]:
    """A container's log; nothing where it has not started, or its pod is gone."""
    asked = {"container": source.container, "timestamps": "true", **query}
    try:
        for raw in cluster.log(job.namespace, source.pod, asked):
            yield Line.of(raw, source)
    except Missing:
        return
    except ClusterError as error:
        if "is waiting to start" not in str(error) and "is terminated" not in str(error):
            raise


class Follower:
    """The logs of a job as they are written, those of containers that start later as well.

    Life: iterate :meth:`lines`; it ends when the job has ended and nothing runs any more. Each container is read by a
    thread, that ends with the process; a log that breaks off is taken up after its last line.
    """

    def __init__(self, cluster: Cluster, job: Job, selection: Selection) -> None:
        self._cluster = cluster
        self._job = job
        self._selection = selection
        self._queue: queue.Queue[Line | ClusterError] = queue.Queue(maxsize=10_000)
        self._reading: dict[tuple[str, str], threading.Thread] = {}
        self._latest: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, int] = {}

    def lines(self) -> Iterator[Line]:
        """Lines in the order in which they come."""
        while True:
            running = self._look()
            yield from self._drained()
            if not running and not self._alive() and self._over():
                yield from self._drained()
                return

    def _look(self) -> bool:
        """Read every container that is not read yet; whether any runs."""
        pods = self._cluster.pods(self._job)
        states = {(pod.name, one.name): one.state for pod in pods for one in pod.containers}
        for source in sources(self._job, pods, self._selection.container):
            key = source.pod, source.container
            thread = self._reading.get(key)
            done = thread is not None and (thread.is_alive() or states[key] != "Running")
            if done or states[key] in ("Waiting", "PodInitializing", "ContainerCreating"):
                continue
            self._start(key, source)
        return any(state == "Running" for state in states.values())

    def _start(self, key: tuple[str, str], source: Source) -> None:
        number = self._numbers.setdefault(source.label, len(self._numbers))
        source = Source(source.pod, source.container, source.label, number)
        thread = threading.Thread(target=self._read, args=(key, source), daemon=True)
        self._reading[key] = thread
        thread.start()

    def _read(self, key: tuple[str, str], source: Source) -> None:
        latest = self._latest.get(key)
        query = self._selection.query() if latest is None else {"sinceTime": f"{latest[:19]}Z"}
        try:
            for line in _lines(self._cluster, self._job, source, {**query, "follow": "true"}):
                if latest is None or line.time > latest:
                    self._latest[key] = line.time
                    self._queue.put(line)
        except ClusterError as error:
            self._queue.put(error)

    def _drained(self) -> Iterator[Line]:
        """What comes until it is time to look for new containers."""
        until = time.monotonic() + LOOK_SECONDS
        while (left := until - time.monotonic()) > 0:
            try:
                found = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(found, ClusterError):
                raise found
            yield found

    def _alive(self) -> bool:
        return any(thread.is_alive() for thread in self._reading.values())

    def _over(self) -> bool:
        return self._cluster.job(self._job.name, self._job.namespace).ended is not None
