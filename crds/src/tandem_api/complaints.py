# SPDX-License-Identifier: Apache-2.0
"""Sentences about fields that do not fit the schema: what is allowed, what was found, what was probably meant."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from tandem_api.field_paths import Place
from tandem_api.scalars import PATTERNS

type Schema = Mapping[str, Any]

_LONGEST_VALUE = 60
_MOST_NAMES = 12

_KINDS = {
    "int_type": "an integer",
    "int_parsing_size": "an integer of 64 bits",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def complaints(error: ValidationError, schema: Schema, root: str = "spec") -> list[Place]:
    """Pydantic's errors as sentences, each with its field.

    ``schema`` is that of the model that was validated, ``root`` where it stands in what the user wrote.
    """
    return [(details["loc"], _complaint(details, schema, root)) for details in error.errors() if not _is_echo(details)]


def _is_echo(details: Mapping[str, Any]) -> bool:
    """Whether pydantic calls a list too short only because some of its items are wrong."""
    return bool(details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"])


def _complaint(details: Mapping[str, Any], schema: Schema, root: str) -> str:
    kind, location, given = details["type"], details["loc"], details["input"]
    context = details.get("ctx", {})
    if kind == "missing":
        description = _part(schema, location).get("description", "")
        return f"is required: {description}" if description else "is required"
    if kind == "extra_forbidden":
        return _unknown_field(schema, location, root)
    return f"{_allowed(kind, context, _part(schema, location))}; {found(given)}" + (
        closest(given, _part(schema, location)["enum"]) if kind in ("enum", "literal_error") else ""
    )


def found(value: Any) -> str:
    """``found 5``, cut where it is long."""
    if value is None:
        return "found nothing"
    text = json.dumps(value, ensure_ascii=False)
    return f"found {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '…'}"


def closest(word: Any, candidates: Iterable[str]) -> str:
    """`` (did you mean maxTokens?)``, or nothing if no candidate resembles ``word``."""
    names = {candidate.lower(): candidate for candidate in candidates}
    text = str(word)
    camel = to_camel(text) if text.islower() else text
    match = difflib.get_close_matches(camel.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[match[0]]}?)" if match else ""


def _allowed(kind: str, context: Mapping[str, Any], schema: Schema) -> str:
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {int(bound) if float(bound).is_integer() else bound}"
    if kind in ("enum", "literal_error"):
        return f"must be one of {', '.join(schema['enum'])}"
    if kind == "string_pattern_mismatch":
        return f"must be {PATTERNS.get(context['pattern'], 'text that matches ' + context['pattern'])}"
    if kind in ("too_short", "string_too_short"):
        return f"must have at least {_count(context['min_length'], kind)}"
    if kind in ("too_long", "string_too_long"):
        return f"must have at most {_count(context['max_length'], kind)}"
    if kind == "value_error":
        return str(context["error"])
    raise AssertionError(f"no sentence for pydantic's error {kind}")


def _count(number: int, kind: str) -> str:
    unit = "character" if kind.startswith("string") else "item"
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _unknown_field(schema: Schema, location: tuple[str | int, ...], root: str) -> str:
    name = str(location[-1])
    siblings = list(_part(schema, location[:-1]).get("properties", {}))
    if guess := closest(name, siblings):
        return f"unknown field{guess}"
    elsewhere = sorted(path for path in _paths(schema, root) if path.rpartition(".")[2] == name)
    if elsewhere:
        return f"unknown field here; it belongs at {' or '.join(elsewhere[:3])}"
    names = ", ".join(siblings[:_MOST_NAMES]) + (" …" if len(siblings) > _MOST_NAMES else "")
    return f"unknown field; allowed here: {names}"


def _part(schema: Schema, location: tuple[str | int, ...]) -> Schema:
    """The schema of a field; empty where the schema says nothing of it."""
    for step in location:
        if isinstance(step, int):
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(step, schema.get("additionalProperties", {}))
    return schema


def _paths(schema: Schema, prefix: str) -> Iterable[str]:
    for name, part in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        yield from _paths(part, path)
        yield from _paths(part.get("items", {}), f"{path}[]")
