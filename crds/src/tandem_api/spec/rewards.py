# SPDX-License-Identifier: Apache-2.0
"""How a response is scored: by the first reward whose domains match the prompt's, or by all that have a weight."""

import re
from typing import Annotated, ClassVar

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.field_paths import Place
from tandem_api.rules import Rule, exactly_one_of
from tandem_api.scalars import CALLABLE_PATTERN, LABEL_PATTERN, URL_PATTERN, Seconds, SomeBytes

Pattern = Annotated[str, Field(min_length=1, max_length=1024)]


class MathReward(Contract):
    """1 if the final answer equals the record's answer as a mathematical value (package math-verify)."""

    timeout: Seconds = Field(5.0, description="Longest time to compare one answer.")


class ExactReward(Contract):
    """1 if the answer in the response is the record's answer."""

    pattern: Pattern | None = Field(
        None,
        description="Regular expression whose first group is the answer, searched from the end; absent: all of it.",
    )


class ReasoningGymReward(Contract):
    """The score of the reasoning-gym task that made the problem."""

    pattern: Pattern | None = Field(
        None,
        description="Regular expression whose first group is the answer, searched from the end; absent: all of it.",
    )


class PythonReward(Contract):
    """A callable of yours: ``score(record: dict, response: str) -> float``."""

    callable: str = Field(
        pattern=CALLABLE_PATTERN,
        max_length=512,
        description="module:function, importable by the orchestrator.",
    )
    timeout: Seconds = Field(10.0, description="Longest time to score one response.")


class CodeReward(Contract):
    """The share of the record's tests that the program in the response passes, or 1 if all and 0 otherwise."""

    timeout: Seconds = Field(10.0, description="Longest run of one test.")
    memory: SomeBytes = Field(512 * 2**20, description="Most memory of one test.")
    partial: bool = Field(False, description="Score the share of tests passed instead of all or nothing.")


class JudgeReward(Contract):
    """A reward model behind an OpenAI-compatible URL that reasons and then gives a JSON verdict."""

    url: str = Field(pattern=URL_PATTERN, max_length=1024, description="Base URL, for example http://judge:8000/v1.")
    model: str = Field(min_length=1, max_length=256, description="Model name to ask for.")
    template: str | None = Field(
        None, max_length=16384, description="Jinja template of the question to the judge; absent: the built-in one."
    )
    timeout: Seconds = Field(120.0, description="Longest wait for one verdict.")


class Reward(Contract):
    """One way to score: exactly one of the kinds."""

    name: str = Field(pattern=LABEL_PATTERN, max_length=63, description="Unique name.")
    domains: tuple[Annotated[str, Field(max_length=128)], ...] = Field(
        (), max_length=64, description="Domains of the prompts that it scores; empty: all."
    )
    weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Rewards of a prompt that have a weight are added up, each times its weight; the first of them "
        "says what is correct. Absent: the first that matches scores alone.",
    )
    math: MathReward | None = Field(None, description="Mathematical equality.")
    exact: ExactReward | None = Field(None, description="Equality of text.")
    reasoning_gym: ReasoningGymReward | None = Field(None, description="The task's own verifier.")
    python: PythonReward | None = Field(None, description="A callable of yours.")
    code: CodeReward | None = Field(None, description="Tests run in a sandbox.")
    judge: JudgeReward | None = Field(None, description="A reward model.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one_of("math", "exact", "reasoningGym", "python", "code", "judge"),)


def pattern_problems(rewards: tuple[Reward, ...]) -> list[Place]:
    """Patterns that are no regular expressions of Python's, which no schema can say."""
    places: list[Place] = []
    for index, reward in enumerate(rewards):
        for kind, settings in (("exact", reward.exact), ("reasoningGym", reward.reasoning_gym)):
            try:
                re.compile((settings and settings.pattern) or "")
            except re.error as error:
                places.append((("spec", "rewards", index, kind, "pattern"), f"is no regular expression: {error}"))
    return places
