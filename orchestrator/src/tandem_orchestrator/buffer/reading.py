# SPDX-License-Identifier: Apache-2.0
"""Looking into a buffer without touching it, also while a run writes it."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tandem_api.errors import Problem, UserError
from tandem_orchestrator.buffer.rows import Generated
from tandem_orchestrator.buffer.schema import MIGRATIONS

FILE = "buffer.sqlite"
_TOGETHER = 256
_TRAJECTORY = """
    SELECT t.id, g.id AS "group", t.sample, g.prompt, g.kind, t.state, g.iteration AS drawn, g.batch, t.length,
           t.oldest, t.finish, t.score, t.correct, t.error
    FROM trajectories t JOIN groups g ON g.id = t.group_id
"""


@dataclass(frozen=True, slots=True)
class Iteration:
    """What was drawn for one iteration: trajectories by state, tokens generated; its batch and evaluation, if any."""

    iteration: int
    weight_version: int | None
    groups: int
    states: dict[str, int]
    tokens: int
    batch: dict[str, Any] | None
    durable: bool
    pruned: bool
    evaluation: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Overview:
    """A buffer in numbers. ``bytes`` are those of the file and of its write-ahead log."""

    path: str
    bytes: int
    log_bytes: int
    schema: int
    prompts: int
    iterations: list[Iteration]
    checkpoints: dict[int, str]


@dataclass(frozen=True, slots=True)
class Part:
    """One segment: ``count`` tokens from ``offset`` on, and (weight version, tokens) of each span."""

    offset: int
    count: int
    finish: str
    versions: list[tuple[int, int]]
    logprob_mean: float | None
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Found:
    """A trajectory: its columns, its shaped reward where it is in a batch, its segments in order."""

    columns: dict[str, Any]
    reward: float | None
    segments: list[Part]


class Reader:
    """A buffer that is only looked at.

    Life cycle: construction opens it, :meth:`close`, or use it in a ``with``. Each method sees one state of the
    buffer, and holds none for longer, so that a run's write-ahead log does not grow.

    Raises:
        UserError: there is no buffer, or a newer Tandem wrote it.
    """

    def __init__(self, place: Path) -> None:
        self.path = place / FILE if place.is_dir() else place
        if not self.path.is_file():
            raise UserError(Problem(str(place), f"holds no {FILE}; name the directory of a run, or its orchestrator's"))
        self._db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA busy_timeout = 5000")
            self.schema: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            self._db.close()
            raise UserError(Problem(str(self.path), f"cannot be read as a replay buffer: {error}")) from error
        if not 1 <= self.schema <= len(MIGRATIONS):
            self._db.close()
            known = f"this Tandem knows 1 to {len(MIGRATIONS)}"
            raise UserError(Problem(str(self.path), f"has schema version {self.schema}, {known}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def overview(self) -> Overview:
        """The buffer in numbers, iteration by iteration."""
        log = self.path.with_name(self.path.name + "-wal")
        with self._snapshot() as db:
            return Overview(
                path=str(self.path),
                bytes=self.path.stat().st_size,
                log_bytes=log.stat().st_size if log.exists() else 0,
                schema=self.schema,
                prompts=db.execute("SELECT count(*) FROM prompts").fetchone()[0],
                iterations=list(_iterations(db)),
                checkpoints=dict(map(tuple, db.execute("SELECT iteration, path FROM checkpoints ORDER BY iteration"))),
            )

    def trajectory(self, name: str) -> Found:
        """One trajectory with all that it generated.

        Raises:
            UserError: it is not in the buffer.
        """
        with self._snapshot() as db:
            row = db.execute(f"{_TRAJECTORY} WHERE t.id = ?", (name,)).fetchone()
            if row is None:
                raise UserError(Problem(str(self.path), f"has no trajectory {name}; names are GROUP-SAMPLE, as 12-0"))
            columns = _columns(row)
            return Found(columns, _rewards(db, columns["batch"]).get(name), _parts(db, name))

    def trajectories(self, batch: int | None = None) -> Iterator[list[tuple[dict[str, Any], Generated]]]:
        """All trajectories, or those of the groups of a batch, in order of group, some hundred at a time.

        What is written meanwhile may be seen or not; each piece is of one state of the buffer.
        """
        rewards: dict[int, dict[str, float]] = {}
        last = (-1, -1)
        while True:
            with self._snapshot() as db:
                rows = db.execute(
                    f"{_TRAJECTORY} WHERE (t.group_id, t.sample) > (?, ?) AND (? IS NULL OR g.batch = ?) "
                    "ORDER BY t.group_id, t.sample LIMIT ?",
                    (*last, batch, batch, _TOGETHER),
                ).fetchall()
                if not rows:
                    return
                last = rows[-1]["group"], rows[-1]["sample"]
                for number in {row["batch"] for row in rows} - set(rewards):
                    rewards[number] = _rewards(db, number)
                piece = [
                    (_columns(row) | {"reward": rewards[row["batch"]].get(row["id"])}, _generated(db, row["id"]))
                    for row in rows
                ]
            yield piece

    def _snapshot(self) -> "_Snapshot":
        return _Snapshot(self._db)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A read transaction: everything within is of one state of the buffer."""

    db: sqlite3.Connection

    def __enter__(self) -> sqlite3.Connection:
        self.db.execute("BEGIN")
        return self.db

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.db.execute("ROLLBACK")


def _iterations(db: sqlite3.Connection) -> Iterator[Iteration]:
    states: dict[int, dict[str, int]] = {}
    tokens: dict[int, int] = {}
    for iteration, state, count, length in db.execute(
        "SELECT g.iteration, t.state, count(*), sum(t.length) FROM trajectories t JOIN groups g ON g.id = t.group_id "
        "GROUP BY 1, 2 ORDER BY 1, 2"
    ):
        states.setdefault(iteration, {})[state] = count
        tokens[iteration] = tokens.get(iteration, 0) + length
    groups = dict(map(tuple, db.execute("SELECT iteration, count(*) FROM groups GROUP BY 1")))
    begun = {
        row["iteration"]: row for row in db.execute("SELECT iteration, weight_version, evaluation FROM iterations")
    }
    batches = {row["iteration"]: row for row in db.execute("SELECT iteration, summary, durable, pruned FROM batches")}
    for iteration in sorted(groups.keys() | begun.keys() | batches.keys()):
        at, batch = begun.get(iteration), batches.get(iteration)
        yield Iteration(
            iteration=iteration,
            weight_version=at["weight_version"] if at else None,
            groups=groups.get(iteration, 0),
            states=states.get(iteration, {}),
            tokens=tokens.get(iteration, 0),
            batch=json.loads(batch["summary"]) if batch else None,
            durable=bool(batch and batch["durable"]),
            pruned=bool(batch and batch["pruned"]),
            evaluation=json.loads(at["evaluation"]) if at and at["evaluation"] else None,
        )


def _columns(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row) | {"correct": None if row["correct"] is None else bool(row["correct"])}


def _rewards(db: sqlite3.Connection, batch: int | None) -> dict[str, float]:
    """The shaped reward of each member of a batch."""
    row = db.execute("SELECT members FROM batches WHERE iteration = ?", (batch,)).fetchone()
    return {name: reward for name, reward, _ in json.loads(row["members"])} if row else {}


def _pieces(db: sqlite3.Connection, name: str) -> list[sqlite3.Row]:
    return db.execute(
        "SELECT offset, finish, tokens, logprobs, versions FROM segments WHERE trajectory = ? ORDER BY offset", (name,)
    ).fetchall()


def _generated(db: sqlite3.Connection, name: str) -> Generated:
    return Generated.joined([(row["tokens"], row["logprobs"], row["versions"]) for row in _pieces(db, name)])


def _parts(db: sqlite3.Connection, name: str) -> list[Part]:
    parts = []
    for row in _pieces(db, name):
        made = Generated.joined([(row["tokens"], row["logprobs"], row["versions"])])
        spans = Generated.spans(row["versions"])
        mean = float(made.logprobs.mean()) if len(made.logprobs) else None
        parts.append(Part(row["offset"], len(made.tokens), row["finish"], spans, mean, made.tokens.tolist()))
    return parts
