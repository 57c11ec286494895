# SPDX-License-Identifier: Apache-2.0
"""What a rollout asks of the buffer: open groups, their trajectories and tokens."""

import json
import sqlite3

from tandem_api.messages.work import Finish
from tandem_orchestrator.buffer.rows import Generated, GroupRow, Kind, State, TrajectoryRow

_SELECT = """
    SELECT id, group_id, sample, state, length, oldest, spent, spent_in, finish, score, correct, error
    FROM trajectories
"""


def live(db: sqlite3.Connection) -> tuple[list[GroupRow], list[TrajectoryRow]]:
    """All open groups in order of id, and their trajectories."""
    taken = "WHERE group_id IN (SELECT id FROM groups WHERE state = 'open') ORDER BY group_id, sample"
    found = [_trajectory(*row) for row in db.execute(_SELECT + taken)]
    samples: dict[int, int] = {}
    for trajectory in found:
        samples[trajectory.group] = samples.get(trajectory.group, 0) + 1
    groups = [
        GroupRow(row[0], Kind(row[1]), row[2], row[3], samples.get(row[0], 0))
        for row in db.execute("SELECT id, kind, prompt, iteration FROM groups WHERE state = 'open' ORDER BY id")
    ]
    return groups, found


def trajectories(db: sqlite3.Connection, names: list[str]) -> list[TrajectoryRow]:
    """Those of ``names`` that there are."""
    taken = "WHERE id IN (SELECT value FROM json_each(?))"
    return [_trajectory(*row) for row in db.execute(_SELECT + taken, (json.dumps(names),))]


def _trajectory(
    name: str,
    group: int,
    sample: int,
    state: str,
    length: int,
    oldest: int | None,
    spent: int,
    spent_in: int,
    finish: str | None,
    score: float | None,
    correct: int | None,
    error: str | None,
) -> TrajectoryRow:
    ended = Finish(finish) if finish else None
    return TrajectoryRow(
        name, group, sample, State(state), length, oldest, spent, spent_in, ended, score, bool(correct), error
    )


def generated(db: sqlite3.Connection, trajectories: list[str]) -> dict[str, Generated]:
    """What was generated so far, of each of ``trajectories``."""
    pieces: dict[str, list[tuple[bytes, bytes, bytes]]] = {name: [] for name in trajectories}
    for name, *piece in db.execute(
        "SELECT trajectory, tokens, logprobs, versions FROM segments "
        "WHERE trajectory IN (SELECT value FROM json_each(?)) ORDER BY trajectory, offset",
        (json.dumps(trajectories),),
    ):
        pieces[name].append((piece[0], piece[1], piece[2]))
    return {name: Generated.joined(found) for name, found in pieces.items()}


def prompts_of(db: sqlite3.Connection, trajectories: list[str]) -> dict[str, str]:
    """The id of the prompt of each of ``trajectories``."""
    return dict(
        db.execute(
            "SELECT t.id, g.prompt FROM trajectories t JOIN groups g ON g.id = t.group_id "
            "WHERE t.id IN (SELECT value FROM json_each(?))",
            (json.dumps(trajectories),),
        ).fetchall()
    )
