# SPDX-License-Identifier: Apache-2.0
"""Evaluates the schema's CEL rules on a document, as the API server does when one is created."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import celpy

from tandem_api.complaints import found
from tandem_api.field_paths import FieldPath, Place

type Schema = Mapping[str, Any]

_FIELD = re.compile(r"\bself\.(\w+(?:\.\w+)*)")

_ENVIRONMENT = celpy.Environment()


def broken_rules(value: Any, schema: Schema, path: FieldPath, wrong: tuple[FieldPath, ...]) -> list[Place]:
    """The rules that ``value``, with its defaults filled in, breaks; those that judge updates are left out.

    ``wrong`` are the fields known to be wrong. A rule about one of them is not evaluated: its answer would be noise.
    """
    places: list[Place] = []
    for owner, rule, here in _rules(_typed(value, schema), schema, path):
        field = tuple(rule.get("fieldPath", "").split(".")[1:])
        target = (*here, *field)
        if any(_touches(other, here, target) for other in wrong) or _holds(rule["rule"], owner, bool(wrong)):
            continue
        places.append((target, rule["message"] + _values(rule["rule"], owner, field)))
    return places


def _values(rule: str, owner: Any, field: tuple[str, ...]) -> str:
    """What was found in the field that a rule is about, and in those that it compares it with."""
    culprit = _at(owner, field)
    told = [found(culprit)] if isinstance(culprit, str | int | float) else []
    for path in dict.fromkeys(tuple(match.split(".")) for match in _FIELD.findall(rule)):
        value = _at(owner, path)
        if path != field and isinstance(value, str | int | float):
            told.append(f"{'.'.join(path)} is {found(value).removeprefix('found ')}")
    return f"; {', '.join(told)}" if told else ""


def _rules(value: Any, schema: Schema, path: FieldPath) -> Iterator[tuple[Any, Mapping[str, str], FieldPath]]:
    """Every rule with the value that it judges and where that stands."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"]:
            yield value, rule, path
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name in value:
                yield from _rules(value[name], part, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(item, schema.get("items", {}), (*path, index))


def _touches(wrong: FieldPath, owner: FieldPath, target: FieldPath) -> bool:
    """Whether a field known to be wrong is the rule's, around it, or within it."""
    shorter = min(len(wrong), len(target))
    return wrong[:shorter] == target[:shorter] and len(wrong) >= len(owner)


def _holds(rule: str, value: Any, excused: bool) -> bool:
    """Evaluate a rule. Where the document has the wrong types already, a rule that cannot be evaluated holds."""
    try:
        return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        if excused:
            return True
        raise


def _typed(value: Any, schema: Schema) -> Any:
    """``value`` with whole numbers as floats where the schema says number: JSON has no such difference, CEL has."""
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return {name: _typed(item, properties.get(name, {})) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, schema.get("items", {})) for item in value]
    return value


def _at(value: Any, field: tuple[str, ...]) -> Any:
    for name in field:
        value = value.get(name) if isinstance(value, dict) else None
    return value


@cache
def _program(rule: str) -> celpy.Runner:
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(rule))
