# SPDX-License-Identifier: Apache-2.0
"""Prompts, the warm-up set and the held-out set. recipe.md describes a record."""

from typing import ClassVar

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.rules import Rule, exactly_one_of
from tandem_api.scalars import AbsolutePath, Fragment


class ReasoningGym(Contract):
    """Problems made by the package reasoning-gym, scored by its own verifiers."""

    task: str = Field(min_length=1, max_length=128, description="Name of the task, for example chain_sum.")
    size: int = Field(gt=0, le=10_000_000, description="How many problems to make.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Seed of the problems; absent: the job's seed.")
    config: Fragment = Field(default_factory=dict, description="The task's own settings, for example {max_terms: 3}.")


class PromptSource(Contract):
    """Where prompts come from: exactly one of these."""

    path: AbsolutePath | None = Field(None, description="JSONL file with one record a line.")
    reasoning_gym: ReasoningGym | None = Field(None, description="Problems made by the package reasoning-gym.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("path", "reasoningGym"),)


class Warmup(Contract):
    """Supervised fine-tuning before reinforcement learning (paper, section 2.2)."""

    path: AbsolutePath | None = Field(None, description="JSONL file of records with a response each.")
    reasoning_gym: ReasoningGym | None = Field(
        None, description="Problems made by the package reasoning-gym with their solutions."
    )
    steps_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of made solutions that show their working, for tasks whose records carry an expression; "
        "the others state the answer alone.",
    )
    epochs: int = Field(1, gt=0, le=1000, description="Passes over the set.")
    batch_size: int = Field(64, gt=0, le=65536, description="Examples an optimizer step.")
    learning_rate: float = Field(1e-5, gt=0, description="Learning rate, decayed linearly to zero.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("path", "reasoningGym"),)


class Evaluation(Contract):
    """The held-out set, answered greedily."""

    path: AbsolutePath | None = Field(None, description="JSONL file with one record a line.")
    reasoning_gym: ReasoningGym | None = Field(None, description="Problems made by the package reasoning-gym.")
    every_iterations: int = Field(
        5, gt=0, le=1_000_000, description="Evaluate before every n-th iteration, and after the last."
    )
    samples_per_prompt: int = Field(
        1, gt=0, le=64, description="Answers a prompt; 1 is greedy, more are drawn at rollout.temperature."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("path", "reasoningGym"),)


class DataSpec(Contract):
    """Prompts, the warm-up set and the held-out set."""

    prompts: tuple[PromptSource, ...] = Field(
        min_length=1, max_length=64, description="Training prompts: all sources together."
    )
    warmup: Warmup | None = Field(None, description="Supervised warm-up before reinforcement learning.")
    evaluation: Evaluation | None = Field(None, description="Held-out prompts. Never trained on.")
    skip_invalid: bool = Field(
        False,
        description="Leave out records that cannot be read, and count them in status, instead of refusing to start.",
    )
