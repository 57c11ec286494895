# SPDX-License-Identifier: Apache-2.0
"""What the demo learns, it learns from its rewards: given to the wrong samples, the same rewards teach nothing."""

from pathlib import Path

import pytest
from running import ROOT, finish, manifest, metrics, start

ITERATIONS = 4
"""The demo gains fifty points and more in as many."""
RUN_SECONDS = 1500.0
DRIFT = 0.125
"""Rewards without meaning let the policy drift, either way; half of the least gain that counts as learning."""
SHUFFLED = {
    "spec.iterations": ITERATIONS,
    "spec.data.evaluation.everyIterations": ITERATIONS,
    "spec.rewards": [{"name": "shuffled", "python": {"callable": "shuffled_reward:score"}}],
    "spec.orchestrator.env": [{"name": "PYTHONPATH", "value": str(ROOT / "bench")}],
}


@pytest.mark.timeout(RUN_SECONDS + 60)
def test_rewards_shuffled_among_samples_do_not_improve_accuracy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(manifest(tmp_path / "job.yaml", SHUFFLED), out)
    try:
        assert finish(process, out, RUN_SECONDS) == 0
    finally:
        process.kill()
    lines = metrics(out)
    before, after = lines[0]["evalAccuracy"], lines[-1]["evalAccuracy"]
    assert all(line["gradNorm"] > 0 for line in lines[:ITERATIONS])
    assert 0.1 < before < 0.6
    assert after <= before + DRIFT
