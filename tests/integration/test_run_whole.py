# SPDX-License-Identifier: Apache-2.0
"""One RLJob from manifest to export with real vLLM, Megatron-core and etcd, killed half-way and resumed."""

import asyncio
import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from running import finish, manifest, metrics, processes_of, start
from transformers import AutoModelForCausalLM
from waiting import DEADLINE, until

from tandem_api.environment import Job
from tandem_api.manifest import load
from tandem_api.status import JobPhase, RLJobStatus
from tandem_orchestrator.buffer import Buffer, Kind
from tandem_orchestrator.corpus import Corpus

ITERATIONS = 7
SAVED_EVERY = 3
KILLED_AFTER = 4
"""Two iterations before the next checkpoint: a fast machine has gone on a while when it is seen."""
START_SECONDS = 600.0
RUN_SECONDS = 900.0
pytestmark = pytest.mark.timeout(START_SECONDS + RUN_SECONDS + 60)
SMALL = {
    "spec.iterations": ITERATIONS,
    "spec.rollout.promptsPerIteration": 8,
    "spec.rollout.samplesPerPrompt": 4,
    "spec.data.warmup.reasoningGym.size": 1920,
    "spec.data.warmup.epochs": 1,
    "spec.data.evaluation.reasoningGym.size": 32,
    "spec.data.evaluation.everyIterations": 5,
    "spec.checkpoint.everyIterations": SAVED_EVERY,
}


@dataclass(frozen=True)
class Interrupted:
    """A run that was killed with SIGKILL and then resumed to its end.

    ``checkpoint_at_kill``: how many iterations the newest checkpoint covered then.
    """

    file: Path
    out: Path
    batches_at_kill: dict[int, str]
    checkpoint_at_kill: int
    left_running: list[int]
    status: int

    @property
    def trained_again(self) -> set[int]:
        """The iterations whose batches were complete, and which no checkpoint covered."""
        return {iteration for iteration in self.batches_at_kill if iteration >= self.checkpoint_at_kill}


def batches(out: Path) -> dict[int, str]:
    with closing(sqlite3.connect(out / "buffer.sqlite")) as db:
        return dict(db.execute("SELECT iteration, digest FROM batches").fetchall())


def checkpoint(out: Path) -> int:
    with closing(sqlite3.connect(out / "buffer.sqlite")) as db:
        return int(db.execute("SELECT max(iteration) FROM checkpoints").fetchone()[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    directory = tmp_path_factory.mktemp("run")
    file, out = manifest(directory / "job.yaml", SMALL), directory / "out"
    process = start(file, out)
    try:
        until(
            lambda: process.poll() is not None or len(metrics(out)) >= KILLED_AFTER,
            START_SECONDS,
            "the fourth iteration",
        )
        assert process.poll() is None, out.with_suffix(".log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            until(lambda: not processes_of(out), DEADLINE, "the end of every process of the killed run")
            left: list[int] = []
        except TimeoutError:
            left = processes_of(out)
        at_kill = batches(out), checkpoint(out)
        process = start(file, out, "--resume")
        status = finish(process, out, RUN_SECONDS)
        yield Interrupted(file, out, *at_kill, left, status)
    finally:
        process.kill()
        process.wait()


def test_a_killed_run_leaves_no_process_behind(run: Interrupted) -> None:
    assert run.left_running == []


def test_a_resumed_run_succeeds(run: Interrupted) -> None:
    assert run.status == 0
    status = RLJobStatus.model_validate_json((run.out / "status.json").read_text())
    assert (status.phase, status.iteration) == (JobPhase.SUCCEEDED, ITERATIONS)


def test_a_resumed_run_goes_on_from_the_checkpoint(run: Interrupted) -> None:
    starts = [
        json.loads(line) for line in (run.out / "timeline.jsonl").read_text().splitlines() if '"phase":"Start"' in line
    ]
    resumed = [line["iteration"] for line in starts if line["index"] is None]
    assert resumed == [0, run.checkpoint_at_kill]
    assert run.trained_again


def test_batches_that_were_complete_are_trained_again_and_not_generated_again(run: Interrupted) -> None:
    now = batches(run.out)
    assert set(run.batches_at_kill) <= set(now)
    assert {iteration: now[iteration] for iteration in run.batches_at_kill} == run.batches_at_kill


def test_every_iteration_is_in_the_metrics_once(run: Interrupted) -> None:
    lines = metrics(run.out)
    assert sorted(line["iteration"] for line in lines) == list(range(ITERATIONS + 1))
    for line in lines[:ITERATIONS]:
        assert line["weightVersion"] == line["iteration"]
        assert line["tokens"] > 0
        again = line["iteration"] in run.trained_again
        assert set(line["phaseSeconds"]) >= {"train", "handoff"} | (set() if again else {"rollout", "release"})
    assert lines[0]["evalAccuracy"] is not None
    assert lines[-1]["evalAccuracy"] is not None


def test_after_each_handoff_the_engine_computes_with_the_trainers_weights(run: Interrupted) -> None:
    lines = [line for line in metrics(run.out) if line["loss"] is not None]
    assert lines
    assert max(line["probeDifference"] for line in lines) < 1e-4
    assert max(line["logprobDiffMax"] for line in lines) < 1e-3


def test_the_exported_model_loads_with_transformers_and_gives_the_engines_log_probs(run: Interrupted) -> None:
    job = load(run.file)
    corpus = Corpus.read(Job("default", job.metadata.name, "uid", job.spec), run.out)
    with closing(sqlite3.connect(run.out / "buffer.sqlite")) as db:
        rows = db.execute(
            "SELECT t.id, g.prompt FROM trajectories t JOIN groups g ON g.id = t.group_id "
            "WHERE g.kind = ? AND t.oldest = ? ORDER BY t.id LIMIT 8",
            (Kind.EVALUATION, ITERATIONS),
        ).fetchall()
    assert rows, "the final weights were not evaluated"
    model = AutoModelForCausalLM.from_pretrained(run.out / "checkpoints" / "hf", dtype=torch.float32)
    buffer = Buffer(run.out / "buffer.sqlite")
    generated = asyncio.run(buffer.generated([trajectory for trajectory, _ in rows]))
    buffer.close()
    for trajectory, prompt in rows:
        response = generated[trajectory]
        before = list(corpus.prompt(Kind.EVALUATION, prompt))
        tokens = torch.tensor([before + response.tokens.tolist()])
        with torch.no_grad():
            logprobs = model(tokens).logits.log_softmax(-1)
        positions = torch.arange(len(before), tokens.shape[1])
        ours = logprobs[0, positions - 1, tokens[0, positions]]
        engines = torch.tensor(response.logprobs.tolist())
        assert (ours - engines).abs().max() < 1e-3


def test_the_report_is_one_file_without_external_requests(run: Interrupted) -> None:
    page = (run.out / "report.html").read_text()
    assert "chain-sum" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
