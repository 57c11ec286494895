# SPDX-License-Identifier: Apache-2.0
"""What the API server demands of an object's metadata, and what Tandem demands of a job's name."""

import re
from collections.abc import Callable
from typing import Any

from tandem_api.complaints import closest, found
from tandem_api.field_paths import Place
from tandem_api.rljob import MAX_NAME, NAME_PATTERN, NAME_RULE, ObjectMeta

_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
_KEY_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")
_KEY_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FIELDS = tuple(str(field.alias or name) for name, field in ObjectMeta.model_fields.items())


def metadata_problems(metadata: Any) -> list[Place]:
    """All that is wrong with a manifest's ``metadata``, as (path, message)."""
    if not isinstance(metadata, dict):
        return [(("metadata", "name"), f"is required: it {NAME_RULE}")]
    places: list[Place] = [
        (("metadata", name), f"unknown field{closest(name, _FIELDS)}") for name in metadata if name not in _FIELDS
    ]
    name = metadata.get("name")
    if name is None:
        places.append((("metadata", "name"), f"is required: it {NAME_RULE}"))
    elif not isinstance(name, str) or len(name) > MAX_NAME or not re.fullmatch(NAME_PATTERN, name):
        places.append((("metadata", "name"), f"{NAME_RULE}; {found(name)}"))
    namespace = metadata.get("namespace")
    if namespace is not None and not (isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace)):
        wanted = "must be lower case letters, digits and hyphens, at most 63"
        places.append((("metadata", "namespace"), f"{wanted}; {found(namespace)}"))
    return places + _texts(metadata, "labels", _is_label_value) + _texts(metadata, "annotations", _is_text)


def _texts(metadata: dict[str, Any], name: str, allowed: Callable[[Any], bool]) -> list[Place]:
    values = metadata.get(name)
    if values is None:
        return []
    if not isinstance(values, dict):
        return [(("metadata", name), f"must be a mapping of strings; {found(values)}")]
    places: list[Place] = []
    for key, value in values.items():
        prefix, slash, rest = key.rpartition("/")
        if not _KEY_NAME.fullmatch(rest) or (slash and not (len(prefix) <= 253 and _KEY_PREFIX.fullmatch(prefix))):
            places.append((("metadata", name, key), "must be a key such as team or example.com/team"))
        if not allowed(value):
            wanted = "a string (put it in quotes)" if not isinstance(value, str) else "a label value"
            places.append((("metadata", name, key), f"must be {wanted}; {found(value)}"))
    return places


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_label_value(value: Any) -> bool:
    return isinstance(value, str) and _LABEL_VALUE.fullmatch(value) is not None
