# SPDX-License-Identifier: Apache-2.0
"""Every problem of a manifest, and of the prompts and the model that it names, before anything is started."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tandem_api.complaints import closest
from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import FieldPath
from tandem_api.gym_tasks import task_names
from tandem_api.manifest import Manifest, load_manifest, problems, read
from tandem_api.model_source import unknown_characters
from tandem_api.records import Record, read_records, records_of
from tandem_api.spec import RLJobSpec
from tandem_api.spec.data import Evaluation, PromptSource, ReasoningGym, Warmup
from tandem_cli.mounted import Elsewhere, Mounts, Place, Text

MOST_LINES = 10
"""Bad lines of a file that are told one by one."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")

type Source = PromptSource | Warmup | Evaluation


def validate(path: Path) -> list[Problem]:
    """All problems of the manifest at ``path``; empty if it can be run.

    Files are looked at where they can be reached from here: on this machine, through hostPath volumes, and in
    ConfigMaps of the same file. What lies in the cluster's volumes is left to the job. They are looked at once the
    manifest itself is right.
    """
    try:
        manifest = read(path)
        return problems(manifest) or list(_Data(manifest, load_manifest(manifest).spec).problems())
    except UserError as error:
        return list(error.problems)


@dataclass(frozen=True, slots=True)
class _Data:
    """The files and tasks that a manifest names."""

    manifest: Manifest
    spec: RLJobSpec

    def problems(self) -> Iterator[Problem]:
        yield from self._model()
        for path, source in self._sources():
            if source.reasoning_gym is not None:
                yield from self._task(path, source.reasoning_gym)
            elif source.path is not None:
                yield from self._records((*path, "path"), source.path, isinstance(source, Warmup))

    def _sources(self) -> Iterator[tuple[FieldPath, Source]]:
        data = self.spec.data
        for index, prompts in enumerate(data.prompts):
            yield ("spec", "data", "prompts", index), prompts
        if data.warmup is not None:
            yield ("spec", "data", "warmup"), data.warmup
        if data.evaluation is not None:
            yield ("spec", "data", "evaluation"), data.evaluation

    def _task(self, path: FieldPath, gym: ReasoningGym) -> Iterator[Problem]:
        known = task_names()
        if known is not None and gym.task not in known:
            guess = closest(gym.task, known) or "; the gallery of reasoning-gym lists its tasks"
            yield self.manifest.problem((*path, "reasoningGym", "task"), f"there is no task {gym.task!r}{guess}")

    def _records(self, path: FieldPath, file: str, warmup: bool) -> Iterator[Problem]:
        place = self._mounts("orchestrator").locate(file)
        if isinstance(place, Elsewhere):
            return
        records = 0
        bad: list[Problem] = []
        try:
            for record in _read(place, warmup):
                wrong = record if isinstance(record, Problem) else self._unreadable(record, place)
                records += wrong is None
                if wrong is not None:
                    bad.append(wrong)
        except OSError as error:
            yield self.manifest.problem(path, _unreachable(file, place, error))
            return
        if bad and not self.spec.data.skip_invalid:
            yield from bad[:MOST_LINES]
            if len(bad) > MOST_LINES:
                yield self.manifest.problem(path, f"{len(bad) - MOST_LINES} more lines are wrong")
        elif not records:
            yield self.manifest.problem(path, f"{file} holds no records")

    def _unreadable(self, record: Record, place: Place) -> Problem | None:
        """A record that the characters of a random model's tokenizer cannot spell."""
        random = self.spec.model.source.random
        if random is None:
            return None
        text = "".join(filter(None, (record.prompt, record.response)))
        if unknown := unknown_characters(random.tokenizer, text):
            name = place.name if isinstance(place, Text) else str(place)
            advice = "add them to model.source.random.tokenizer.characters"
            return Problem(f"{name}: record {record.id}", f"the tokenizer has no {unknown!r}; {advice}")
        return None

    def _model(self) -> Iterator[Problem]:
        source = ("spec", "model", "source")
        mounts = self._mounts("trainer", "engine")
        hf, checkpoint = self.spec.model.source.hf, self.spec.model.source.checkpoint
        if hf is not None and hf.path.startswith(("/", ".")):
            place = mounts.locate(hf.path)
            yield from (self.manifest.problem((*source, "hf", "path"), text) for text in _model_files(place, True))
        if checkpoint is not None:
            config, weights = mounts.locate(checkpoint.hf), mounts.locate(checkpoint.path)
            where = (*source, "checkpoint")
            yield from (self.manifest.problem((*where, "hf"), text) for text in _model_files(config, False))
            if isinstance(weights, Path) and not weights.is_dir():
                yield self.manifest.problem((*where, "path"), f"{weights} is no directory here")

    def _mounts(self, *containers: str) -> Mounts:
        settings = self.spec.orchestrator if containers == ("orchestrator",) else self.spec.hybrid
        return Mounts(settings.template, self.manifest.others, frozenset(containers))


def _read(place: Path | Text, warmup: bool) -> Iterator[Record | Problem]:
    if isinstance(place, Text):
        return records_of(place.content.encode().splitlines(), place.name, response_required=warmup)
    return read_records(place, response_required=warmup)


def _unreachable(file: str, place: Place, error: OSError) -> str:
    seen = "" if str(place) == file else f" ({file} to the orchestrator)"
    advice = "" if seen else "; on a cluster, mount a volume there with orchestrator.template"
    return f"{place}{seen} cannot be read: {error.strerror}{advice}"


def _model_files(place: Place, weights: bool) -> Iterator[str]:
    """What a directory in Hugging Face's layout lacks."""
    if not isinstance(place, Path):
        return
    if not place.is_dir():
        yield f"{place} is no directory here; on a cluster, mount a volume there with hybrid.template"
        return
    config = place / "config.json"
    if not config.exists():
        yield f"{place} has no config.json; it takes a model in Hugging Face's layout"
    elif not _is_json(config):
        yield f"{config} is not JSON"
    if not _any(place / name for name in _TOKENIZER_FILES):
        yield f"{place} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}"
    if weights and not _any(islice(place.glob("*.safetensors"), 1)):
        yield f"{place} has no weights: no *.safetensors"


def _any(files: Iterable[Path]) -> bool:
    return any(file.exists() for file in files)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
