# SPDX-License-Identifier: Apache-2.0
"""What comes out of a rollout: the members and shaped rewards of a batch, and the result of an evaluation. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from tandem_api.messages.work import Finish
from tandem_api.spec.algorithm import LengthPenalty, RolloutSpec
from tandem_orchestrator.buffer import State, TrajectoryRow
from tandem_orchestrator.buffer.store import Attempts
from tandem_orchestrator.groups import Group
from tandem_orchestrator.length_penalty import length_rewards
from tandem_orchestrator.sampling import discounted


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """A closed batch in numbers. ``tokens`` and lengths count generated tokens.

    ``reward_mean`` is of the scores before shaping, ``accuracy_mean`` of correct responses, ``age_max`` the age in
    weight versions of the oldest token. ``unscored`` counts samples that were left out, by reason.
    """

    iteration: int
    groups: int
    samples: int
    tokens: int
    reward_mean: float
    shaped_reward_mean: float
    accuracy_mean: float
    response_tokens_mean: float
    response_tokens_max: int
    age_max: int
    finishes: dict[str, int]
    unscored: dict[str, int]

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "BatchSummary":
        return BatchSummary(**json.loads(text))


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Accuracy on the held-out set, of the responses that could be scored."""

    iteration: int
    accuracy: float | None
    scored: int
    unscored: int
    response_tokens_mean: float

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "EvaluationResult":
        return EvaluationResult(**json.loads(text))


type Members = tuple[tuple[str, float, int], ...]


def shaped(groups: Sequence[Group], rollout: RolloutSpec, penalty: LengthPenalty | None, iteration: int) -> Members:
    """(trajectory, shaped reward, index of its group) of every scored sample, group by group.

    The score, less the penalty on repetition, plus the length reward (section 2.3.3) once its warm-up is over.
    """
    weight = penalty.weight if penalty is not None and iteration >= penalty.warmup_iterations else 0.0
    repetition = rollout.repetition.penalty if rollout.repetition else 0.0
    members: list[tuple[str, float, int]] = []
    for index, group in enumerate(groups):
        samples = group.scored
        lengths = length_rewards([t.length for t in samples], [t.correct for t in samples])
        for sample, length_reward in zip(samples, lengths, strict=True):
            repeated = repetition if sample.finish is Finish.REPETITION else 0.0
            members.append((sample.id, (sample.score or 0.0) - repeated + weight * length_reward, index))
    return tuple(members)


def summary(iteration: int, weight_version: int, groups: Sequence[Group], members: Members) -> BatchSummary:
    """The batch of these groups in numbers; it has at least one sample."""
    samples = [sample for group in groups for sample in group.scored]
    lengths = [sample.length for sample in samples]
    oldest = min((sample.oldest for sample in samples if sample.oldest is not None), default=weight_version)
    return BatchSummary(
        iteration,
        len(groups),
        len(samples),
        sum(lengths),
        _mean([sample.score or 0.0 for sample in samples]),
        _mean([reward for _, reward, _ in members]),
        _mean([sample.correct for sample in samples]),
        _mean(lengths),
        max(lengths),
        weight_version - oldest,
        dict(Counter(str(sample.finish) for sample in samples)),
        unscored(groups),
    )


def unscored(groups: Iterable[Group]) -> dict[str, int]:
    """Samples without a score, by reason."""
    return dict(
        Counter(
            sample.error or "unknown"
            for group in groups
            for sample in group.trajectories.values()
            if sample.state is State.DROPPED
        )
    )


def evaluation(iteration: int, groups: Sequence[Group]) -> EvaluationResult:
    """The result of the held-out groups, all settled."""
    scored = [sample for group in groups for sample in group.scored]
    missing = sum(len(group.trajectories) for group in groups) - len(scored)
    accuracy = _mean([sample.correct for sample in scored]) if scored else None
    return EvaluationResult(iteration, accuracy, len(scored), missing, _mean([sample.length for sample in scored]))


def renewed_attempts(groups: Sequence[Group], before: Mapping[str, Attempts]) -> dict[str, tuple[float, float]]:
    """(tries, successes) of the prompts of these groups, with what the groups add."""
    attempts: dict[str, tuple[float, float]] = {}
    for group in groups:
        prompt = group.row.prompt
        earlier = before.get(prompt, Attempts(0.0, 0.0, 0))
        tries, successes = attempts.get(prompt, (earlier.tries, earlier.successes))
        samples: list[TrajectoryRow] = group.scored
        attempts[prompt] = discounted(tries, successes, len(samples), sum(sample.correct for sample in samples))
    return attempts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
