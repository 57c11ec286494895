# SPDX-License-Identifier: Apache-2.0
"""Starts long-lived processes, finds them again by process id, and stops them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tandem_cluster.errors import ClusterError

POLL_SECONDS = 0.1


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Polls `condition`; raises ClusterError with `otherwise()` when it does not hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(otherwise())
        time.sleep(POLL_SECONDS)


def _start_time(pid: int) -> int | None:
    """The clock tick at which a process started, or None where there is none: tells a reused process id apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


@dataclass(frozen=True)
class Process:
    """A process that was started earlier, perhaps by another run of this program."""

    name: str
    pid: int
    start_time: int
    log: str

    @property
    def running(self) -> bool:
        return _start_time(self.pid) == self.start_time

    def log_end(self, lines: int = 25) -> str:
        return "\n".join(Path(self.log).read_text(errors="replace").splitlines()[-lines:])

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process is gone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM, then SIGKILL after `seconds`; returns when the process is gone."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            self.signal(number)
            while self.running and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        if self.running:
            raise ClusterError(f"{self.name} (process {self.pid}) does not end, not even by SIGKILL")


class ProcessTable:
    """The processes of a cluster, one JSON file each, so that any later call can stop them.

    A file is written right after its process started and deleted when the process is known to be gone.
    """

    def __init__(self, directory: Path, logs: Path) -> None:
        self._directory = directory
        self._logs = logs

    def all(self) -> list[Process]:
        files = sorted(self._directory.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [Process(**json.loads(file.read_text())) for file in files]

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = _start_time(child.pid)
        process = Process(name, child.pid, -1 if started is None else started, str(log))
        (self._directory / f"{name}.json").write_text(json.dumps(asdict(process)))
        return process

    def wait_ready(self, process: Process, ready: Callable[[], bool], seconds: float) -> None:
        """Waits for `ready`; raises ClusterError with the end of the log when the process ends or is too slow."""

        def ready_or_dead() -> bool:
            if not process.running:
                raise ClusterError(f"{process.name} ended. The end of {process.log}:\n{process.log_end()}")
            return ready()

        wait_until(
            ready_or_dead,
            seconds,
            lambda: f"{process.name} is not ready after {seconds:g} s. The end of {process.log}:\n{process.log_end()}",
        )

    def stop(self, processes: Sequence[Process], by: signal.Signals = signal.SIGTERM) -> None:
        """Stops all of them at once, and forgets each when it is gone."""
        for process in processes:
            process.signal(by)
        for process in processes:
            process.stop()
            (self._directory / f"{process.name}.json").unlink()
