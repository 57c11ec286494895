# SPDX-License-Identifier: Apache-2.0
"""The reference page of the RLJob, made from the schema: ``python -m tandem_api.reference [--check]``."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tandem_api import API_VERSION, KIND
from tandem_api.generated import write_or_check
from tandem_api.records import Record
from tandem_api.rljob import NAME_RULE
from tandem_api.rules import FIXED
from tandem_api.scalars import DURATION_PATTERN, PATTERNS, QUANTITY_PATTERN
from tandem_api.schema import ANYTHING, RULES, Schema, spec_schema, status_schema, structural

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "rljob.md"

_HEAD = f"""\
<!-- Made by `python -m tandem_api.reference` from the models; change those. -->
# {KIND}

`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `rlj`. `metadata.name` {NAME_RULE}.

A field without a default may be left out, unless it is marked as required. Durations are written as `90s`, `2m` or
`1h30m`, amounts of bytes as `512Mi` or `4Gi`. `kubectl explain rljob.spec --recursive` shows the same in a terminal,
and `tandem validate FILE` tells what is wrong with a manifest, with line numbers.
"""

_RECORDS = """\
# Prompt records

`data.prompts[].path`, `data.warmup.path` and `data.evaluation.path` name JSONL files: one such object a line. Ids are
unique within a job.
"""
_LARGEST = 2**31 - 1


def page() -> str:
    """The text of docs/reference/rljob.md."""
    sections = [*_sections(spec_schema(), "spec"), *_sections(status_schema(), "status")]
    return "\n".join([_HEAD, *sections, _RECORDS, *_sections(structural(Record), "record")])


def _sections(schema: Schema, path: str) -> Iterator[str]:
    """One section an object: its fields, its rules, then the objects within it."""
    yield f"## {path}\n\n{schema.get('description', '')}\n"
    required = schema.get("required", ())
    yield "| Field | Type | Default | Meaning |\n|---|---|---|---|"
    for name, part in schema["properties"].items():
        kind = _linked(_type(part), f"{path}.{name}") if _inner(part) else _type(part)
        default = "required" if name in required else _default(part)
        yield f"| `{name}` | {kind} | {default} | {_cell(part['description'])} |"
    yield ""
    yield from _rules(schema.get(RULES, ()))
    for name, part in schema["properties"].items():
        if inner := _inner(part):
            suffix = "[]" if "items" in part else ""
            yield from _sections(inner | {"description": part["description"]}, f"{path}.{name}{suffix}")


def _rules(rules: Sequence[dict[str, str]]) -> Iterator[str]:
    fixed = [f"`{rule['fieldPath'][1:]}`" for rule in rules if rule["message"].endswith(FIXED)]
    others = [f"- {_field(rule)}{rule['message']}." for rule in rules if not rule["message"].endswith(FIXED)]
    if others:
        yield "\n".join(["Rules:\n", *others, ""])
    if fixed:
        yield f"Fixed once the job exists: {', '.join(fixed)}. To change one of them, create a new RLJob.\n"


def _inner(part: Schema) -> Schema | None:
    """The object that a field holds, or holds a list of, where the schema knows its fields."""
    inner: Schema = part.get("items", part)
    return inner if "properties" in inner else None


def _linked(kind: str, path: str) -> str:
    return f"[{kind}](#{path.replace('.', '').replace('[]', '').lower()})"


def _field(rule: dict[str, str]) -> str:
    return f"`{rule['fieldPath'][1:]}`: " if "fieldPath" in rule else ""


def _default(part: Schema) -> str:
    default = part.get("default")
    if default is None or default == {}:
        return ""
    return f"`{default if isinstance(default, str) and default else json.dumps(default)}`"


def _type(part: Schema) -> str:
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if part.get("x-kubernetes-int-or-string"):
        return "bytes" if part["pattern"] == QUANTITY_PATTERN else "quantity"
    if part["type"] == "array":
        return f"list of {_plural(_type(part['items']))}{_span(part, 'minItems', 'maxItems')}"
    if part["type"] == "object":
        return _object(part)
    if part["type"] == "string":
        return _string(part)
    return f"{part['type']}{_span(part, 'minimum', 'maximum')}"


def _object(part: Schema) -> str:
    if "additionalProperties" in part:
        return f"map of {_plural(_type(part['additionalProperties']))}"
    return "mapping" if part.get(ANYTHING) else "object"


def _string(part: Schema) -> str:
    pattern = part.get("pattern")
    if pattern == DURATION_PATTERN:
        return "duration"
    meaning = PATTERNS.get(pattern, f"`{_cell(pattern)}`") if pattern else ""
    return f"string: {meaning}" if meaning else "string"


def _plural(kind: str) -> str:
    plurals = {"object": "objects", "string": "strings", "quantity": "quantities"}
    return plurals.get(kind, kind)


def _span(part: Schema, lowest: str, highest: str) -> str:
    low, high = part.get(lowest), part.get(highest)
    words = []
    if low is not None:
        words.append(f"> {low}" if part.get("exclusiveMinimum") else f"≥ {low}")
    if high is not None and high != _LARGEST:
        words.append(f"< {high}" if part.get("exclusiveMaximum") else f"≤ {high}")
    return f" {', '.join(words)}" if words else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_or_check(PAGE, page())
