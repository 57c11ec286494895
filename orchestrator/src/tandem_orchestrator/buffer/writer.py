# SPDX-License-Identifier: Apache-2.0
"""The one thread that writes: whatever waits when it is free becomes one transaction and one fsync (group commit)."""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tandem_orchestrator.buffer.schema import full, no_room

type Work = Callable[[sqlite3.Connection], Any]

_MOST_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    result: Future[Any]


class Writer:
    """Runs pieces of work on the writing connection, in the order they were submitted.

    A future is done only when its work is durable. A piece that raises takes back its own changes alone; a commit that
    fails takes back, and fails, all pieces of it. One that finds no room is tried once more if ``make_room``, in a
    transaction of its own, freed any. ``full`` tells whether the last commit found none.

    >>> writer = Writer(connection)                                      # doctest: +SKIP
    >>> await asyncio.wrap_future(writer.submit(lambda db: db.execute("DELETE FROM prompts").rowcount))
    """

    def __init__(self, connection: sqlite3.Connection, make_room: Callable[[sqlite3.Connection], bool]) -> None:
        self._connection = connection
        self._make_room = make_room
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._full_since: float | None = None
        self._full_before = 0.0
        self._thread = threading.Thread(target=self._run, name="buffer writer", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        return self._full_since is not None

    @property
    def full_seconds(self) -> float:
        """For how long there was no room, all times together."""
        since = self._full_since
        return self._full_before + (time.monotonic() - since if since is not None else 0.0)

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
        try:
            try:
                results = self._transaction([job.work for job in jobs])
            except sqlite3.Error as error:
                if not no_room(error) or not self._made_room():
                    raise
                results = self._transaction([job.work for job in jobs])
        except Exception as error:  # noqa: BLE001 - handed to the callers, none of whose work was kept
            failure = self._named(error)
            for job in jobs:
                job.result.set_exception(failure)
            return
        self._note_room()
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, _Raised):
                job.result.set_exception(result.error)
            else:
                job.result.set_result(result)

    def _transaction(self, pieces: list[Work]) -> list[Any]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [self._piece(work) for work in pieces]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results

    def _made_room(self) -> bool:
        try:
            return self._transaction([self._make_room]) == [True]
        except sqlite3.Error as error:
            if no_room(error):
                return False
            raise

    def _piece(self, work: Work) -> Any:
        self._connection.execute("SAVEPOINT piece")
        try:
            result = work(self._connection)
        except Exception as error:
            if not self._connection.in_transaction or no_room(error):
                raise
            self._connection.execute("ROLLBACK TO piece")
            result = _Raised(error)
        self._connection.execute("RELEASE piece")
        return result

    def _named(self, error: Exception) -> Exception:
        if not (isinstance(error, sqlite3.Error) and no_room(error)):
            return error
        if self._full_since is None:
            self._full_since = time.monotonic()
        return full(error)

    def _note_room(self) -> None:
        if self._full_since is not None:
            self._full_before, self._full_since = self.full_seconds, None


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception
