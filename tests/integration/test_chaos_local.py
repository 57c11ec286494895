# SPDX-License-Identifier: Apache-2.0
"""``tandem chaos run`` on a run of real processes: what it does, that a job recovers from it, and that it is undone."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from broken_run import Books, BrokenRun, can_confine
from fake_cluster import state_of
from runs import TANDEM
from scripted_run import scripted_run
from waiting import DEADLINE, until

from tandem_cli.chaos.local import holder_of
from tandem_cli.local.supervisor import descendants
from tandem_cli.run.command import INTERRUPTED
from tandem_cli.run.directory import RunDirectory

ITERATIONS = 10_000
"""More than there is time for, however slow the commands: the run is saved and stopped in the end."""
GROUPS = Path("/sys/fs/cgroup")

PLAN = """
faults:
  - {kind: Kill, target: {component: engine}, phase: Rollout, after: 50ms}
  - {kind: Kill, target: {component: trainer}, phase: Train}
  - {kind: SlowDown, target: {component: engine}, phase: Rollout, for: 500ms, factor: 4}
  - {kind: LoseLease, target: {component: sidecar}, phase: Rollout}
  - {kind: LoseLease, target: {component: orchestrator}, phase: Handoff}
  - {kind: CorruptSegment, target: {component: trainer}}
  - {kind: Stop, target: {component: trainer}, phase: Train, for: 500ms}
  - {kind: Kill, target: {component: etcd}, phase: Train}
"""
CONFINED = """
  - {kind: OutOfMemory, target: {component: trainer}, phase: Train}
  - {kind: Partition, target: {component: orchestrator}, phase: Train, for: 1s}
  - {kind: FillDisk, target: {component: orchestrator}, phase: Rollout, for: 1s}
"""
STOPPED_FOR_LONG = "faults: [{kind: Stop, target: {component: trainer}, phase: Train, for: 5m}]\n"
DRAWN = "{{seed: {seed}, random: {{count: 3, longest: 2s}}}}\n"
SEEDS = (1, 3, 4, 5, 10)
"""None of which ends one container again and again: a run gives up what fails five times within a minute each."""
IMPOSSIBLE = """
faults:
  - {kind: Kill, target: {component: pod, index: 1}, phase: Warmup}
"""


@dataclass
class Chaos:
    """What each call of the command came to: exit status and what it printed."""

    run: BrokenRun
    refused: subprocess.CompletedProcess[str]
    confined: subprocess.CompletedProcess[str] | None
    whole: subprocess.CompletedProcess[str]
    drawn: dict[int, subprocess.CompletedProcess[str]]
    interrupted: dict[signal.Signals, int] = field(default_factory=dict)
    stopped_after: dict[signal.Signals, int] = field(default_factory=dict)


def events(done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    """What a command printed, of one kind."""
    return [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == name]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the run's directory is in; that has a disk of its own where it can."""
    directory = tmp_path_factory.mktemp("chaos")
    (directory / "out").mkdir()
    if can_confine():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", directory / "out"], check=True)
    yield directory
    if can_confine():
        subprocess.run(["umount", directory / "out"], check=True)


@pytest.fixture(scope="module")
def chaos(directory: Path) -> Chaos:
    run = BrokenRun(directory / "job.yaml", directory / "out", ITERATIONS)
    handoff = {"verify": "Checksums"}
    with scripted_run(
        directory, run.out, iterations=ITERATIONS, handoff=handoff, runPolicy={"maxRestarts": 1000}
    ) as job:
        refused = command(directory, run.out, IMPOSSIBLE)
        interrupted = {}, {}  # type: tuple[dict[signal.Signals, int], dict[signal.Signals, int]]
        for number in (signal.SIGINT, signal.SIGKILL):
            interrupted[0][number], interrupted[1][number] = interrupt(directory, run.out, number)
        confined = None if can_confine() else command(directory, run.out, "faults:" + CONFINED)
        whole = command(directory, run.out, PLAN + (CONFINED if can_confine() else ""))
        drawn = {seed: command(directory, run.out, DRAWN.format(seed=seed)) for seed in SEEDS}
        books = Books.of(run.out)
        job.send_signal(signal.SIGTERM)
        run.status = job.wait(240)
        run.lost = books.lost(Books.of(run.out))
    print((directory / "run.log").read_text())
    for done in (whole, *drawn.values()):
        print(done.stdout, done.stderr)
    return Chaos(run, refused, confined, whole, drawn, *interrupted)


def command(directory: Path, out: Path, plan: str) -> subprocess.CompletedProcess[str]:
    (directory / "plan.yaml").write_text(plan)
    options = ("--out", out, "--patience", "240", "--json")
    return subprocess.run(
        [TANDEM, "chaos", "run", directory / "plan.yaml", *options], capture_output=True, text=True, check=False
    )


def interrupt(directory: Path, out: Path, number: signal.Signals) -> tuple[int, int]:
    """Signal the command while a trainer is stopped: its exit status, and how many stay stopped."""
    (directory / "plan.yaml").write_text(STOPPED_FOR_LONG)
    process = subprocess.Popen(
        [TANDEM, "chaos", "run", directory / "plan.yaml", "--out", out, "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any(json.loads(line)["event"] == "struck" for line in process.stdout)
    process.send_signal(number)
    return process.wait(240), left_stopped(out)


def left_stopped(out: Path) -> int:
    """The run's processes that do not go on, whoever undoes it having had time to."""
    holder = holder_of(RunDirectory(out))
    assert holder is not None
    with contextlib.suppress(TimeoutError):
        until(lambda: not stopped_below(holder), DEADLINE, "the end of the stop")
    return len(stopped_below(holder))


def stopped_below(holder: int) -> list[int]:
    return [pid for pid in descendants(holder) if state_of(pid) == "T"]


def test_the_run_goes_on_until_it_is_stopped_and_its_books_balance(chaos: Chaos) -> None:
    assert chaos.run.status == INTERRUPTED
    assert chaos.run.lost == []
    assert chaos.run.gaps() == []
    assert chaos.run.trained() == list(range(len(chaos.run.trained())))
    assert max(chaos.run.batches_of_trajectories().values()) == 1


def test_it_recovers_from_every_fault_and_says_so(chaos: Chaos) -> None:
    assert chaos.whole.returncode == 0
    (begin,) = events(chaos.whole, "begin")
    recovered = events(chaos.whole, "recovered")
    struck = events(chaos.whole, "struck")
    assert [event["fault"] for event in recovered] == begin["faults"] == [event["fault"] for event in struck]
    assert min(event["seconds"] for event in recovered) >= 0


@pytest.mark.parametrize("seed", SEEDS)
def test_it_recovers_from_whatever_is_drawn(chaos: Chaos, seed: int) -> None:
    (begin,) = events(chaos.drawn[seed], "begin")
    assert len(begin["faults"]) == 3
    assert [event["fault"] for event in events(chaos.drawn[seed], "recovered")] == begin["faults"]
    assert chaos.drawn[seed].returncode == 0


def test_weights_corrupted_on_their_way_are_refused_by_name(chaos: Chaos) -> None:
    (event,) = (one for one in events(chaos.whole, "recovered") if one["fault"]["kind"] == "CorruptSegment")
    assert event["new_world"]
    # The command may have missed the phase that says why: it is over in milliseconds.
    log = (chaos.run.out / "logs" / "scripted-orchestrator-orchestrator.log").read_text()
    assert "model.norm.weight was refused: it changed on the way" in log


def test_what_cannot_be_done_is_refused_by_name_before_anything_is(chaos: Chaos) -> None:
    assert chaos.refused.returncode == 2
    assert chaos.refused.stdout == ""
    missing, phase = chaos.refused.stderr.splitlines()
    assert missing.startswith("Kill pod 1: in Warmup: ")
    assert phase.startswith("Kill pod 1: the run has 1 hybrid pods")
    if chaos.confined is not None:
        assert chaos.confined.returncode == 2
        refused = {line.partition(" ")[0]: line for line in chaos.confined.stderr.splitlines()}
        assert "give the job a file system of its own" in refused.pop("FillDisk")
        assert refused
        assert all("takes root" in reason for reason in refused.values())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_what_was_stopped_goes_on_however_the_command_ends(chaos: Chaos, number: signal.Signals, status: int) -> None:
    assert chaos.interrupted[number] == status
    assert chaos.stopped_after[number] == 0


def test_nothing_of_it_is_left_on_the_machine(chaos: Chaos) -> None:
    assert [group for group in GROUPS.glob("**/tandem-chaos-*") if group.is_dir()] == []
    if chaos.confined is None:
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        assert "tandem-chaos" not in tables


def test_where_no_run_goes_on_there_is_nothing_to_break(chaos: Chaos, tmp_path: Path) -> None:
    done = command(tmp_path, chaos.run.out, PLAN)
    assert done.returncode == 2
    assert "no run goes on there" in done.stderr
