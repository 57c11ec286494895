# SPDX-License-Identifier: Apache-2.0
"""The batch of an iteration as it comes from the orchestrator, read and checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tandem_api.messages.batches import BATCH_TENSORS, WARMUP_TENSORS

_DTYPES = {
    "tokens": torch.int32,
    "offsets": torch.int64,
    "promptLengths": torch.int32,
    "lossMask": torch.uint8,
    "engineLogprobs": torch.float32,
    "versions": torch.int32,
    "rewards": torch.float32,
    "groups": torch.int32,
}
_PER_TOKEN = ("lossMask", "engineLogprobs", "versions")
_PER_SAMPLE = ("promptLengths", "rewards", "groups")


class MalformedBatch(ValueError):
    """The batch is not what :mod:`tandem_api.messages.batches` describes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """n samples of t tokens in all; fields as in :mod:`tandem_api.messages.batches`."""

    tokens: Tensor
    offsets: Tensor
    loss_mask: Tensor
    engine_log_probs: Tensor
    versions: Tensor
    rewards: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sample, int64 [n]."""
        return self.offsets.diff()

    @staticmethod
    def parse(body: bytes, iteration: int | None) -> "Batch":
        """Read the training batch of ``iteration``, or a warm-up set (None), which has neither rewards nor groups:
        then rewards are zero and every sample is a group of its own.

        Raises:
            MalformedBatch: it is another iteration's, or a tensor is missing, misshapen, or contradicts another.
        """
        try:
            tensors = safetensors.torch.load(body)
        except SafetensorError as error:
            raise MalformedBatch(f"batch: is not safetensors: {error}") from error
        if iteration is not None and (found := _metadata(body).get("iteration")) != str(iteration):
            raise MalformedBatch(f"batch: is that of iteration {found}, expected iteration {iteration}")
        _require(tensors, WARMUP_TENSORS if iteration is None else BATCH_TENSORS)
        offsets, tokens = tensors["offsets"], tensors["tokens"].long()
        samples = len(offsets) - 1
        _check(tensors, samples, len(tokens))
        return Batch(
            tokens,
            offsets,
            tensors["lossMask"].float(),
            tensors.get("engineLogprobs", torch.zeros(len(tokens))),
            tensors.get("versions", torch.zeros(len(tokens), dtype=torch.int32)),
            tensors.get("rewards", torch.zeros(samples)),
            tensors.get("groups", torch.arange(samples)).long(),
        )

    def without_stale_tokens(self, version: int) -> "Batch":
        """The same samples, with tokens that older weights wrote taken out of the loss (``excludeStaleSegments``)."""
        mask = self.loss_mask * (self.versions == version)
        return Batch(self.tokens, self.offsets, mask, self.engine_log_probs, self.versions, self.rewards, self.groups)

    def tokens_in_loss(self) -> Tensor:
        """How many tokens of each sample count, float32 [n]."""
        counts = torch.zeros(len(self))
        return counts.index_add(0, torch.repeat_interleave(self.lengths), self.loss_mask)

    def minibatches(self, prompts: int | None, generator: torch.Generator) -> Iterator[Tensor]:
        """Sample indices of each optimizer step: ``prompts`` whole groups at a time, in random order.

        The order is drawn since samples come in the order they were finished: short ones first.
        """
        ids, members = torch.unique(self.groups, return_inverse=True)
        order = torch.randperm(len(ids), generator=generator)
        for chosen in order.split(prompts or len(ids)):
            yield torch.isin(members, chosen).nonzero().squeeze(1)


def _metadata(body: bytes) -> dict[str, str]:
    """What a safetensors header says besides its tensors."""
    end = 8 + int.from_bytes(body[:8], "little")
    metadata: dict[str, str] = json.loads(body[8:end]).get("__metadata__", {})
    return metadata


def _require(tensors: dict[str, Tensor], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in tensors:
            raise MalformedBatch(f"batch: tensor {name} is missing; found {', '.join(sorted(tensors))}")
        if tensors[name].dtype != _DTYPES[name]:
            raise MalformedBatch(f"batch: tensor {name} is {tensors[name].dtype}, expected {_DTYPES[name]}")


def _check(tensors: dict[str, Tensor], samples: int, tokens: int) -> None:
    offsets = tensors["offsets"]
    if samples < 1 or offsets[0] != 0 or offsets[-1] != tokens or not bool((offsets.diff() > 1).all()):
        raise MalformedBatch(f"batch: offsets must cut {tokens} tokens into samples of at least two tokens each")
    wanted = dict.fromkeys(_PER_TOKEN, tokens) | dict.fromkeys(_PER_SAMPLE, samples)
    for name, length in wanted.items():
        if name in tensors and tensors[name].shape != (length,):
            raise MalformedBatch(f"batch: tensor {name} has shape {list(tensors[name].shape)}, expected [{length}]")
    first = torch.zeros(tokens, dtype=torch.bool)
    first[offsets[:-1]] = True
    if bool(tensors["lossMask"][first].any()):
        raise MalformedBatch("batch: lossMask is set on a sample's first token, which nothing comes before")
    for name in ("engineLogprobs", "rewards"):
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise MalformedBatch(f"batch: tensor {name} holds a value that is not finite")
