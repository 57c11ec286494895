# SPDX-License-Identifier: Apache-2.0
"""Which reward scores which prompt, and the scorers of a run."""

import asyncio
from collections.abc import Iterable

from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import dotted
from tandem_api.records import Record
from tandem_api.spec.rewards import Reward, pattern_problems
from tandem_orchestrator.processors import usable_processors
from tandem_orchestrator.rewards import user_callable
from tandem_orchestrator.rewards.code import CodeScorer
from tandem_orchestrator.rewards.exact import ExactScorer
from tandem_orchestrator.rewards.judge import JudgeScorer
from tandem_orchestrator.rewards.mathematical import MathScorer
from tandem_orchestrator.rewards.reasoning import SOURCE, ReasoningGymScorer
from tandem_orchestrator.rewards.score import Score, Scorer, Unscored
from tandem_orchestrator.rewards.user_callable import PythonScorer

_MOST_PROCESSES = 8


class Scoring:
    """The scorers of a run. The first reward whose domains match a record's scores it; no domains match all.

    If that one has a weight, all that match and have one score it: their weighted values are added up, and the first
    says whether it is correct.

    Raises:
        UserError: a reward cannot work in this version or this image.
    """

    def __init__(self, rewards: tuple[Reward, ...]) -> None:
        if broken := pattern_problems(rewards):
            raise UserError(*(Problem(dotted(path), message) for path, message in broken))
        processes = max(1, min(_MOST_PROCESSES, usable_processors() // 2))
        self._rewards = rewards
        self._scorers = [_scorer(reward, f"spec.rewards[{index}]", processes) for index, reward in enumerate(rewards)]

    async def score(self, record: Record, response: str) -> Score:
        """The verdict of the record's rewards, which work at the same time.

        Raises:
            Unscored: one of them has none; see its reason, which names the reward if there are several.
        """
        chosen = self._chosen(record)
        if len(chosen) == 1 and self._rewards[chosen[0]].weight is None:
            return await self._scorers[chosen[0]].score(record, response)
        parts = await asyncio.gather(*(self._part(index, record, response) for index in chosen), return_exceptions=True)
        scores = []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            scores.append(part)
        weights = [self._rewards[index].weight or 0.0 for index in chosen]
        total = sum(weight * score.value for weight, score in zip(weights, scores, strict=True))
        return Score(total, scores[0].correct)

    async def _part(self, index: int, record: Record, response: str) -> Score:
        try:
            return await self._scorers[index].score(record, response)
        except Unscored as error:
            raise Unscored(f"{self._rewards[index].name}: {error.reason}", str(error)) from error

    def check(self, records: Iterable[Record]) -> None:
        """Refuse records that no reward could score, each domain named once.

        Raises:
            UserError: a domain matches no reward, or a record lacks what its reward needs.
        """
        problems: dict[str, Problem] = {}
        for record in records:
            domain = record.domain
            rewards = [self._rewards[index] for index in self._chosen(record)]
            if not rewards:
                problems.setdefault(
                    f"domain {domain}",
                    Problem("spec.rewards", f"no reward has domain {domain!r} of record {record.id}; add one"),
                )
                continue
            for reward in rewards:
                if missing := _missing(reward, record):
                    problems.setdefault(
                        reward.name, Problem(f"record {record.id}", f"reward {reward.name} needs {missing}")
                    )
        if problems:
            raise UserError(*problems.values())

    @property
    def sandbox(self) -> dict[str, bool]:
        """Of each guarantee of the code sandbox whether it holds here; empty without one."""
        found = next((scorer.guarantees for scorer in self._scorers if isinstance(scorer, CodeScorer)), None)
        return {each.name: each.held for each in found.each} if found else {}

    async def close(self) -> None:
        for scorer in self._scorers:
            await scorer.close()

    def _chosen(self, record: Record) -> list[int]:
        """The rewards that score a record, by index."""
        matching = [
            index for index, reward in enumerate(self._rewards) if not reward.domains or record.domain in reward.domains
        ]
        if not matching or self._rewards[matching[0]].weight is None:
            return matching[:1]
        return [index for index in matching if self._rewards[index].weight is not None]


def _scorer(reward: Reward, where: str, processes: int) -> Scorer:
    if reward.math is not None:
        return MathScorer(reward.math, processes)
    if reward.exact is not None:
        return ExactScorer(reward.exact, processes)
    if reward.reasoning_gym is not None:
        return ReasoningGymScorer(reward.reasoning_gym, processes)
    if reward.python is not None:
        user_callable.check(reward.python, f"{where}.python.callable")
        return PythonScorer(reward.python, processes)
    if reward.judge is not None:
        return JudgeScorer(reward.judge)
    if reward.code is not None:
        return CodeScorer(reward.code, f"{where}.code")
    raise AssertionError("the contract has exactly one kind set")


def _missing(reward: Reward, record: Record) -> str | None:
    """What ``reward`` needs of a record and this one does not have."""
    if (reward.math is not None or reward.exact is not None) and record.answer is None:
        return "an answer"
    if reward.code is not None and not record.tests:
        return "tests"
    if reward.reasoning_gym is not None and SOURCE not in (record.meta or {}):
        return f"meta.{SOURCE}, which problems made by reasoning-gym carry"
    return None
