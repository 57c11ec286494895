# SPDX-License-Identifier: Apache-2.0
"""A real vLLM with routed and shared experts takes their weights from shared memory, all or none."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from engine_fixture import PROBE, Engine, reference_logprobs, reference_model, running_engine
from safetensors.torch import load_file
from trainer_layouts import MODELS

from tandem_handoff import PeerRefusedError

TOLERANCE = 1e-4
LENGTH = 24
BUCKET = 2**15  # cuts through a layer's experts
# vLLM's attention on a CPU wants heads of 32 at least, and this architecture's are as wide as the model allows.
MODEL = MODELS["shared experts"] | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


@pytest.fixture(scope="module")
def engine_with_experts() -> Iterator[Engine]:
    with running_engine(**MODEL) as started:
        started.wait()
        yield started


def checkpoint(model: torch.nn.Module, directory: Path) -> list[tuple[str, torch.Tensor]]:
    """The model's tensors under the names of its checkpoint, each expert by itself."""
    model.save_pretrained(directory)
    return list(load_file(directory / "model.safetensors").items())


def assert_engine_computes(engine: Engine, model: torch.nn.Module, version: int) -> None:
    answer = engine.generate(PROBE, LENGTH)
    assert answer.versions == [str(version)] * LENGTH
    torch.testing.assert_close(answer.logprobs, reference_logprobs(model, PROBE, answer.tokens), atol=TOLERANCE, rtol=0)


def test_an_engine_with_experts_computes_what_the_model_computes(engine_with_experts: Engine, tmp_path: Path) -> None:
    for version in (1, 2):
        model = reference_model(engine_with_experts.model, seed=version)
        tensors = checkpoint(model, tmp_path / str(version))
        manifest = engine_with_experts.hand_over(version, tensors, BUCKET)
        assert_engine_computes(engine_with_experts, model, version)
        assert engine_with_experts.report()["digest"] == manifest.digest


def test_an_engine_refuses_experts_of_which_a_part_is_missing(engine_with_experts: Engine, tmp_path: Path) -> None:
    model = reference_model(engine_with_experts.model, seed=3)
    tensors = checkpoint(model, tmp_path)
    partial = [(name, tensor) for name, tensor in tensors if name != "model.layers.2.mlp.experts.5.up_proj.weight"]
    with engine_with_experts.exporter(BUCKET) as exporter, ThreadPoolExecutor(1) as pool:
        exported = pool.submit(exporter.export, 3, partial, 60.0)
        answer = engine_with_experts.update(3)
        with pytest.raises(PeerRefusedError, match=r"model\.layers\.2\.mlp\.experts.*2048 of its .* did not come"):
            exported.result()
    assert answer.status_code != httpx.codes.OK
    engine_with_experts.hand_over(4, tensors, BUCKET)
    assert_engine_computes(engine_with_experts, model, 4)
