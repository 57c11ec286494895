# SPDX-License-Identifier: Apache-2.0
"""The prompt sets of a run: training, held-out and warm-up, none of the held-out prompts in the other two."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tandem_api.errors import Problem, UserError
from tandem_api.records import Record, read_records
from tandem_api.spec.data import DataSpec, Evaluation, PromptSource, Warmup
from tandem_orchestrator.buffer import Kind
from tandem_orchestrator.made import made_records
from tandem_orchestrator.solutions import shows_steps, solution

log = structlog.get_logger()

_MOST_PROBLEMS = 20


@dataclass
class PromptSets:
    """All prompts of a run. ``skipped`` lines were no records; ``duplicates`` and ``held_out`` ones were left out."""

    training: list[Record] = field(default_factory=list)
    evaluation: list[Record] = field(default_factory=list)
    warmup: list[Record] = field(default_factory=list)
    skipped: int = 0
    duplicates: int = 0
    held_out: int = 0

    def __post_init__(self) -> None:
        self._by_id = {
            Kind.TRAIN: {record.id: index for index, record in enumerate(self.training)},
            Kind.EVALUATION: {record.id: index for index, record in enumerate(self.evaluation)},
        }

    def record(self, kind: Kind, prompt: str) -> Record:
        """The record with this id.

        Raises:
            UserError: there is none: the set is not the one that the run began with.
        """
        records = self.training if kind is Kind.TRAIN else self.evaluation
        try:
            return records[self._by_id[kind][prompt]]
        except KeyError:
            raise UserError(
                Problem("spec.data", f"prompt {prompt!r} of the replay buffer is in no {kind} set; were files changed?")
            ) from None

    def index(self, prompt: str) -> int | None:
        """Place of a training prompt, ``None`` if it is no longer there."""
        return self._by_id[Kind.TRAIN].get(prompt)


def read_prompt_sets(data: DataSpec, seed: int) -> PromptSets:
    """Read and make all sets.

    A held-out prompt never stands in the other sets, judged by its content: a made set leaves it out and makes
    another, a file that contains one is refused (with ``skipInvalid``, the line is left out). Of equal prompts in one
    set the first is kept.

    Raises:
        UserError: a file cannot be read, a line is no record, or a task is unknown.
    """
    return _Reader(data.skip_invalid, seed).read(data)


def content(record: Record) -> bytes:
    """What makes two prompts the same: the words, not the ids, with blanks counted as one."""
    turns = [record.prompt or ""] + [f"{turn.role}\0{turn.content}" for turn in record.messages or ()]
    text = "\1".join(" ".join(turn.split()) for turn in turns) + "\1" + "\1".join(record.images)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Reader:
    def __init__(self, skip_invalid: bool, seed: int) -> None:
        self._skip_invalid = skip_invalid
        self._seed = seed
        self._problems: list[Problem] = []
        self._skipped = 0
        self._duplicates = 0
        self._withheld = 0
        self._held_out: set[bytes] = set()

    def read(self, data: DataSpec) -> PromptSets:
        evaluation = self._distinct([data.evaluation], ["spec.data.evaluation"]) if data.evaluation else []
        self._held_out = {content(record) for record in evaluation}
        training = self._distinct(data.prompts, [f"spec.data.prompts[{n}]" for n in range(len(data.prompts))])
        warmup = list(self._warmup(data.warmup)) if data.warmup else []
        if self._problems:
            raise UserError(*self._problems[:_MOST_PROBLEMS])
        for kind, records in (("prompts", training), ("evaluation", evaluation if data.evaluation else training)):
            if not records:
                raise UserError(Problem(f"spec.data.{kind}", "has no record that can be used"))
        sets = PromptSets(training, evaluation, warmup, self._skipped, self._duplicates, self._withheld)
        log.info(
            "prompt sets are read",
            training=len(training),
            evaluation=len(evaluation),
            warmup=len(warmup),
            skipped=sets.skipped,
            duplicates=sets.duplicates,
            held_out=sets.held_out,
        )
        return sets

    def _distinct(self, sources: Iterable[PromptSource | Evaluation], places: Iterable[str]) -> list[Record]:
        records: dict[str, Record] = {}
        seen: set[bytes] = set()
        for source, where in zip(sources, places, strict=True):
            for record in self._records(source, where, self._new(seen)):
                if record.id in records:
                    self._invalid(Problem(where, f"id {record.id!r} stands in another source too; ids are unique"))
                else:
                    records[record.id] = record
        return list(records.values())

    def _new(self, seen: set[bytes]) -> Callable[[Record], bool]:
        def wanted(record: Record) -> bool:
            key = content(record)
            if key in seen:
                self._duplicates += 1
                return False
            seen.add(key)
            return True

        return wanted

    def _warmup(self, warmup: Warmup) -> Iterator[Record]:
        """Warm-up rows, each with a response. Equal ones are kept: a set may stress some on purpose."""
        for record in self._records(warmup, "spec.data.warmup", lambda record: True):
            if record.response is not None:
                yield record
            elif record.answer is not None:
                expression = record.meta.get("expression")
                text = solution(record.answer, expression, shows_steps(record.id, warmup.steps_fraction))
                yield record.model_copy(update={"response": text})

    def _records(
        self, source: PromptSource | Evaluation | Warmup, where: str, wanted: Callable[[Record], bool]
    ) -> Iterator[Record]:
        if source.reasoning_gym is not None:
            place = f"{where}.reasoningGym"
            yield from made_records(
                source.reasoning_gym, self._seed, place, lambda record: self._may_be_used(record) and wanted(record)
            )
        elif source.path is not None:
            for record in self._lines(Path(source.path), where, isinstance(source, Warmup)):
                if not self._may_be_used(record):
                    self._withheld -= 1
                    self._invalid(Problem(f"{source.path}: record {record.id}", "is a held-out prompt; remove it here"))
                elif wanted(record):
                    yield record

    def _may_be_used(self, record: Record) -> bool:
        if content(record) not in self._held_out:
            return True
        self._withheld += 1
        return False

    def _lines(self, path: Path, where: str, response_required: bool) -> Iterator[Record]:
        try:
            for found in read_records(path, response_required=response_required):
                if isinstance(found, Problem):
                    self._invalid(found)
                else:
                    yield found
        except OSError as error:
            raise UserError(Problem(f"{where}.path", f"cannot read {path}: {error.strerror}")) from error

    def _invalid(self, problem: Problem) -> None:
        if self._skip_invalid:
            self._skipped += 1
        else:
            self._problems.append(problem)
