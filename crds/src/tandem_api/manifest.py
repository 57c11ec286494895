# SPDX-License-Identifier: Apache-2.0
"""The file that a user writes: read as kubectl reads it, judged as the API server judges it, with line numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tandem_api import API_VERSION, GROUP, KIND
from tandem_api.cel import broken_rules
from tandem_api.complaints import closest, complaints, found
from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import FieldPath, Place, dotted
from tandem_api.metadata import metadata_problems
from tandem_api.model_source import random_source_problems
from tandem_api.rljob import ObjectMeta, RLJobObject
from tandem_api.schema import defaulted, spec_schema
from tandem_api.spec import RLJobSpec
from tandem_api.spec.rewards import pattern_problems
from tandem_api.yaml_lines import Document, read_documents

_TOP = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One RLJob as it was written, before anything was judged, and the other objects of its file (ConfigMaps…)."""

    path: Path
    document: Document
    others: tuple[dict[str, Any], ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """``metadata`` as written; empty if it is missing or no mapping."""
        return _mapping(self.document.value.get("metadata"))

    @property
    def spec(self) -> dict[str, Any]:
        """``spec`` as written; empty if it is missing or no mapping."""
        return _mapping(self.document.value.get("spec"))

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A problem with the field at ``path``, for example ``("spec", "data", "prompts", 0)``."""
        return Problem(dotted(path), message, self.document.line_of(path))


def read(path: Path) -> Manifest:
    """Read the one RLJob of a YAML or JSON file.

    Raises:
        UserError: the file cannot be read, is no YAML, or does not hold exactly one RLJob.
    """
    found_here = read_documents(path)
    jobs = [document for document in found_here if _is_job(document.value)]
    if not jobs and len(found_here) == 1 and isinstance(found_here[0].value, dict):
        jobs = found_here
    if len(jobs) != 1:
        lines = f" (lines {', '.join(str(job.line) for job in jobs)})" if jobs else ""
        raise UserError(Problem(str(path), f"must hold exactly one {KIND}; found {len(jobs)}{lines}"))
    others = tuple(other.value for other in found_here if other is not jobs[0] and isinstance(other.value, dict))
    return Manifest(path, jobs[0], others)


def problems(manifest: Manifest) -> list[Problem]:
    """All that is wrong with a manifest, in the order of its lines: what the API server would refuse, and a bit more.

    Files that it names are not looked at.
    """
    document = manifest.document
    places = _top_level(manifest.document.value)
    places += metadata_problems(document.value.get("metadata"))
    if isinstance(document.value.get("spec"), dict):
        places += spec_problems(manifest.spec)
    told: dict[str, Problem] = {}
    for problem in (*document.problems, *(manifest.problem(path, message) for path, message in places)):
        # What the reader refused it had to replace by something, which is then wrong in another way.
        told.setdefault(problem.where, problem)
    return sorted(told.values(), key=lambda problem: problem.line or 0)


def spec_problems(spec: dict[str, Any]) -> list[Place]:
    """What is wrong with a ``spec`` as written, as (path, message)."""
    schema = spec_schema()
    whole = defaulted(spec, schema)
    places: list[Place] = []
    job: RLJobSpec | None = None
    try:
        job = parse_spec(whole)
    except ValidationError as error:
        places = [(("spec", *path), message) for path, message in complaints(error, schema)]
    places += broken_rules(whole, schema, ("spec",), tuple(path for path, _ in places))
    if job is not None and job.model.source.random is not None:
        where = ("spec", "model", "source", "random")
        places += [((*where, *path), message) for path, message in random_source_problems(job.model.source.random)]
    return places + (pattern_problems(job.rewards) if job is not None else [])


def parse_spec(spec: dict[str, Any]) -> RLJobSpec:
    """``spec`` by the API server's rules: no coercion ("5" is no number), camelCase names only.

    Raises:
        pydantic.ValidationError: it does not fit the model.
    """
    return RLJobSpec.model_validate_json(json.dumps(spec), strict=True, by_alias=True, by_name=False)


def load(path: Path) -> RLJobObject:
    """The RLJob of a file, with defaults filled in.

    Raises:
        UserError: with every problem of the manifest.
    """
    return load_manifest(read(path))


def load_manifest(manifest: Manifest) -> RLJobObject:
    """As :func:`load`, of a manifest that was read already."""
    if wrong := problems(manifest):
        raise UserError(*wrong)
    return RLJobObject(
        metadata=ObjectMeta.model_validate(manifest.metadata),
        spec=parse_spec(defaulted(manifest.spec, spec_schema())),
    )


def _is_job(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    group = str(value.get("apiVersion", "")).partition("/")[0]
    return group == GROUP or str(value.get("kind", "")).lower() == KIND.lower()


def _top_level(value: dict[str, Any]) -> list[Place]:
    places: list[Place] = []
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if value.get(name) != wanted:
            places.append(((name,), f"must be {wanted}; {found(value.get(name))}"))
    places += [
        ((name,), f"unknown field{closest(name, _TOP)}; an RLJob has {', '.join(_TOP)}")
        for name in value
        if name not in _TOP
    ]
    if not isinstance(value.get("spec"), dict):
        places.append((("spec",), f"must be a mapping; {found(value.get('spec'))}"))
    return places


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
