# SPDX-License-Identifier: Apache-2.0
"""The model that is trained."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.rules import Rule, exactly_one_of
from tandem_api.scalars import AbsolutePath, Fragment


class DType(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class HuggingFaceSource(Contract):
    """A model in Hugging Face's layout."""

    path: str = Field(
        min_length=1,
        max_length=1024,
        description="Directory with config.json, tokenizer files and safetensors as the containers see it (mount a "
        "volume with hybrid.template), or a hub id such as Qwen/Qwen3-8B where the pods may reach the hub.",
    )
    revision: str | None = Field(None, max_length=128, description="Branch, tag or commit of a hub id.")


class CheckpointSource(Contract):
    """A Megatron distributed checkpoint, such as an earlier RLJob left behind."""

    path: AbsolutePath = Field(description="Directory of the checkpoint, for example /checkpoints/iter-0000040.")
    hf: AbsolutePath = Field(description="Directory with the config.json and tokenizer that belong to it.")


class CharacterTokenizer(Contract):
    """A tokenizer with one token a character, and one a listed word."""

    characters: str = Field(min_length=1, max_length=4096, description="Each of these characters is a token.")
    words: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        (), max_length=4096, description="Whole strings that are one token each, matched before the characters."
    )


class RandomSource(Contract):
    """A model with random weights drawn from the job's seed, for tests and demonstrations."""

    config: Fragment = Field(description="The content of a Hugging Face config.json.")
    tokenizer: CharacterTokenizer = Field(description="The tokenizer made for it.")


class ModelSource(Contract):
    """Where the first weights come from: exactly one of these."""

    hf: HuggingFaceSource | None = Field(None, description="Weights in Hugging Face's layout.")
    checkpoint: CheckpointSource | None = Field(None, description="A Megatron distributed checkpoint.")
    random: RandomSource | None = Field(None, description="Random weights, for tests and demonstrations.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("hf", "checkpoint", "random"),)


class ModelSpec(Contract):
    """The model that is trained."""

    source: ModelSource = Field(description="Where the first weights come from.")
    dtype: DType = Field(DType.BFLOAT16, description="Precision of weights and activations in engine and trainer.")
