# SPDX-License-Identifier: Apache-2.0
"""The operations of the replay buffer. Each is one transaction, and durable when it returns."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from tandem_orchestrator.buffer.append import append
from tandem_orchestrator.buffer.queries import generated, live, prompts_of, trajectories
from tandem_orchestrator.buffer.rows import (
    BatchRow,
    Generated,
    GroupRow,
    GroupState,
    Kind,
    Outcome,
    ScoreRow,
    SegmentRow,
    State,
    TrajectoryRow,
    trajectory_id,
)
from tandem_orchestrator.buffer.schema import BufferFull, connect, connect_reader
from tandem_orchestrator.buffer.writer import Writer

log = structlog.get_logger()

_RETRY_SECONDS = 0.5
_PROBE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Attempts:
    """How a prompt went: discounted tries and successes, and how often it was drawn."""

    tries: float
    successes: float
    draws: int


class Buffer:
    """The durable store of one run.

    Life cycle: construction opens it; any operations from one event loop; :meth:`close`. Invariants: a segment that
    :meth:`append` reported safe survives the death of the process and of the machine; no token is stored twice; the
    members of a batch never change and stay readable until the batch is durable (:meth:`durable`).

    The file grows to ``most_bytes`` at most. A write for which that, or the volume, leaves no room deletes the tokens
    of the oldest durable batch, as :meth:`prune` does. If there is none, :meth:`append` raises :class:`BufferFull`,
    since its callers keep what they have; every other write waits until there is room.
    """

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        self._writer = Writer(connect(path, most_bytes), _prune_oldest)
        self._reads = connect_reader(path)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="buffer reader")

    def close(self) -> None:
        self._reader.shutdown()
        self._reads.close()
        # The last connection takes what is in the write-ahead log over into the file; a reading one cannot.
        self._writer.close()

    @property
    def full(self) -> bool:
        """Whether there was no room for the last write; cleared by the next that succeeds."""
        return self._writer.full

    @property
    def full_seconds(self) -> float:
        """For how long it was full since it was opened, all times together."""
        return self._writer.full_seconds

    @property
    def waiting_writes(self) -> int:
        return self._writer.waiting

    async def begin_iteration(self, iteration: int, weight_version: int) -> None:
        """Note that ``iteration`` is rolled out with these weights; again after a restart is the same."""
        await self._write(
            lambda db: (
                db.execute(
                    "INSERT INTO iterations (iteration, weight_version) VALUES (?, ?) "
                    "ON CONFLICT (iteration) DO UPDATE SET weight_version = excluded.weight_version",
                    (iteration, weight_version),
                ).rowcount
            )
        )

    async def add_groups(self, groups: Sequence[GroupRow]) -> None:
        """Create groups with their trajectories, all waiting, and count their prompts as drawn."""
        await self._write(partial(_add_groups, groups=groups))

    async def live(self) -> tuple[list[GroupRow], list[TrajectoryRow]]:
        """All open groups in order of id, and their trajectories."""
        return await self._read(live)

    async def trajectories(self, names: Iterable[str]) -> list[TrajectoryRow]:
        """These trajectories as they are on disk; those that it does not know are left out."""
        return await self._read(partial(trajectories, names=list(names)))

    async def next_group(self) -> int:
        """The first id that no group has."""
        return await self._read(_next_group)

    async def append(self, rows: Sequence[SegmentRow], iteration: int) -> list[Outcome]:
        """Store segments, each at most once; the outcomes are in the order of ``rows``.

        Raises:
            BufferFull: there is no room; nothing was stored.
        """
        return await self._write_now(partial(append, rows=rows, iteration=iteration))

    async def look_for_room(self) -> None:
        """Write something where there was no room, so that ``full`` is true no longer than it must be."""
        if self.full:
            with contextlib.suppress(BufferFull):
                await self._write_now(_fill)
                await self._write_now(_empty)

    async def generated(self, trajectories: Iterable[str]) -> dict[str, Generated]:
        """What was generated so far, of each of these trajectories."""
        return await self._read(partial(generated, trajectories=list(trajectories)))

    async def prompts_of(self, trajectories: Iterable[str]) -> dict[str, str]:
        """The id of the prompt of each of these trajectories."""
        return await self._read(partial(prompts_of, trajectories=list(trajectories)))

    async def score(self, rows: Sequence[ScoreRow]) -> None:
        """Note verdicts; a trajectory without one is dropped with its reason."""
        await self._write(partial(_score, rows=rows))

    async def drop_groups(self, groups: Iterable[int], reason: str) -> None:
        """Give groups up, for example since they grew too old."""
        await self._write(partial(_drop, groups=list(groups), reason=reason, batch=None))

    async def add_batch(
        self,
        batch: BatchRow,
        groups: Iterable[int],
        dropped: Iterable[int],
        attempts: Mapping[str, tuple[float, float]],
    ) -> None:
        """Write a batch: its groups leave the open ones, ``dropped`` are given up, prompts' statistics are renewed.

        ``attempts`` holds the new discounted (tries, successes) of each prompt.
        """
        await self._write(
            partial(_add_batch, batch=batch, groups=list(groups), dropped=list(dropped), attempts=attempts)
        )

    async def batch(self, iteration: int) -> BatchRow | None:
        return await self._read(partial(_batch, iteration=iteration))

    async def close_evaluation(self, iteration: int, result: str, groups: Iterable[int]) -> None:
        """Note the evaluation of ``iteration``; its groups leave the open ones."""
        await self._write(partial(_close_evaluation, iteration=iteration, result=result, groups=list(groups)))

    async def evaluation(self, iteration: int) -> str | None:
        return (await self.evaluations()).get(iteration)

    async def evaluations(self) -> dict[int, str]:
        """The result of each iteration that was evaluated."""
        return await self._read(partial(_texts, table="iterations", column="evaluation"))

    async def summaries(self) -> dict[int, str]:
        """The summary of each closed batch."""
        return await self._read(partial(_texts, table="batches", column="summary"))

    async def durable(self, iteration: int, checkpoint: str) -> None:
        """A checkpoint of the weights after ``iteration`` iterations is on disk: the batches below it are covered."""
        await self._write(partial(_durable, iteration=iteration, checkpoint=checkpoint))

    async def newest_checkpoint(self) -> tuple[int, str] | None:
        """(iterations that it covers, path)."""
        return await self._read(_newest_checkpoint)

    async def attempts(self) -> dict[str, Attempts]:
        """Of each prompt that was ever drawn."""
        rows = await self._read(lambda db: db.execute("SELECT id, tries, successes, draws FROM prompts").fetchall())
        return {row[0]: Attempts(*row[1:]) for row in rows}

    async def prune(self, limit: int) -> int:
        """Delete the tokens of the oldest durable batches while the buffer holds more than ``limit`` bytes.

        Returns how many batches lost theirs. What no durable checkpoint covers is never deleted.
        """
        return await self._write(partial(_prune, limit=limit))

    async def _write[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        while True:
            try:
                return await self._write_now(work)
            except BufferFull as error:
                log.warning("a write waits for room in the buffer", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _write_now[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.wrap_future(self._writer.submit(work))

    async def _read[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, self._reads)


def _add_groups(db: sqlite3.Connection, groups: Sequence[GroupRow]) -> None:
    db.executemany(
        "INSERT INTO groups (id, kind, prompt, iteration, state) VALUES (?, ?, ?, ?, 'open')",
        [(group.id, group.kind, group.prompt, group.iteration) for group in groups],
    )
    db.executemany(
        "INSERT INTO trajectories (id, group_id, sample, state, length, spent, spent_in) "
        "VALUES (?, ?, ?, 'waiting', 0, 0, ?)",
        [
            (trajectory_id(group.id, sample), group.id, sample, group.iteration)
            for group in groups
            for sample in range(group.samples)
        ],
    )
    db.executemany(
        "INSERT INTO prompts VALUES (?, 0, 0, 1) ON CONFLICT (id) DO UPDATE SET draws = draws + 1",
        [(group.prompt,) for group in groups if group.kind is Kind.TRAIN],
    )


def _next_group(db: sqlite3.Connection) -> int:
    number: int = db.execute("SELECT coalesce(max(id), 0) + 1 FROM groups").fetchone()[0]
    return number


def _newest_checkpoint(db: sqlite3.Connection) -> tuple[int, str] | None:
    row: tuple[int, str] | None = db.execute(
        "SELECT iteration, path FROM checkpoints ORDER BY iteration DESC LIMIT 1"
    ).fetchone()
    return row


def _score(db: sqlite3.Connection, rows: Sequence[ScoreRow]) -> None:
    db.executemany(
        "UPDATE trajectories SET state = ?, score = ?, correct = ?, error = ? WHERE id = ? AND state = 'finished'",
        [
            (State.DROPPED if row.value is None else State.SCORED, row.value, row.correct, row.error, row.trajectory)
            for row in rows
        ],
    )


def _drop(db: sqlite3.Connection, groups: list[int], reason: str, batch: int | None) -> None:
    if batch is None:
        # Their tokens are deleted with those of the batch that is being filled.
        batch = db.execute("SELECT max(iteration) FROM iterations").fetchone()[0]
    db.executemany("UPDATE groups SET state = 'dropped', batch = ? WHERE id = ?", [(batch, group) for group in groups])
    db.executemany(
        "UPDATE trajectories SET state = 'dropped', error = coalesce(error, ?) WHERE group_id = ?",
        [(reason, group) for group in groups],
    )


def _add_batch(
    db: sqlite3.Connection,
    batch: BatchRow,
    groups: list[int],
    dropped: list[int],
    attempts: Mapping[str, tuple[float, float]],
) -> None:
    db.execute(
        "INSERT INTO batches VALUES (?, ?, ?, ?, 0, 0)",
        (batch.iteration, json.dumps(batch.members), batch.summary, batch.digest),
    )
    db.executemany(
        "UPDATE groups SET state = ?, batch = ? WHERE id = ?",
        [(GroupState.BATCHED, batch.iteration, group) for group in groups],
    )
    db.executemany("UPDATE trajectories SET state = 'batched' WHERE id = ?", [(name,) for name, _, _ in batch.members])
    _drop(db, dropped, "not finished when its batch was closed", batch.iteration)
    db.executemany(
        "UPDATE prompts SET tries = ?, successes = ? WHERE id = ?",
        [(tries, successes, prompt) for prompt, (tries, successes) in attempts.items()],
    )


def _batch(db: sqlite3.Connection, iteration: int) -> BatchRow | None:
    row = db.execute(
        "SELECT members, summary, digest, durable FROM batches WHERE iteration = ?", (iteration,)
    ).fetchone()
    if row is None:
        return None
    members = tuple((name, reward, group) for name, reward, group in json.loads(row[0]))
    return BatchRow(iteration, members, row[1], row[2], bool(row[3]))


def _close_evaluation(db: sqlite3.Connection, iteration: int, result: str, groups: list[int]) -> None:
    db.execute("UPDATE iterations SET evaluation = ? WHERE iteration = ?", (result, iteration))
    db.executemany(
        "UPDATE groups SET state = 'batched', batch = ? WHERE id = ?", [(iteration, group) for group in groups]
    )


def _texts(db: sqlite3.Connection, table: str, column: str) -> dict[int, str]:
    query = f"SELECT iteration, {column} FROM {table} WHERE {column} IS NOT NULL"  # noqa: S608 - names are ours
    return dict(db.execute(query).fetchall())


def _durable(db: sqlite3.Connection, iteration: int, checkpoint: str) -> None:
    db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (iteration, checkpoint))
    db.execute("UPDATE batches SET durable = 1 WHERE iteration < ?", (iteration,))


def _fill(db: sqlite3.Connection) -> None:
    db.execute("INSERT OR REPLACE INTO room VALUES (1, zeroblob(?))", (_PROBE_BYTES,))


def _empty(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM room")


def _prune(db: sqlite3.Connection, limit: int) -> int:
    pruned = 0
    size = db.execute("PRAGMA page_size").fetchone()[0]
    while True:
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        if (pages - free) * size <= limit or not _prune_oldest(db):
            return pruned
        pruned += 1


def _prune_oldest(db: sqlite3.Connection) -> bool:
    """Delete the tokens of the oldest durable batch that has any; whether there was one."""
    found = db.execute("SELECT min(iteration) FROM batches WHERE durable = 1 AND pruned = 0").fetchone()[0]
    if found is None:
        return False
    db.execute(
        "DELETE FROM segments WHERE trajectory IN (SELECT t.id FROM trajectories t JOIN groups g "
        "ON g.id = t.group_id WHERE g.batch = ?)",
        (found,),
    )
    db.execute("UPDATE batches SET pruned = 1 WHERE iteration = ?", (found,))
    return True
