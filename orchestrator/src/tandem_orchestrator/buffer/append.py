# SPDX-License-Identifier: Apache-2.0
"""Storing segments exactly once: the decision is made in the transaction that writes."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from tandem_orchestrator.buffer.rows import Outcome, SegmentRow, State

_OPEN = (State.WAITING, State.PARTIAL)


@dataclass(slots=True)
class _Known:
    state: State
    length: int
    oldest: int | None
    spent: int
    spent_in: int
    finish: str | None = None
    changed: bool = False

    def take(self, row: SegmentRow, state: State, iteration: int) -> None:
        self.state = state
        self.length += row.count
        self.spent = row.count + (self.spent if self.spent_in == iteration else 0)
        self.spent_in = iteration
        self.finish = row.finish if state is State.FINISHED else None
        if row.oldest is not None:
            self.oldest = row.oldest if self.oldest is None else min(self.oldest, row.oldest)
        self.changed = True


def append(db: sqlite3.Connection, rows: Sequence[SegmentRow], iteration: int) -> list[Outcome]:
    """Store each row that continues its trajectory; a row that is there already is found so, and kept once."""
    known = _known(db, rows)
    fresh: dict[tuple[str, int], SegmentRow] = {}
    outcomes = []
    for row in rows:
        outcome = _judge(db, row, known.get(row.trajectory), fresh)
        if outcome is Outcome.STORED and row.state is not None:
            fresh[row.trajectory, row.offset] = row
            known[row.trajectory].take(row, row.state, iteration)
        outcomes.append(outcome)
    db.executemany(
        "INSERT INTO segments (trajectory, offset, tokens, logprobs, versions, finish) VALUES (?, ?, ?, ?, ?, ?)",
        [(row.trajectory, row.offset, row.tokens, row.logprobs, row.versions, row.finish) for row in fresh.values()],
    )
    db.executemany(
        "UPDATE trajectories SET state = ?, length = ?, oldest = ?, spent = ?, spent_in = ?, finish = ? WHERE id = ?",
        [
            (now.state, now.length, now.oldest, now.spent, now.spent_in, now.finish, name)
            for name, now in known.items()
            if now.changed
        ],
    )
    return outcomes


def _known(db: sqlite3.Connection, rows: Sequence[SegmentRow]) -> dict[str, _Known]:
    names = json.dumps(list({row.trajectory for row in rows}))
    return {
        name: _Known(State(state), *rest)
        for name, state, *rest in db.execute(
            "SELECT id, state, length, oldest, spent, spent_in FROM trajectories "
            "WHERE id IN (SELECT value FROM json_each(?))",
            (names,),
        )
    }


def _judge(
    db: sqlite3.Connection, row: SegmentRow, known: _Known | None, fresh: dict[tuple[str, int], SegmentRow]
) -> Outcome:
    if known is None:
        return Outcome.UNKNOWN
    wanted = known.state in _OPEN and row.state is not None
    if wanted and row.offset == known.length:
        return Outcome.STORED
    before = fresh.get((row.trajectory, row.offset))
    stored = (before.tokens, before.finish) if before else _stored(db, row)
    if stored is not None and stored == (row.tokens, row.finish):
        return Outcome.REPEATED
    if not wanted:
        return Outcome.CLOSED
    return Outcome.GAP if row.offset > known.length else Outcome.CONFLICT


def _stored(db: sqlite3.Connection, row: SegmentRow) -> tuple[bytes, str] | None:
    found: tuple[bytes, str] | None = db.execute(
        "SELECT tokens, finish FROM segments WHERE trajectory = ? AND offset = ?", (row.trajectory, row.offset)
    ).fetchone()
    return found
