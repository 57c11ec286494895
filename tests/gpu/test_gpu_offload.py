# SPDX-License-Identifier: Apache-2.0
"""A trainer leaves the device to the engine and comes back, through pinned memory at the speed of the bus."""

import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem_handoff.bench import measure

MIB = 2**20
ROUNDS = 5


def test_the_bench_measures_the_bus_and_every_step(device: torch.device) -> None:
    steps = {step.name: step for step in measure(device, 1024 * MIB, 256 * MIB, 3)}
    for step in steps.values():
        print(f"{step.name:50} {1e3 * step.seconds:9.2f} ms {step.rate or 0:9.1f} GB/s  {step.of_limit or 0:.2f}")
    assert {"off the device into pinned memory", "back from pinned memory"} <= steps.keys()


def seconds(action: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    action()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def shares_of_the_bus(policy: Any, device: torch.device) -> tuple[float, float]:
    """How fast a policy leaves and comes back, each as a share of one copy of as much to or from pinned memory."""
    from tandem_trainer.megatron_fixes import parts

    moved = [buffer.param_data for chunk in policy.chunks for buffer in chunk.buffers]
    for part in parts(policy.optimizer):
        for parameter, state in part.optimizer.state.items():
            moved += [tensor for tensor in (parameter, *state.values()) if tensor.is_cuda]
    there = torch.empty(sum(tensor.nbytes for tensor in moved), dtype=torch.uint8, device=device)
    here = torch.empty_like(there, device="cpu", pin_memory=True)
    shares = []
    for _ in range(ROUNDS):
        out, leaving = seconds(lambda: here.copy_(there), device), seconds(lambda: policy.offload(weights=True), device)
        back, coming = seconds(lambda: there.copy_(here), device), seconds(policy.onload, device)
        shares.append((out / leaving, back / coming))
    print(f"{len(here) / 1e9:.2f} GB leave at {len(here) / leaving / 1e9:.1f} GB/s and come back at "
          f"{len(here) / coming / 1e9:.1f}")  # fmt: skip
    leaves, returns = (statistics.median(share) for share in zip(*shares, strict=True))
    return leaves, returns


def test_a_policy_that_left_the_device_comes_back_with_the_same_weights(tmp_path: Path, device: torch.device) -> None:
    pytest.importorskip("megatron.core", reason="Megatron-core is not installed here")
    from transformers import AutoConfig

    from tandem_api.model_source import materialise
    from tandem_api.spec.hybrid import Optimizer, Parallelism
    from tandem_api.spec.model import CharacterTokenizer, DType, RandomSource
    from tandem_trainer import parallel
    from tandem_trainer.device import activate
    from tandem_trainer.microbatch import probe
    from tandem_trainer.policy import Policy
    from tandem_trainer.weights import SeededWeights

    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 512}
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6} | sizes | heads
    source = RandomSource(config=config, tokenizer=CharacterTokenizer(characters="0123456789"))
    model = materialise(source, tmp_path / "model", DType.BFLOAT16)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with activate(0) as place:
        layout = parallel.join(place, Parallelism(), 1, timedelta(minutes=5))
        hf_config = AutoConfig.from_pretrained(model)
        policy = Policy(hf_config, torch.bfloat16, layout, place, Optimizer())
        policy.load(SeededWeights(hf_config, 1))
        policy.run(
            [probe([3 + place % 8 for place in range(400)], device)],
            lambda _, scores: (scores.sum(), {}),
            forward_only=False,
        )
        policy.update(1e-6)
        before = {name: tensor.cpu().clone() for name, tensor in policy.full_weights()}
        held = torch.cuda.memory_allocated(device)
        policy.offload(weights=True)
        left, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        policy.onload()
        after = {name: tensor.cpu() for name, tensor in policy.full_weights()}
        leaves, returns = shares_of_the_bus(policy, device)
        parallel.leave()
    print(f"which is {leaves:.2f} and {returns:.2f} of one copy, medians of {ROUNDS}")
    print(f"on the device {held / MIB:.0f} MiB, off it {left / MIB:.0f} MiB in {reserved / MIB:.0f}")
    assert left < 0.05 * held
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
