# SPDX-License-Identifier: Apache-2.0
"""Two hybrid pods in bfloat16: data parallel training, and two engines that must serve the same weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import finish, manifest, metrics, start

ITERATIONS = 2
RUN_SECONDS = 1200.0
TWO_PODS = {
    "spec.iterations": ITERATIONS,
    "spec.hybrid.replicas": 2,
    "spec.model.dtype": "bfloat16",
    "spec.model.source.random.config.num_attention_heads": 2,
    "spec.model.source.random.config.num_key_value_heads": 1,
    "spec.model.source.random.config.head_dim": 64,
    "spec.model.source.random.config.initializer_range": 0.02,
    "spec.rollout.promptsPerIteration": 8,
    "spec.rollout.samplesPerPrompt": 4,
    "spec.data.warmup": None,
    "spec.data.evaluation.reasoningGym.size": 16,
    "spec.checkpoint.export": False,
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    directory = tmp_path_factory.mktemp("replicas")
    out = directory / "out"
    process = start(manifest(directory / "job.yaml", TWO_PODS), out)
    try:
        assert finish(process, out, RUN_SECONDS) == 0
        yield out, metrics(out)
    finally:
        process.kill()


pytestmark = pytest.mark.timeout(RUN_SECONDS + 60)


def test_in_bfloat16_both_engines_compute_with_the_trainers_weights(
    lines: tuple[Path, list[dict[str, Any]]],
) -> None:
    trained = [line for line in lines[1] if line["loss"] is not None]
    assert len(trained) == ITERATIONS
    assert max(line["probeDifference"] for line in trained) < 2e-2


def test_both_pods_take_part_in_every_phase(lines: tuple[Path, list[dict[str, Any]]]) -> None:
    parts = [json.loads(line) for line in (lines[0] / "timeline.jsonl").read_text().splitlines()]
    for phase in ("Start", "Release", "Train", "Handoff"):
        assert {part["index"] for part in parts if part["phase"] == phase} == {None, 0, 1}
