# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: progress, time left, and the end of the log that says why it failed."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from tandem_api.status import JobPhase
from tandem_cli.local.node import ContainerExit
from tandem_cli.run.crash_loops import MOST_FAILURES, CrashLoops
from tandem_cli.run.display import display_for
from tandem_cli.run.log_end import last_lines, log_that_matters, sentence
from tandem_cli.run.view import Pace, View, clock


def shown(terminal: bool, *views: View) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with display_for(console, "job in runs/job") as display:
        for view in views:
            display.show(view)
    return out.getvalue()


def view(phase: JobPhase, iteration: int, **fields: float) -> View:
    return View(phase=phase, iteration=iteration, iterations=3, **fields)  # type: ignore[arg-type]


def test_a_log_file_gets_one_line_an_iteration_however_often_the_view_changes() -> None:
    phases = (JobPhase.ROLLOUT, JobPhase.RELEASE, JobPhase.TRAIN, JobPhase.HANDOFF)
    views = [view(phase, iteration, reward=0.5) for iteration in range(4) for phase in phases for _ in range(5)]
    lines = shown(False, view(JobPhase.STARTING, 0), *views).splitlines()
    assert len(lines) == 1 + 1 + 3
    assert [line.split("  ")[1] for line in lines[2:]] == [f"iteration {number}/3" for number in (1, 2, 3)]


def test_a_terminal_shows_what_a_person_wants_to_know() -> None:
    text = shown(
        True,
        view(
            JobPhase.ROLLOUT,
            2,
            reward=0.51,
            accuracy=0.75,
            accuracy_before=0.5,
            tokens_per_second=1234.5,
            to_train_seconds=0.25,
            to_rollout_seconds=0.5,
            phase_share=0.4,
            seconds=75,
            seconds_left=3675,
        ),
    )
    for expected in (
        "Rollout  40%",
        "iteration 2/3",
        "0.510",
        "50.0 % → 75.0 %",
        "1,234 tokens/s",
        "0.75 s",
        "1:15",
        "1:01:15 left",
    ):
        assert expected in text


def test_time_left_follows_the_pace_of_recent_iterations() -> None:
    pace = Pace()
    assert pace.left(0, 100, now=0.0) is None
    assert pace.left(0, 100, now=50.0) is None
    for iteration in range(1, 21):
        left = pace.left(iteration, 100, now=50.0 + 10 * iteration)
    assert left == pytest.approx(800)
    assert pace.left(20, 100, now=50.0 + 204) == pytest.approx(796)


def test_time_left_is_forgotten_when_a_recovery_goes_back() -> None:
    pace = Pace()
    for iteration in range(5):
        pace.left(iteration, 10, now=10.0 * iteration)
    assert pace.left(2, 10, now=60.0) is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3675, "1:01:15")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_structured_log_lines_become_sentences_and_keep_their_traceback() -> None:
    line = {"event": "the engine ended", "level": "error", "timestamp": "t", "status": 1, "exception": "Traceback\nX"}
    assert sentence(json.dumps(line)) == "the engine ended (status=1)\nTraceback\nX"
    assert sentence("plain text\n") == "plain text"
    assert sentence('{"no": "event"}') == '{"no": "event"}'


def log(directory: Path, name: str, text: str, age: int) -> Path:
    path = directory / f"{name}.log"
    path.write_text(text)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_log_that_matters_is_of_what_failed_last_else_of_an_error_else_the_newest(tmp_path: Path) -> None:
    quiet = log(tmp_path, "quiet", "all is well\n", age=0)
    assert log_that_matters(tmp_path, []) == quiet
    troubled = log(tmp_path, "troubled", "Traceback (most recent call last):\nX\n", age=10)
    assert log_that_matters(tmp_path, []) == troubled
    failed = log(tmp_path, "failed", "bye\n", age=20)
    assert log_that_matters(tmp_path, [troubled, failed]) == failed


def test_only_the_end_of_a_log_is_shown(tmp_path: Path) -> None:
    path = log(tmp_path, "long", "".join(f"line {number}\n" for number in range(100_000)), age=0)
    assert last_lines(path, 2) == ["line 99998", "line 99999"]


def end(status: int = 1, seconds: float = 1.0) -> ContainerExit:
    return ContainerExit("job-hybrid-0", "trainer", status, seconds, restarts=0, restarting=True)


def test_failures_in_a_row_right_after_the_start_are_a_crash_loop() -> None:
    loops = CrashLoops()
    for _ in range(MOST_FAILURES - 1):
        loops.note(end())
    assert loops.of("job-hybrid") is None
    loops.note(end())
    assert "container trainer of pod job-hybrid-0 failed 5 times" in str(loops.of("job-hybrid"))
    assert loops.of("job-orchestrator") is None


def test_a_container_that_ran_for_a_while_is_in_no_crash_loop() -> None:
    loops = CrashLoops()
    for seconds in [1.0] * (MOST_FAILURES - 1) + [3600.0] * MOST_FAILURES:
        loops.note(end(seconds=seconds))
    assert loops.of("job-hybrid") is None


def test_a_program_that_calls_its_input_wrong_is_believed_at_once() -> None:
    loops = CrashLoops()
    loops.note(end(status=2))
    assert loops.wrong_input
    assert "manifest or the data is wrong" in str(loops.of("job-hybrid"))
