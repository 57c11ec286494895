# SPDX-License-Identifier: Apache-2.0
"""``tandem buffer`` on the buffer of a run that goes on meanwhile."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from orchestrator_world import EOS, Engine, make_job, prompt_file, text_of, token_ids
from typer.testing import CliRunner
from waiting import eventually

from tandem_api.errors import UserError
from tandem_api.messages.work import Lease
from tandem_cli.buffer.command import app
from tandem_orchestrator.buffer import State
from tandem_orchestrator.buffer.parquet import COLUMNS
from tandem_orchestrator.run import Run

DOCUMENT = Path(__file__).parents[2] / "docs" / "buffer.md"


def answer(lease: Lease) -> tuple[int, ...]:
    return (*token_ids("=12 and then some more"), EOS)


@pytest_asyncio.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """One batch is closed; the second iteration has begun, its trajectories cut after five tokens and scored.

    Nothing is written any more but by a test.
    """
    rollout = {"tokenBudget": 40, "maxTokens": 40, "overlapIterations": 3}
    made = Run(make_job(prompt_file(tmp_path), rollout=rollout), tmp_path / "run")
    await made.prepare()
    await made.open_rollout(0, 0, (0,))
    made.serve(1)
    engine = Engine(made, 1, answer=answer)
    await engine.exhaust(version=0)
    await made.rollout_full()
    await made.close_rollout()
    await made.durable(1, "/checkpoints/iter-0000001")
    await made.open_rollout(1, 1, (0,))
    made.serve(2)
    engine = Engine(made, 2, answer=lambda lease: answer(lease)[:5])
    leases = await engine.lease()
    await engine.store(*(engine.respond(lease, 1) for lease in leases[:3]))

    async def all_scored() -> bool:
        _, trajectories = await made._opened.buffer.live()
        return all(one.state is not State.FINISHED for one in trajectories)

    await eventually(all_scored)
    yield made
    await made.stop()


def tandem(*arguments: str | Path) -> str:
    """What the command prints. What reads the buffer is a process of its own."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


async def test_ls_counts_what_the_buffer_holds_and_changes_nothing(run: Run, tmp_path: Path):
    before = (tmp_path / "run" / "buffer.sqlite-wal").read_bytes()
    said = json.loads(tandem("ls", tmp_path / "run", "--json"))
    assert (tmp_path / "run" / "buffer.sqlite-wal").read_bytes() == before
    first = next(row for row in said["iterations"] if row["iteration"] == 0)
    summary = run.batch_summary(0)
    assert summary is not None
    assert first["batch"]["samples"] == first["states"]["batched"] == summary.samples
    assert (first["durable"], first["pruned"]) == (True, False)
    _, trajectories = await run._opened.buffer.live()
    states = [row["states"] for row in said["iterations"]]
    assert sum(state.get("waiting", 0) for state in states) == sum(one.state == "waiting" for one in trajectories)
    assert said["checkpoints"] == {"1": "/checkpoints/iter-0000001"}
    page = tandem("ls", tmp_path / "run")
    assert "durable" in page
    assert f"{first['tokens']:,}" in page


async def test_show_tells_segments_weights_text_and_score(run: Run, tmp_path: Path):
    row = await run._opened.buffer.batch(0)
    assert row is not None
    name, reward, _ = row.members[0]
    said = json.loads(tandem("show", tmp_path / "run", name, "--json"))
    assert said["columns"]["state"] == "batched"
    assert said["reward"] == reward
    (segment,) = said["segments"]
    assert segment["text"] == text_of(segment["tokens"]) == "=12 and then some more"
    assert segment["versions"] == [[0, segment["count"]]]
    assert segment["logprob_mean"] == pytest.approx(-0.5)
    assert "=12 and then some more" in tandem("show", tmp_path / "run", name)
    with pytest.raises(UserError, match="has no trajectory 999-0"):
        tandem("show", tmp_path / "run", "999-0")


async def test_export_writes_every_trajectory_with_the_documented_columns(run: Run, tmp_path: Path):
    tandem("export", tmp_path / "run", "--out", tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert [(field.name, field.type) for field in table.schema] == [(name, kind) for name, kind, _ in COLUMNS]
    rows = {row["id"]: row for row in table.to_pylist()}
    _, live = await run._opened.buffer.live()
    closed = await run._opened.buffer.batch(0)
    assert closed is not None
    assert rows.keys() >= {one.id for one in live} | {name for name, _, _ in closed.members}
    generated = await run._opened.buffer.generated(rows)
    for name, row in rows.items():
        assert row["tokens"] == generated[name].tokens.tolist()
        assert len(row["tokens"]) == len(row["logprobs"]) == len(row["versions"]) == row["length"]
    assert {name: rows[name]["reward"] for name, _, _ in closed.members} == {n: r for n, r, _ in closed.members}
    tandem("export", tmp_path / "run", "--batch", "0", "--out", tmp_path / "one.parquet")
    only = pq.read_table(tmp_path / "one.parquet", columns=["batch"]).to_pylist()
    assert {row["batch"] for row in only} == {0}
    assert len(only) < len(rows)


def test_every_column_is_documented():
    text = DOCUMENT.read_text()
    for name, kind, meaning in COLUMNS:
        assert f"| `{name}` | {kind} | {meaning} |" in text


def test_a_directory_without_a_buffer_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=f"{tmp_path}: holds no buffer.sqlite"):
        tandem("ls", tmp_path)
    (tmp_path / "buffer.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be read as a replay buffer"):
        tandem("ls", tmp_path)
