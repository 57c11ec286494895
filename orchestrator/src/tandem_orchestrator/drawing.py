# SPDX-License-Identifier: Apache-2.0
"""New groups for a rollout: which prompts, under which ids."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tandem_api.spec import RLJobSpec
from tandem_orchestrator.buffer import GroupRow, Kind
from tandem_orchestrator.buffer.store import Attempts
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.sampling import draw_prompts


class Drawing:
    """Draws the prompts of one iteration, none twice (:mod:`tandem_orchestrator.sampling`).

    The same job, iteration and statistics give the same draws.
    """

    def __init__(
        self, spec: RLJobSpec, corpus: Corpus, iteration: int, attempts: Mapping[str, Attempts], next_group: int
    ) -> None:
        self._spec = spec
        self._corpus = corpus
        self._iteration = iteration
        self._next_group = next_group
        self._drawn: set[int] = set()
        prompts = corpus.sets.training
        seen = [attempts.get(record.id) for record in prompts]
        self._tries = np.array([found.tries if found else 0.0 for found in seen])
        self._successes = np.array([found.successes if found else 0.0 for found in seen])

    def exclude(self, prompts: Collection[str]) -> None:
        """Draw none of these, since they are being worked on."""
        self._drawn |= {index for prompt in prompts if (index := self._corpus.sets.index(prompt)) is not None}

    def train(self, count: int) -> list[GroupRow]:
        """Up to ``count`` new training groups; fewer when the prompts run out."""
        rollout = self._spec.rollout
        indices = draw_prompts(
            self._spec.algorithm.sampling,
            tries=self._tries,
            successes=self._successes,
            difficulties=self._corpus.difficulties,
            excluded=self._drawn,
            count=count,
            least_open=rollout.prompts_per_iteration,
            seed=(self._spec.seed, self._iteration, len(self._drawn)),
            iteration=self._iteration,
        )
        self._drawn |= set(indices.tolist())
        prompts = [self._corpus.sets.training[index].id for index in indices]
        return self._groups(Kind.TRAIN, prompts, rollout.samples_per_prompt)

    def evaluation(self) -> list[GroupRow]:
        """A group for each held-out prompt."""
        evaluation = self._spec.data.evaluation
        prompts = [record.id for record in self._corpus.sets.evaluation]
        return self._groups(Kind.EVALUATION, prompts, evaluation.samples_per_prompt if evaluation else 1)

    def _groups(self, kind: Kind, prompts: Sequence[str], samples: int) -> list[GroupRow]:
        first = self._next_group
        self._next_group += len(prompts)
        return [
            GroupRow(first + number, kind, prompt, self._iteration, samples) for number, prompt in enumerate(prompts)
        ]
