# SPDX-License-Identifier: Apache-2.0
"""A run's curves for the tools that researchers have: TensorBoard, and Weights & Biases (docs/curves.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tandem_orchestrator.event_files import EventFile
from tandem_orchestrator.metrics_log import JsonLines

_NAMES = {
    "rewardMean": "reward/mean",
    "accuracyMean": "accuracy/batch",
    "evalAccuracy": "accuracy/held_out",
    "responseTokensMean": "response_tokens/mean",
    "responseTokensMax": "response_tokens/max",
    "loss": "train/loss",
    "gradNorm": "train/gradient_norm",
    "learningRate": "train/learning_rate",
    "weightVersion": "train/weight_version",
    "logprobDiffMean": "logprob_difference/mean",
    "logprobDiffMax": "logprob_difference/max",
    "probeDifference": "logprob_difference/probe",
    "tokens": "throughput/tokens",
    "tokensPerSecond": "throughput/tokens_per_second",
    "seconds": "seconds/iteration",
}


class Curves:
    """``tensorboard/`` and ``wandb/wandb-history.jsonl`` in a run's directory, one step an iteration.

    An iteration that is repeated after a rollback counts once in both.
    """

    def __init__(self, directory: Path) -> None:
        self._events = EventFile(directory / "tensorboard")
        self._history = JsonLines(directory / "wandb" / "wandb-history.jsonl", key="_step")

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        step, now = int(line["iteration"]), float(line["startedAt"]) + float(line["seconds"])
        numbers = dict(scalars(line))
        self._events.add(step, numbers, now)
        lines = self._history.lines
        began = min(float(lines[0]["_timestamp"]) - float(lines[0]["_runtime"]) if lines else now, line["startedAt"])
        self._history.write({"_step": step, "_timestamp": now, "_runtime": now - began, **numbers})


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of what an iteration measured; what it did not measure is left out."""
    for key, name in _NAMES.items():
        if line.get(key) is not None:
            yield name, float(line[key])
    for group, key in (("seconds", "phaseSeconds"), ("switch_seconds", "switchSteps")):
        for name, seconds in (line.get(key) or {}).items():
            yield f"{group}/{name}", float(seconds)
