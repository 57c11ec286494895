# SPDX-License-Identifier: Apache-2.0
"""The one thread that writes: whatever waits when it is free becomes one transaction and one fsync (group commit)."""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tandem_api.errors import TryAgain

type Work = Callable[[sqlite3.Connection], Any]

_MOST_TOGETHER = 256
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMSIZE}


class BufferFull(TryAgain):
    """The volume has no room. Nothing of this write was kept; the same write succeeds once there is room."""


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    result: Future[Any]


class Writer:
    """Runs pieces of work on the writing connection, in the order they were submitted.

    A future is done only when its work is durable. A piece that raises takes back its own changes alone; a commit that
    fails takes back, and fails, all pieces of it. ``full`` tells whether the last commit found no room.

    >>> writer = Writer(connection)                                      # doctest: +SKIP
    >>> await asyncio.wrap_future(writer.submit(lambda db: db.execute("DELETE FROM prompts").rowcount))
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.full = False
        self._thread = threading.Thread(target=self._run, name="buffer writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pieces of work that are not begun yet."""
        return self._jobs.qsize()

    def submit[T](self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        result: Future[T] = Future()
        self._jobs.put(_Job(work, result))
        return result

    def close(self) -> None:
        """Finish what was submitted, then close the connection."""
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            together = [first]
            ended = False
            while len(together) < _MOST_TOGETHER and not ended:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    ended = True
                else:
                    together.append(job)
            self._commit([job for job in together if job.result.set_running_or_notify_cancel()])
            if ended:
                return

    def _commit(self, jobs: list[_Job]) -> None:
        results: list[Any] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [self._piece(job) for job in jobs]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - handed to the callers, none of whose work was kept
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            failure = self._named(error)
            for job in jobs:
                job.result.set_exception(failure)
            return
        self.full = False
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, _Raised):
                job.result.set_exception(result.error)
            else:
                job.result.set_result(result)

    def _piece(self, job: _Job) -> Any:
        self._connection.execute("SAVEPOINT piece")
        try:
            result = job.work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction or _no_room(error):
                raise
            self._connection.execute("ROLLBACK TO piece")
            result = _Raised(error)
        self._connection.execute("RELEASE piece")
        return result

    def _named(self, error: Exception) -> Exception:
        if not _no_room(error):
            return error
        self.full = True
        return BufferFull(f"the replay buffer's volume is full ({error}); free space or enlarge the volume")


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


def _no_room(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _NO_ROOM
