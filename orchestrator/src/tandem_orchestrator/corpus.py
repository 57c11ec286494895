# SPDX-License-Identifier: Apache-2.0
"""What a run is about: its prompt sets, its tokenizer, its rewards, all checked before anything is started."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import structlog

from tandem_api.environment import Job
from tandem_api.errors import Problem, UserError
from tandem_api.model_source import model_directory
from tandem_api.records import Record
from tandem_orchestrator.batches import Body, warmup_body
from tandem_orchestrator.buffer import Kind
from tandem_orchestrator.prompts import PromptSets, read_prompt_sets
from tandem_orchestrator.rewards.scoring import Scoring
from tandem_orchestrator.tokenizer import Tokenizer

log = structlog.get_logger()

_TOGETHER = 1024
_CACHED_PROMPTS = 16384


class Corpus:
    """Prompts as tokens, and tokens as text.

    Invariant: every prompt of ``sets`` leaves room for at least one token of response.
    """

    def __init__(self, job: Job, sets: PromptSets, tokenizer: Tokenizer, scoring: Scoring) -> None:
        self.sets = sets
        self.tokenizer = tokenizer
        self.scoring = scoring
        self.difficulties = np.array(
            [np.nan if record.difficulty is None else record.difficulty for record in sets.training]
        )
        self._most = job.spec.engine.max_model_len
        self._response = job.spec.rollout.max_tokens
        self.prompt = lru_cache(_CACHED_PROMPTS)(self._prompt)

    @staticmethod
    def read(job: Job, scratch: Path) -> "Corpus":
        """Read everything that ``job`` names; ``scratch`` takes the directory of a made model.

        Raises:
            UserError: anything of it is wrong, with every problem found.
            TryAgain: the model's tokenizer is on the hub, which cannot be reached.
        """
        spec = job.spec
        tokenizer = Tokenizer(model_directory(spec.model, scratch))
        scoring = Scoring(spec.rewards)
        sets = read_prompt_sets(spec.data, spec.seed)
        fitting = PromptSets(
            list(_fitting(tokenizer, sets.training, job)),
            list(_fitting(tokenizer, sets.evaluation, job)),
            sets.warmup,
            sets.skipped,
            sets.duplicates,
            sets.held_out,
        )
        fitting.skipped += len(sets.training) + len(sets.evaluation) - len(fitting.training) - len(fitting.evaluation)
        scoring.check((*fitting.training, *fitting.evaluation))
        if (found := len(fitting.training)) < spec.rollout.prompts_per_iteration:
            raise UserError(
                Problem(
                    "spec.rollout.promptsPerIteration",
                    f"is {spec.rollout.prompts_per_iteration}, but there are only {found} training prompts",
                )
            )
        return Corpus(job, fitting, tokenizer, scoring)

    def record(self, kind: Kind, prompt: str) -> Record:
        return self.sets.record(kind, prompt)

    def limit(self, kind: Kind, prompt: str) -> int:
        """The longest response to this prompt, in tokens."""
        return min(self._response, self._most - len(self.prompt(kind, prompt)))

    def warmup(self) -> Body | None:
        """The warm-up set as the trainer takes it, ``None`` if the job has none.

        Raises:
            UserError: a row cannot be written with the model's tokenizer.
        """
        records = self.sets.warmup
        if not records:
            return None
        prompts = self.tokenizer.prompts(records)
        rows = [
            (prompt, self.tokenizer.response(record, record.response or ""))
            for record, prompt in zip(records, prompts, strict=True)
        ]
        return warmup_body(rows)

    def _prompt(self, kind: Kind, prompt: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.prompt(self.sets.record(kind, prompt)))


def _fitting(tokenizer: Tokenizer, records: Sequence[Record], job: Job) -> Iterator[Record]:
    """The records whose prompts leave room for a response.

    Raises:
        UserError: some do not, and the job does not say to leave them out.
    """
    most = job.spec.engine.max_model_len
    problems: list[Problem] = []
    for start in range(0, len(records), _TOGETHER):
        some = records[start : start + _TOGETHER]
        for record, tokens in zip(some, tokenizer.prompts(some), strict=True):
            if len(tokens) < most:
                yield record
            else:
                problems.append(
                    Problem(
                        f"record {record.id}",
                        f"its prompt has {len(tokens)} tokens; engine.maxModelLen is {most}: raise it or leave it out",
                    )
                )
    if problems and not job.spec.data.skip_invalid:
        raise UserError(*problems[:20])
