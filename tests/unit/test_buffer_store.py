# SPDX-License-Identifier: Apache-2.0
"""The replay buffer stores each token once and keeps what it acknowledged."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from waiting import DEADLINE, reached

from tandem_api.errors import UserError
from tandem_api.messages.work import Finish, Segment, VersionSpan
from tandem_orchestrator.buffer import (
    BatchRow,
    Buffer,
    BufferFull,
    GroupRow,
    Kind,
    Outcome,
    ScoreRow,
    SegmentRow,
    State,
)
from tandem_orchestrator.buffer.schema import MIGRATIONS, connect


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    opened = Buffer(tmp_path / "buffer.sqlite")
    yield opened
    opened.close()


def row(
    trajectory: str, offset: int, *tokens: int, version: int = 0, state: State | None = State.PARTIAL
) -> SegmentRow:
    finish = Finish.STOP if state is State.FINISHED else Finish.ABORT
    spans = (VersionSpan(version=version, count=len(tokens)),)
    logprobs = tuple(-token / 8 for token in tokens)
    segment = Segment(
        trajectory=trajectory, offset=offset, tokens=tokens, logprobs=logprobs, versions=spans, finish=finish
    )
    return SegmentRow.of(segment, state)


def group(number: int, samples: int = 2, kind: Kind = Kind.TRAIN, iteration: int = 0) -> GroupRow:
    return GroupRow(number, kind, f"p{number}", iteration, samples)


async def test_segments_join_to_what_was_generated(buffer: Buffer):
    await buffer.add_groups([group(1)])
    assert await buffer.append([row("1-0", 0, 5, 6, version=3)], 0) == [Outcome.STORED]
    assert await buffer.append([row("1-0", 2, 7, version=4)], 1) == [Outcome.STORED]
    made = (await buffer.generated(["1-0", "1-1"]))["1-0"]
    assert made.tokens.tolist() == [5, 6, 7]
    assert made.versions.tolist() == [3, 3, 4]
    np.testing.assert_array_equal(made.logprobs, np.array([-5 / 8, -6 / 8, -7 / 8], np.float32))


async def test_a_segment_sent_twice_is_stored_once(buffer: Buffer):
    await buffer.add_groups([group(1)])
    again = row("1-0", 0, 5, 6)
    assert await buffer.append([again, again], 0) == [Outcome.STORED, Outcome.REPEATED]
    assert await buffer.append([again], 0) == [Outcome.REPEATED]
    assert await buffer.append([row("1-0", 2, 8, state=State.FINISHED)], 0) == [Outcome.STORED]
    assert await buffer.append([again, row("1-0", 2, 8, state=State.FINISHED)], 0) == [Outcome.REPEATED] * 2
    assert (await buffer.generated(["1-0"]))["1-0"].tokens.tolist() == [5, 6, 8]


async def test_what_does_not_continue_a_trajectory_is_refused_with_its_reason(buffer: Buffer):
    await buffer.add_groups([group(1)])
    await buffer.append([row("1-0", 0, 5, 6), row("1-1", 0, 9, state=State.FINISHED)], 0)
    outcomes = await buffer.append(
        [row("9-9", 0, 1), row("1-0", 3, 1), row("1-0", 0, 7, 7), row("1-0", 1, 6), row("1-1", 1, 2)], 0
    )
    assert outcomes == [Outcome.UNKNOWN, Outcome.GAP, Outcome.CONFLICT, Outcome.CONFLICT, Outcome.CLOSED]


async def test_a_segment_that_nobody_asked_for_is_found_but_never_stored(buffer: Buffer):
    await buffer.add_groups([group(1)])
    assert await buffer.append([row("1-0", 0, 5, state=None)], 0) == [Outcome.CLOSED]
    await buffer.append([row("1-0", 0, 5)], 0)
    assert await buffer.append([row("1-0", 0, 5, state=None)], 0) == [Outcome.REPEATED]


async def test_the_budget_is_counted_by_iteration_and_the_oldest_version_kept(buffer: Buffer):
    await buffer.add_groups([group(1)])
    await buffer.append([row("1-0", 0, 1, 2, version=4)], 4)
    await buffer.append([row("1-0", 2, 3, version=4)], 4)
    _, before = await buffer.live()
    await buffer.append([row("1-0", 3, 4, version=5)], 5)
    _, after = await buffer.live()
    assert [(t.length, t.spent, t.spent_in, t.oldest) for t in (before[0], after[0])] == [(3, 3, 4, 4), (4, 1, 5, 4)]


async def test_what_was_acknowledged_is_there_when_opened_again(tmp_path: Path):
    first = Buffer(tmp_path / "buffer.sqlite")
    await first.add_groups([group(1), group(2, 1, Kind.EVALUATION)])
    await first.append([row("1-0", 0, 5, state=State.FINISHED), row("1-1", 0, 6)], 0)
    await first.score([ScoreRow("1-0", 0.25, True)])
    first.close()
    second = Buffer(tmp_path / "buffer.sqlite")
    groups, trajectories = await second.live()
    second.close()
    assert groups == [group(1), group(2, 1, Kind.EVALUATION)]
    assert [(t.id, t.state, t.length) for t in trajectories] == [
        ("1-0", State.SCORED, 1),
        ("1-1", State.PARTIAL, 1),
        ("2-0", State.WAITING, 0),
    ]
    assert (trajectories[0].score, trajectories[0].correct, trajectories[0].finish) == (0.25, True, Finish.STOP)


async def test_a_verdict_counts_once(buffer: Buffer):
    await buffer.add_groups([group(1)])
    await buffer.append([row("1-0", 0, 5, state=State.FINISHED)], 0)
    await buffer.score([ScoreRow("1-0", 1.0, True)])
    await buffer.score([ScoreRow("1-0", None, error="too late"), ScoreRow("1-1", 1.0, True)])
    _, trajectories = await buffer.live()
    assert [(t.state, t.score) for t in trajectories] == [(State.SCORED, 1.0), (State.WAITING, None)]


async def test_a_batch_takes_its_groups_and_drops_the_unfinished(buffer: Buffer):
    await buffer.add_groups([group(1), group(2), group(3)])
    await buffer.append([row("1-0", 0, 5, state=State.FINISHED)], 0)
    batch = BatchRow(0, (("1-0", 0.1, 0),), "{}", "digest")
    await buffer.add_batch(batch, [1], [2], {"p1": (2.0, 1.0)})
    groups, _ = await buffer.live()
    assert [found.id for found in groups] == [3]
    assert await buffer.batch(0) == batch
    assert (await buffer.attempts())["p1"].successes == 1.0
    assert await buffer.append([row("2-0", 0, 1)], 0) == [Outcome.CLOSED]


async def test_only_batches_below_a_checkpoint_are_durable(buffer: Buffer):
    for iteration in range(3):
        await buffer.add_batch(BatchRow(iteration, (), "{}", ""), [], [], {})
    await buffer.durable(2, "/checkpoints/2")
    found = [await buffer.batch(iteration) for iteration in range(3)]
    assert [batch.durable for batch in found if batch] == [True, True, False]
    assert await buffer.newest_checkpoint() == (2, "/checkpoints/2")


async def test_pruning_takes_the_oldest_durable_tokens_and_no_others(buffer: Buffer):
    for number in (1, 2, 3):
        await buffer.add_groups([group(number, 1, iteration=number)])
        await buffer.append([row(f"{number}-0", 0, *range(20_000), state=State.FINISHED)], number)
        await buffer.add_batch(BatchRow(number, ((f"{number}-0", 0.0, 0),), "{}", ""), [number], [], {})
    await buffer.durable(3, "/checkpoints/3")
    assert await buffer.prune(10**9) == 0
    assert await buffer.prune(400_000) == 1
    assert await buffer.prune(0) == 1
    left = await buffer.generated(["1-0", "2-0", "3-0"])
    assert [len(made.tokens) for made in left.values()] == [0, 0, 20_000]


async def test_writes_that_wait_together_are_one_commit_and_each_has_its_own_result(buffer: Buffer):
    await buffer.add_groups([group(number, 1) for number in range(1, 101)])
    results = await asyncio.gather(
        *(buffer.append([row(f"{number}-0", 0, number)], 0) for number in range(1, 101)),
        buffer.add_groups([group(1)]),
        return_exceptions=True,
    )
    assert results[:-1] == [[Outcome.STORED]] * 100
    assert isinstance(results[-1], sqlite3.IntegrityError)


def limit(buffer: Buffer, pages: int) -> None:
    """As if the volume had this size; the writer must be idle."""
    buffer._writer._connection.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_volume_loses_nothing_and_work_goes_on_when_there_is_room(buffer: Buffer):
    await buffer.add_groups([group(1, 64)])
    limit(buffer, 60)
    stored, refused = [], []
    for sample in range(64):
        try:
            await buffer.append([row(f"1-{sample}", 0, *range(1000))], 0)
            stored.append(f"1-{sample}")
        except BufferFull:
            refused.append(f"1-{sample}")
    assert stored
    assert refused
    assert buffer.full
    assert all(len(made.tokens) == 1000 for made in (await buffer.generated(stored)).values())
    limit(buffer, 100_000)
    assert await buffer.append([row(refused[0], 0, 1)], 0) == [Outcome.STORED]
    assert not buffer.full
    assert buffer.full_seconds > 0


async def test_looking_for_room_finds_it_without_a_write_of_anybody(buffer: Buffer):
    await buffer.add_groups([group(1)])
    limit(buffer, 60)
    with pytest.raises(BufferFull):
        await buffer.append([row("1-0", 0, *range(60_000))], 0)
    await buffer.look_for_room()
    assert buffer.full
    limit(buffer, 100_000)
    await buffer.look_for_room()
    assert not buffer.full


async def test_what_must_be_written_waits_for_room(buffer: Buffer):
    await buffer.add_groups([group(1)])
    limit(buffer, 30)
    adding = asyncio.create_task(buffer.add_groups([group(number, 8) for number in range(2, 500)]))
    await reached(lambda: buffer.full, DEADLINE, "the full volume")
    assert not adding.done()
    limit(buffer, 100_000)
    await adding
    assert len((await buffer.live())[0]) == 499


async def finished_batch(buffer: Buffer, number: int) -> None:
    await buffer.begin_iteration(number, number)
    await buffer.add_groups([group(number, 1, iteration=number)])
    await buffer.append([row(f"{number}-0", 0, *range(20_000), state=State.FINISHED)], number)
    await buffer.add_batch(BatchRow(number, ((f"{number}-0", 0.0, 0),), "{}", ""), [number], [], {})


async def test_a_bounded_buffer_gives_up_durable_tokens_first_and_never_others(tmp_path: Path):
    path = tmp_path / "buffer.sqlite"
    buffer = Buffer(path, most_bytes=700_000)
    for number in (1, 2, 3):
        await finished_batch(buffer, number)
    await buffer.durable(3, "/checkpoints/3")
    for number in (4, 5):
        await finished_batch(buffer, number)
    held = [len(made.tokens) for made in (await buffer.generated(f"{number}-0" for number in range(1, 6))).values()]
    assert held[:2] != [20_000, 20_000]
    assert held[2:] == [20_000] * 3
    await finished_batch(buffer, 6)
    await buffer.add_groups([group(7, 1)])
    with pytest.raises(BufferFull):
        await buffer.append([row("7-0", 0, *range(20_000))], 7)
    kept = await buffer.generated(f"{number}-0" for number in (3, 4, 5, 6))
    assert [len(made.tokens) for made in kept.values()] == [20_000] * 4
    buffer.close()
    assert path.stat().st_size <= 700_000


async def test_groups_given_up_are_deleted_with_the_batch_of_their_time(buffer: Buffer):
    await buffer.add_groups([group(100, 1)])
    await buffer.append([row("100-0", 0, *range(500))], 0)
    await buffer.begin_iteration(1, 1)
    await buffer.drop_groups([100], "too old to go on with")
    await finished_batch(buffer, 1)
    await buffer.durable(2, "/checkpoints/2")
    assert await buffer.prune(0) == 1
    assert len((await buffer.generated(["100-0"]))["100-0"].tokens) == 0


def test_a_buffer_of_a_newer_version_is_refused(tmp_path: Path):
    path = tmp_path / "buffer.sqlite"
    connection = connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(UserError, match=f"schema version {len(MIGRATIONS) + 1}"):
        connect(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "buffer.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be opened as a replay buffer"):
        connect(path)


def test_every_commit_is_synced_to_the_disk(tmp_path: Path):
    connection = connect(tmp_path / "buffer.sqlite")
    settings = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    connection.close()
    assert settings == ["wal", 2]
