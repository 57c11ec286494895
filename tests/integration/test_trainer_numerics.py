# SPDX-License-Identifier: Apache-2.0
"""Megatron's numbers against plain transformers' and against themselves, all from one process of trainer_numerics."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trainer_numerics

FAMILIES = tuple(trainer_numerics.FAMILIES)
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, trainer_numerics.__file__, str(tmp_path_factory.mktemp("numerics"))]
    environment = {"PYTHONPATH": str(Path(trainer_numerics.__file__).parent), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_transformers(found: dict[str, Any], family: str) -> None:
    assert found["families"][family]["logprobDifference"] < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_back_from_megatron_bit_for_bit(found: dict[str, Any], family: str) -> None:
    assert found["families"][family]["sameTensors"]
    assert found["families"][family]["changed"] == []
    assert found["families"][family]["loads"]


def test_loss_and_gradient_do_not_depend_on_microbatches(found: dict[str, Any]) -> None:
    cuts = found["microbatches"]
    assert len({cut["pieces"] for cut in cuts}) == len(cuts)
    assert [cut["loss"] for cut in cuts] == pytest.approx([cuts[0]["loss"]] * len(cuts), rel=1e-6)
    assert max(cut["gradientDifference"] for cut in cuts) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reset_optimizer_equals_a_new_one(found: dict[str, Any], dtype: str) -> None:
    assert found["reset"][dtype] == 0.0


def test_a_reset_keeps_what_bfloat16_weights_cannot_tell(found: dict[str, Any]) -> None:
    assert found["masters"]["belowPrecision"] > 0.0
    assert found["masters"]["lostByReset"] == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_new_policy_resumes_from_a_checkpoint_to_the_digit(found: dict[str, Any], dtype: str) -> None:
    assert found["resume"][dtype] == {"counters": [1, 1], "sameMeasured": True, "weightDifference": 0.0}


@pytest.mark.parametrize(
    "model", ["qwen3-tied torch.float32", "qwen3-tied torch.bfloat16", "qwen3-experts torch.bfloat16"]
)
def test_a_policy_that_leaves_its_device_and_comes_back_learns_the_same_to_the_bit(
    found: dict[str, Any], model: str
) -> None:
    offload = found["offload"][model]
    for with_weights, without in offload["away"]:
        assert with_weights["weights"] == offload["of"]["weights"]
        assert with_weights["gradients"] == with_weights["moments"] == 0
        assert without == {"weights": 0, "gradients": 0, "moments": 0}
    assert min(offload["of"].values()) > 0
    assert offload["same"] == [True] * 3
    assert offload["weightDifference"] == offload["mastersDifference"] == 0.0


@pytest.mark.parametrize("field", trainer_numerics.UNSUPPORTED)
def test_a_model_that_cannot_be_served_is_refused_by_the_field_of_its_config(found: dict[str, Any], field: str) -> None:
    assert f"config.json: {field}" in found["unsupported"][field]


@pytest.mark.parametrize("size", ["tensor", "context", "expert"])
def test_a_layout_that_cannot_be_had_is_refused(found: dict[str, Any], size: str) -> None:
    assert "spec.trainer.parallelism" in found["layouts"][size]
    assert size in found["layouts"][size]


def test_log_probs_are_those_of_the_sampling_temperature(found: dict[str, Any]) -> None:
    assert found["temperature"] < 1e-4


def test_the_comparison_with_the_engine_is_zero_if_it_is_right_and_the_shift_if_it_is_not(
    found: dict[str, Any],
) -> None:
    assert found["reference"]["exactMax"] < 1e-4
    assert found["reference"]["offMean"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3-tied", trainer_numerics.EXPERTS])
def test_what_is_recomputed_is_not_kept_and_gives_the_same_gradient(found: dict[str, Any], family: str) -> None:
    nothing, selective, full = (found["recompute"][family][kind] for kind in ("None", "Selective", "Full"))
    assert nothing["norm"] > 0
    assert selective["difference"] == full["difference"] == 0
    assert full["kept"] < selective["kept"] < nothing["kept"]
