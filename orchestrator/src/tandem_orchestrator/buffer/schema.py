# SPDX-License-Identifier: Apache-2.0
"""The buffer's tables. ``PRAGMA user_version`` counts the migrations that a file has had."""

import sqlite3
from pathlib import Path

from tandem_api.errors import Problem, TryAgain, UserError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE prompts (
        id TEXT PRIMARY KEY,
        tries REAL NOT NULL,
        successes REAL NOT NULL,
        draws INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE groups (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        prompt TEXT NOT NULL,
        iteration INTEGER NOT NULL,
        state TEXT NOT NULL,
        batch INTEGER
    );
    CREATE INDEX groups_live ON groups (id) WHERE state = 'open';
    CREATE INDEX groups_batch ON groups (batch) WHERE batch IS NOT NULL;
    CREATE TABLE trajectories (
        id TEXT PRIMARY KEY,
        group_id INTEGER NOT NULL,
        sample INTEGER NOT NULL,
        state TEXT NOT NULL,
        length INTEGER NOT NULL,
        oldest INTEGER,
        spent INTEGER NOT NULL,
        spent_in INTEGER NOT NULL,
        finish TEXT,
        score REAL,
        correct INTEGER,
        error TEXT
    ) WITHOUT ROWID;
    CREATE INDEX trajectories_group ON trajectories (group_id);
    CREATE TABLE segments (
        id INTEGER PRIMARY KEY,
        trajectory TEXT NOT NULL,
        offset INTEGER NOT NULL,
        tokens BLOB NOT NULL,
        logprobs BLOB NOT NULL,
        versions BLOB NOT NULL,
        finish TEXT NOT NULL,
        UNIQUE (trajectory, offset)
    );
    CREATE TABLE iterations (
        iteration INTEGER PRIMARY KEY,
        weight_version INTEGER NOT NULL,
        evaluation TEXT,
        metrics TEXT
    );
    CREATE TABLE batches (
        iteration INTEGER PRIMARY KEY,
        members TEXT NOT NULL,
        summary TEXT NOT NULL,
        digest TEXT NOT NULL,
        durable INTEGER NOT NULL,
        pruned INTEGER NOT NULL
    );
    CREATE TABLE checkpoints (
        iteration INTEGER PRIMARY KEY,
        path TEXT NOT NULL
    );
    """,
    """
    CREATE TABLE room (
        id INTEGER PRIMARY KEY,
        filler BLOB NOT NULL
    );
    """,
)

_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMSIZE}


class BufferFull(TryAgain):
    """Volume or bound leave no room. Nothing of this write was kept; the same write succeeds once there is room."""


def no_room(error: BaseException) -> bool:
    """Whether SQLite failed for want of room."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _NO_ROOM


def full(error: sqlite3.Error) -> BufferFull:
    """What is told of it."""
    return BufferFull(f"the replay buffer is full ({error}); free space or enlarge the volume")


def connect(path: Path, most_bytes: int | None = None) -> sqlite3.Connection:
    """Open the buffer at ``path`` for writing, creating it or bringing it up to date.

    The file grows to ``most_bytes`` at most; a buffer that is larger already does not grow.

    A commit returns once its pages are on disk (write-ahead log, synchronous FULL).

    Raises:
        BufferFull: the volume has no room, not even to open it.
        UserError: a newer Tandem wrote the file, or it is no database.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")
        connection.execute("PRAGMA cache_size = -65536")
        _migrate(connection, path)
        if most_bytes is not None:
            page = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {max(1, most_bytes // page)}")
    except sqlite3.DatabaseError as error:
        connection.close()
        if no_room(error):
            raise full(error) from error
        raise UserError(Problem(str(path), f"cannot be opened as a replay buffer: {error}")) from error
    except UserError:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A second connection that sees every commit and can change nothing."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(MIGRATIONS):
        raise UserError(
            Problem(
                str(path),
                f"has schema version {found}, this Tandem knows {len(MIGRATIONS)}; use the version that wrote it",
            )
        )
    for version, script in enumerate(MIGRATIONS[found:], start=found + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {version}; COMMIT;")
