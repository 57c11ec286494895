# SPDX-License-Identifier: Apache-2.0
"""A real vLLM takes weights from shared memory, all or none, and then computes what the trainer's model computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from engine_fixture import (
    PROBE,
    Completion,
    Engine,
    completion,
    generate_body,
    generated_tokens,
    reference_logprobs,
    reference_model,
    weights,
)
from waiting import attempts

from tandem_handoff import Exporter, HandoffError, PeerRefusedError, Verify

Tensors = list[tuple[str, torch.Tensor]]
TOLERANCE = 1e-4
LENGTH = 24
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def assert_engine_computes(engine: Engine, model: torch.nn.Module, version: int) -> None:
    """The log-probs of what the engine says to the probe equal the model's, and it says which weights it used."""
    answer = engine.generate(PROBE, LENGTH)
    assert answer.versions == [str(version)] * LENGTH
    torch.testing.assert_close(answer.logprobs, reference_logprobs(model, PROBE, answer.tokens), atol=TOLERANCE, rtol=0)


def assert_refused(
    engine: Engine, exporter: Exporter, version: int, tensors: Iterator[tuple[str, torch.Tensor]] | Tensors
) -> str:
    """The engine refuses these tensors and is out of service; its message."""
    with ThreadPoolExecutor(1) as pool:
        exported = pool.submit(exporter.export, version, tensors, 240.0)
        answer = engine.update(version)
        with pytest.raises(HandoffError):
            exported.result(240.0)
    assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    report = engine.report()
    assert not report["in_service"]
    message: str = answer.json()["error"]["message"]
    assert report["error"].split(": ", 1)[1] in message
    assert engine.call("/finish_weight_update", {"weight_version": str(version)}).status_code != httpx.codes.OK
    return message


# In one bucket; in buckets that cut through fused layers; in buckets of one tensor each.
@pytest.mark.parametrize("bucket_bytes", [2**20, 2**15, 2**10])
@pytest.mark.parametrize("verify", list(Verify))
def test_the_engine_computes_what_the_trainer_computes(
    engine: Engine, version: int, bucket_bytes: int, verify: Verify
) -> None:
    model = reference_model(engine.model, seed=version)
    manifest = engine.hand_over(version, weights(model), bucket_bytes, verify)
    assert_engine_computes(engine, model, version)
    report = engine.report()
    assert report["in_service"]
    assert (report["version"], report["digest"], report["tensors"], report["bytes"]) == (
        version,
        manifest.digest,
        len(weights(model)),
        manifest.nbytes,
    )


def test_tensors_may_come_in_any_order(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    generator = torch.Generator().manual_seed(version)
    tensors = weights(model)
    shuffled = [tensors[index] for index in torch.randperm(len(tensors), generator=generator).tolist()]
    engine.hand_over(version, shuffled, bucket_bytes=2**14)
    assert_engine_computes(engine, model, version)


def test_a_tied_head_may_be_sent_as_well(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    embedding = model.get_input_embeddings().weight
    engine.hand_over(version, [*weights(model), ("lm_head.weight", embedding)], bucket_bytes=2**14)
    assert_engine_computes(engine, model, version)


def without(tensors: Tensors) -> Tensors:
    return [(name, tensor) for name, tensor in tensors if name != K_PROJ]


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor], tensors: Tensors) -> Tensors:
    return [(name, change(tensor)) if known == K_PROJ else (known, tensor) for known, tensor in tensors]


@pytest.mark.parametrize(
    ("change", "named", "reason"),
    [
        (without, K_PROJ, "missing"),
        (lambda tensors: replaced(K_PROJ + "s", torch.clone, tensors), K_PROJ + "s", "no such tensor"),
        (lambda tensors: [*tensors, ("model.norm.bias", torch.zeros(64))], "model.norm.bias", "no such tensor"),
        (lambda tensors: replaced(K_PROJ, lambda tensor: tensor[1:], tensors), K_PROJ, "shape"),
        (lambda tensors: replaced(K_PROJ, lambda tensor: tensor.repeat(2, 1), tensors), K_PROJ, "shape"),
        (lambda tensors: replaced(K_PROJ, lambda tensor: tensor / 0, tensors), K_PROJ, "infinity"),
    ],
    ids=["missing", "renamed", "extra", "short", "long", "not finite"],
)
def test_a_wrong_tensor_is_named_and_only_a_complete_update_brings_the_engine_back(
    engine: Engine, version: int, change: Callable[[Tensors], Tensors], named: str, reason: str
) -> None:
    wrong, right = (reference_model(engine.model, seed=seed) for seed in (1000 + version, version))
    with engine.exporter(bucket_bytes=2**14) as exporter:
        message = assert_refused(engine, exporter, version, change(weights(wrong)))
    assert repr(named) in message
    assert reason in message
    engine.hand_over(version, weights(right), bucket_bytes=2**14)
    assert_engine_computes(engine, right, version)


def test_a_bit_that_flips_in_shared_memory_is_found(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    with engine.exporter(bucket_bytes=2**20) as exporter:

        def corrupted() -> Iterator[tuple[str, torch.Tensor]]:
            offset = 0
            for name, tensor in weights(model):
                yield name, tensor
                if name == K_PROJ:  # packed by now, and not sent yet
                    segment = exporter._segments[0]
                    assert segment is not None
                    segment.tensor()[offset + 5] ^= 16
                offset += -(-tensor.nbytes // 256) * 256

        message = assert_refused(engine, exporter, version, corrupted())
    assert repr(K_PROJ) in message
    assert "checksum" in message
    engine.hand_over(version, weights(model))
    assert_engine_computes(engine, model, version)


@pytest.mark.parametrize("tensors_sent", [0, 3, 20])
def test_a_trainer_that_fails_midway_leaves_the_engine_out_of_service(
    engine: Engine, version: int, tensors_sent: int
) -> None:
    model = reference_model(engine.model, seed=version)

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        yield from weights(reference_model(engine.model, seed=2000 + version))[:tensors_sent]
        raise HandoffError("a rank was lost")

    with engine.exporter(bucket_bytes=2**12) as exporter:
        assert "a rank was lost" in assert_refused(engine, exporter, version, gather())
        with ThreadPoolExecutor(1) as pool:
            exported = pool.submit(exporter.export, version, weights(model), 240.0)
            assert engine.update(version).status_code == httpx.codes.OK
            exported.result(240.0)
    engine.finish(version)
    assert_engine_computes(engine, model, version)


def test_an_exporter_of_another_version_is_refused(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    with engine.exporter() as exporter, ThreadPoolExecutor(1) as pool:
        exported = pool.submit(exporter.export, version + 500, weights(model), 240.0)
        answer = engine.update(version)
        assert f"version {version + 500}" in answer.json()["error"]["message"]
        with pytest.raises(HandoffError):
            exported.result(240.0)
    engine.hand_over(version, weights(model))
    assert_engine_computes(engine, model, version)


def test_an_unexpected_digest_is_refused(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    info = {"version": version, "timeout": 240.0, "expected_digest": "0" * 64}
    with engine.exporter() as exporter, ThreadPoolExecutor(1) as pool:
        exported = pool.submit(exporter.export, version, weights(model), 240.0)
        engine.call("/start_weight_update").raise_for_status()
        answer = engine.call("/update_weights", {"update_info": info})
        assert f"expected {'0' * 64}" in answer.json()["error"]["message"]
        with pytest.raises(PeerRefusedError, match=r"the digest is [0-9a-f]{64}, expected 0{64}"):
            exported.result(240.0)
    engine.hand_over(version, weights(model))
    assert_engine_computes(engine, model, version)


def test_an_update_that_nobody_finishes_can_be_abandoned(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    engine.call("/start_weight_update").raise_for_status()
    assert engine.call("/start_weight_update").status_code != httpx.codes.OK
    engine.call("/collective_rpc", {"method": "handoff_abandon"}).raise_for_status()
    assert not engine.report()["in_service"]
    engine.hand_over(version, weights(model))
    assert_engine_computes(engine, model, version)


def test_an_absent_trainer_costs_no_more_than_the_deadline(engine: Engine, version: int) -> None:
    answer = engine.update(version, timeout=0.3)
    assert "0.3 s" in answer.json()["error"]["message"]
    model = reference_model(engine.model, seed=version)
    engine.hand_over(version, weights(model))
    assert_engine_computes(engine, model, version)


def paused_midway(engine: Engine, length: int) -> Completion:
    """What a request for ``length`` tokens got before the engine was paused."""
    before = generated_tokens(engine)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.call, "/inference/v1/generate", generate_body(PROBE, length))
        while generated_tokens(engine) == before and not running.done():
            continue
        engine.call("/pause?mode=abort").raise_for_status()
        return completion(running.result(240.0).json())


def test_a_pause_returns_partial_completions_that_go_on_where_they_stopped(engine: Engine, version: int) -> None:
    engine.hand_over(version, weights(reference_model(engine.model, seed=version)))
    length = 400
    whole = engine.generate(PROBE, length)
    for _ in attempts("a pause comes before the last token"):
        partial = paused_midway(engine, length)
        if partial.finish_reason == "abort":
            break
        engine.call("/resume").raise_for_status()
    assert partial.tokens == whole.tokens[: len(partial.tokens)]
    assert len(partial.logprobs) == len(partial.versions) == len(partial.tokens) < length
    engine.call("/resume").raise_for_status()
    rest = engine.generate(PROBE + partial.tokens, length - len(partial.tokens))
    assert partial.tokens + rest.tokens == whole.tokens


def test_the_exporter_hears_why_the_engine_refused(engine: Engine, version: int) -> None:
    model = reference_model(engine.model, seed=version)
    with engine.exporter() as exporter, ThreadPoolExecutor(1) as pool:
        exported = pool.submit(exporter.export, version, without(weights(model)), 240.0)
        engine.update(version)
        with pytest.raises(PeerRefusedError, match=K_PROJ):
            exported.result(240.0)
    engine.hand_over(version, weights(model))


def test_more_long_prompts_with_seeds_than_one_step_takes_are_answered(engine: Engine, version: int) -> None:
    engine.hand_over(version, weights(reference_model(engine.model, seed=version)))
    bodies = [generate_body([number, *PROBE * 50][:450], 2, temperature=1.0, seed=number) for number in range(8)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: engine.call("/inference/v1/generate", body), bodies))
    assert [len(completion(answer.raise_for_status().json()).tokens) for answer in answers] == [2] * len(bodies)
