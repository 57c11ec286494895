# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl and timeline.jsonl survive a crash and count a repeated iteration once."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structlog.testing import capture_logs

from tandem_orchestrator.metrics_log import JsonLines


def lines_of(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_iteration_that_is_repeated_replaces_its_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, key="iteration")
    for iteration, loss in ((0, 5), (1, 4), (2, 3)):
        log.write({"iteration": iteration, "loss": loss})
    again = JsonLines(path, key="iteration")
    again.write({"iteration": 1, "loss": 9})
    again.write({"iteration": 3, "loss": 2})
    assert [(line["iteration"], line["loss"]) for line in lines_of(path)] == [(0, 5), (1, 9), (2, 3), (3, 2)]
    assert again.lines == lines_of(path)


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path):
    path = tmp_path / "timeline.jsonl"
    JsonLines(path).write({"epoch": 1})
    with path.open("a") as file:
        file.write('{"epoch": 2, "ph')
    JsonLines(path).write({"epoch": 3})
    assert lines_of(path) == [{"epoch": 1}, {"epoch": 3}]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can be larger than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_without_room_are_written_when_there_is_some(tmp_path: Path):
    timeline, metrics = JsonLines(tmp_path / "timeline.jsonl"), JsonLines(tmp_path / "metrics.jsonl", key="iteration")
    with capture_logs(), room_for(36):
        for epoch in range(4):
            timeline.write({"epoch": epoch})
            metrics.write({"iteration": epoch})
        metrics.write({"iteration": 1, "loss": 0.5})
        assert lines_of(tmp_path / "timeline.jsonl") == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
        assert not list(tmp_path.glob(".*"))
    timeline.write({"epoch": 4})
    metrics.write({"iteration": 4})
    assert [line["epoch"] for line in lines_of(tmp_path / "timeline.jsonl")] == [0, 1, 2, 3, 4]
    assert lines_of(tmp_path / "metrics.jsonl") == metrics.lines
    assert [line["iteration"] for line in metrics.lines] == [0, 1, 2, 3, 4]
