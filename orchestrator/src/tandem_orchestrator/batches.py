# SPDX-License-Identifier: Apache-2.0
"""Training batches and warm-up sets as they travel (:mod:`tandem_api.messages.batches`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from tandem_orchestrator.buffer.rows import Generated


@dataclass(frozen=True, slots=True)
class Sample:
    """One response with its prompt, its shaped reward and the index of its prompt within the batch."""

    prompt: Sequence[int]
    generated: Generated
    reward: float
    group: int


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a batch and the digest of its tensors."""

    content: bytes
    digest: str


def batch_body(iteration: int, samples: Sequence[Sample]) -> Body:
    """The batch of ``iteration``; the samples of a group must be neighbours. The same samples give the same digest."""
    prompts = [np.asarray(sample.prompt, np.int32) for sample in samples]
    responses = [sample.generated for sample in samples]
    tensors = _rows(prompts, [response.tokens for response in responses])
    tensors["engineLogprobs"] = _interleaved(prompts, [response.logprobs for response in responses], 0.0, np.float32)
    tensors["versions"] = _interleaved(prompts, [response.versions for response in responses], -1, np.int32)
    tensors["rewards"] = np.array([sample.reward for sample in samples], np.float32)
    tensors["groups"] = np.array([sample.group for sample in samples], np.int32)
    return _body(iteration, tensors)


def warmup_body(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Body:
    """The warm-up set: (prompt, response) tokens of each row, the loss on the responses."""
    prompts = [np.asarray(prompt, np.int32) for prompt, _ in rows]
    return _body(0, _rows(prompts, [np.asarray(response, np.int32) for _, response in rows]))


def _rows(prompts: list[np.ndarray], responses: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    pieces = [piece for pair in zip(prompts, responses, strict=True) for piece in pair]
    return {
        "tokens": np.concatenate(pieces).astype(np.int32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "promptLengths": np.array([len(prompt) for prompt in prompts], np.int32),
        "lossMask": _interleaved(prompts, [np.ones(len(response)) for response in responses], 0, np.uint8),
    }


def _interleaved(
    prompts: list[np.ndarray], values: Sequence[np.ndarray], on_prompt: float, dtype: type[np.generic]
) -> np.ndarray:
    """``values`` on the responses and ``on_prompt`` on the prompts, shape [t]."""
    return np.concatenate(
        [
            piece.astype(dtype)
            for prompt, value in zip(prompts, values, strict=True)
            for piece in (np.full(len(prompt), on_prompt), value)
        ]
    )


def _body(iteration: int, tensors: dict[str, np.ndarray]) -> Body:
    found = digest(tensors)
    return Body(save(tensors, {"iteration": str(iteration), "digest": found}), found)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        sha.update(tensor.tobytes())
    return f"sha256:{sha.hexdigest()}"
