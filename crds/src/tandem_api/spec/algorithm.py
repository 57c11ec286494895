# SPDX-License-Identifier: Apache-2.0
"""Rollouts, the objective, and how prompts are sampled (recipe.md)."""

from typing import ClassVar

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.rules import Rule, exactly_one_of


class Repetition(Contract):
    """A response that repeats itself is cut."""

    ngram: int = Field(64, gt=0, le=4096, description="Longest repeated piece, in tokens.")
    times: int = Field(
        8, gt=1, le=1024, description="Such pieces in a row that end the response; shorter ones fill as many tokens."
    )
    penalty: float = Field(0.0, ge=0, description="Taken off the reward of a response cut for repetition.")


class RolloutSpec(Contract):
    """What is generated in an iteration."""

    prompts_per_iteration: int = Field(64, gt=0, le=65536, description="Prompts of a training batch.")
    samples_per_prompt: int = Field(
        8, ge=2, le=1024, description="Responses a prompt; at least 2, since their mean is the baseline."
    )
    max_tokens: int = Field(2048, gt=0, le=2**31 - 1, description="Longest response, in tokens.")
    token_budget: int | None = Field(
        None,
        gt=0,
        le=2**31 - 1,
        description="New tokens a trajectory gets in one iteration; what is unfinished goes on in the next (partial "
        "rollouts, section 2.6.2). Absent: every response is finished in its iteration.",
    )
    overlap_iterations: int = Field(
        4,
        ge=0,
        le=1_000_000,
        description="Age in iterations of the oldest segment that a batch may contain (partial rollouts).",
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 keeps every token.")
    repetition: Repetition | None = Field(None, description="Cut responses that repeat themselves.")


class MirrorDescent(Contract):
    """Online policy mirror descent (section 2.3.2)."""

    tau: float = Field(0.1, gt=0, description="Weight of the squared log-ratio to the iteration's first policy.")
    epochs: int = Field(1, gt=0, le=64, description="Passes over an iteration's batch.")
    batch_prompts: int | None = Field(
        None, gt=0, le=65536, description="Prompts an optimizer step; absent: all of the iteration's in one step."
    )
    exclude_stale_segments: bool = Field(
        False, description="Leave tokens that older weights wrote out of the loss (partial rollouts)."
    )


class LengthPenalty(Contract):
    """Shorter correct answers are worth more (section 2.3.3)."""

    weight: float = Field(0.5, ge=0, description="Factor of the length reward.")
    warmup_iterations: int = Field(10, ge=0, le=1_000_000, description="Iterations without it at the start.")


class Curriculum(Contract):
    """Easy prompts first (section 2.3.4)."""

    iterations: int = Field(gt=0, le=1_000_000, description="Iterations until all prompts are open.")
    initial_fraction: float = Field(0.3, gt=0, le=1, description="Share of the easiest prompts to start with.")


class PromptSampling(Contract):
    """Which prompts are drawn."""

    curriculum: Curriculum | None = Field(None, description="Start with easy prompts, by difficulty or pass rate.")
    prioritized: bool = Field(True, description="Draw a prompt with probability proportional to 1 - its success rate.")


class AlgorithmSpec(Contract):
    """The objective: exactly one, and what shapes its rewards and prompts."""

    mirror_descent: MirrorDescent | None = Field(None, description="Online policy mirror descent.")
    length_penalty: LengthPenalty | None = Field(None, description="Reward shorter correct answers; absent: off.")
    sampling: PromptSampling = Field(default_factory=PromptSampling, description="Which prompts are drawn.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("mirrorDescent"),)
