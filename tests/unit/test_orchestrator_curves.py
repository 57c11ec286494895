# SPDX-License-Identifier: Apache-2.0
"""TensorBoard reads the event files with its own reader, and the history has the keys of a W&B run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tandem_orchestrator.curves import Curves
from tandem_orchestrator.event_files import EventFile


def line(iteration: int, reward: float | None = 0.5) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "startedAt": 1.7e9 + 10 * iteration,
        "seconds": 9.0,
        "rewardMean": reward,
        "evalAccuracy": 0.25 if iteration % 2 == 0 else None,
        "logprobDiffMax": 1e-4,
        "weightVersion": iteration,
        "phaseSeconds": {"rollout": 6.0, "train": 2.5},
        "switchSteps": {"transfer": 0.125},
    }


def read(directory: Path) -> EventAccumulator:
    reader = EventAccumulator(str(directory / "tensorboard"))
    reader.Reload()
    return reader


def history(directory: Path) -> list[dict[str, Any]]:
    text = (directory / "wandb" / "wandb-history.jsonl").read_text()
    return [json.loads(row) for row in text.splitlines()]


def test_tensorboards_reader_finds_every_curve(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for iteration in range(300):
        curves.add(line(iteration, reward=iteration / 8))
    reader = read(tmp_path)
    names = {"reward/mean", "accuracy/held_out", "logprob_difference/max", "train/weight_version", "seconds/iteration"}
    assert set(reader.Tags()["scalars"]) == names | {"seconds/rollout", "seconds/train", "switch_seconds/transfer"}
    assert [(e.step, e.value) for e in reader.Scalars("reward/mean")] == [(n, n / 8) for n in range(300)]
    assert [event.step for event in reader.Scalars("accuracy/held_out")] == list(range(0, 300, 2))
    assert reader.Scalars("reward/mean")[2].wall_time == 1.7e9 + 29


@pytest.mark.parametrize("resumed", [False, True])
def test_iterations_that_are_repeated_after_a_rollback_count_once(tmp_path: Path, resumed: bool) -> None:
    curves = Curves(tmp_path)
    for iteration in range(5):
        curves.add(line(iteration, reward=0.0))
    curves = Curves(tmp_path) if resumed else curves
    for iteration in range(3, 7):
        curves.add(line(iteration, reward=1.0))
    expected = [(step, float(step >= 3)) for step in range(7)]
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("reward/mean")] == expected
    assert [(row["_step"], row["reward/mean"]) for row in history(tmp_path)] == expected


def test_the_history_counts_its_run_time_on_when_it_is_resumed(tmp_path: Path) -> None:
    for iteration in range(3):
        Curves(tmp_path).add(line(iteration))
    assert [(row["_timestamp"], row["_runtime"]) for row in history(tmp_path)] == [
        (1.7e9 + 9, 9.0),
        (1.7e9 + 19, 19.0),
        (1.7e9 + 29, 29.0),
    ]


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    Curves(tmp_path).add(line(1, reward=None))
    assert not {"reward/mean", "accuracy/held_out"} & set(history(tmp_path)[0])
    assert "reward/mean" not in read(tmp_path).Tags()["scalars"]


def test_a_volume_without_room_loses_a_step_and_not_those_after_it(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard")
    events.add(0, {"reward/mean": 0.0}, now=1.0)
    full, link = Path("/dev/full"), next((tmp_path / "tensorboard").iterdir())
    kept = tmp_path / "kept"
    link.rename(kept)
    link.symlink_to(full)
    events.add(1, {"reward/mean": 1.0}, now=2.0)
    link.unlink()
    kept.rename(link)
    events.add(2, {"reward/mean": 2.0}, now=3.0)
    assert [event.step for event in read(tmp_path).Scalars("reward/mean")] == [0, 2]
