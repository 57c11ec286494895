# SPDX-License-Identifier: Apache-2.0
"""Programming problems whose tests are to be made, and the decisions about them (paper, section 2.3.5). Pure."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from tandem_api.base import Contract
from tandem_api.errors import Problem
from tandem_api.records import ChatMessage, Record, TestCase
from tandem_api.scalars import Fragment


class CodeProblem(Contract):
    """One line of the input: a prompt, a program that makes inputs, and programs that should solve it."""

    id: str = Field(min_length=1, max_length=256, description="Unique name.")
    domain: str = Field("code", min_length=1, max_length=128, description="Domain of the record that is made.")
    prompt: str | None = Field(None, min_length=1, description="What the model is asked. Either this or messages.")
    messages: tuple[ChatMessage, ...] | None = Field(None, min_length=1, description="A conversation instead.")
    generator: str = Field(
        min_length=1,
        description="Python: prints one input; cyaron is there, and random is seeded differently each time.",
    )
    submissions: tuple[str, ...] = Field((), description="Python programs that were handed in as solutions.")
    difficulty: float | None = Field(None, allow_inf_nan=False, description="Passed on.")
    meta: Fragment = Field(default_factory=dict, description="Passed on.")


@dataclass(frozen=True, slots=True)
class Rules:
    """The paper's filters.

    Of ``cases`` inputs, one is kept if at least ``agree`` of ``submissions`` programs print the same for it. A problem
    is kept if at least ``least_cases`` are, and at least ``passing`` of the programs pass all of those.
    """

    cases: int = 50
    submissions: int = 10
    agree: int = 7
    passing: int = 9
    least_cases: int = 40


@dataclass(frozen=True, slots=True)
class Ran:
    """What the submissions printed for one input, in their order; ``None`` for one that did not end well."""

    given: str
    printed: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a problem. ``reason`` is why it is dropped, in words to count by, and ``detail`` the figures."""

    id: str
    tests: tuple[TestCase, ...] = ()
    reason: str | None = None
    detail: str = ""


def read_problems(path: Path) -> tuple[list[CodeProblem], list[Problem]]:
    """The problems of a JSON Lines file, and what is wrong with lines that hold none.

    Raises:
        OSError: the file cannot be read.
    """
    found: dict[str, CodeProblem] = {}
    wrong: list[Problem] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                problem = CodeProblem.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                wrong.append(Problem(where, f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")))
                continue
            if problem.id in found:
                wrong.append(Problem(where, f"id {problem.id!r} is that of an earlier line too; ids are unique"))
            elif (problem.prompt is None) == (problem.messages is None):
                wrong.append(Problem(where, "set exactly one of prompt and messages"))
            else:
                found[problem.id] = problem
    return list(found.values()), wrong


def drawn(problem: CodeProblem, rules: Rules, seed: int) -> tuple[str, ...] | None:
    """The submissions that are asked, the same for the same seed; ``None`` if there are too few."""
    if len(problem.submissions) < rules.submissions:
        return None
    return tuple(random.Random(f"{seed}/{problem.id}").sample(problem.submissions, rules.submissions))


def judge(problem: CodeProblem, ran: Sequence[Ran], rules: Rules) -> Judged:
    """Keep the inputs on whose output the submissions agree, then the problem if enough submissions pass them all."""
    agreed = [(one, right) for one in ran if (right := agreement(one.printed, rules.agree)) is not None]
    if len(agreed) < rules.least_cases:
        detail = f"the programs agree on {len(agreed)} of {len(ran)} inputs; {rules.least_cases} are needed"
        return Judged(problem.id, reason="too few inputs on whose output programs agree", detail=detail)
    passing = sum(
        all(one.printed[number] == right for one, right in agreed) for number in range(len(agreed[0][0].printed))
    )
    if passing < rules.passing:
        detail = f"{passing} of {rules.submissions} programs pass all {len(agreed)} tests; {rules.passing} are needed"
        return Judged(problem.id, reason="too few programs pass all tests", detail=detail)
    return Judged(problem.id, tuple(TestCase(input=one.given, output=right) for one, right in agreed))


def agreement(printed: Sequence[str | None], least: int) -> str | None:
    """What at least ``least`` programs printed, if they agree so far."""
    counted = Counter(text for text in printed if text is not None)
    text, count = next(iter(counted.most_common(1)), (None, 0))
    return text if count >= least else None


def record(problem: CodeProblem, judged: Judged) -> Record:
    """The record of a problem that is kept."""
    return Record(
        id=problem.id,
        domain=problem.domain,
        prompt=problem.prompt,
        messages=problem.messages,
        tests=judged.tests,
        difficulty=problem.difficulty,
        meta=problem.meta,
    )
