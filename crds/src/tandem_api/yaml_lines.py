# SPDX-License-Identifier: Apache-2.0
"""YAML read as kubectl reads it, with the line of every field.

kubectl turns YAML into JSON with go-yaml v2 before anything else looks at it. PyYAML resolves plain scalars by other
rules (``1e-6`` is a string to it, ``2026-11-22`` a date, ``1:30`` the number 90), so scalars are resolved here.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import FieldPath, dotted

_PLAIN = "plain"
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_INT64 = 2**63


@dataclass
class Document:
    """One document of a file: its value as JSON has it, the line each field stands on, and what is wrong so far."""

    value: Any
    line: int
    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: FieldPath) -> int:
        """The line of a field; of the nearest field around it if it is not there itself."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.line


def read_documents(path: Path) -> list[Document]:
    """The documents of the file at ``path``, empty ones left out.

    Raises:
        UserError: it cannot be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(Problem(str(path), f"cannot be read: {reason}")) from error
    return documents(text, str(path))


def documents(text: str, name: str) -> list[Document]:
    """The documents of a file, empty ones left out.

    Raises:
        UserError: ``text`` is no YAML. The problem names the line.
    """
    found = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            document = Document(None, node.start_mark.line + 1)
            document.value = _value(node, (), document)
            if document.value is not None:
                found.append(document)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise UserError(Problem(name, f"is not YAML: {error.problem}", line)) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(Problem(name, f"is not YAML: character {error.character:#04x} is not allowed", line)) from error
    except RecursionError as error:
        raise UserError(Problem(name, "is nested too deeply")) from error
    return found


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the node graph; plain scalars keep the tag ``plain``, to be resolved here."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        if kind is ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]


def _value(node: Node, path: FieldPath, document: Document) -> Any:
    if isinstance(node, MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
        return [_value(item, (*path, index), document) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(node, path, document)


def _mapping(node: MappingNode, path: FieldPath, document: Document) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _PLAIN and key_node.value == "<<":
            merged |= _merged(value_node, path, document)
            continue
        key, line = _key(key_node, path, document), key_node.start_mark.line + 1
        here = (*path, key)
        if key in own:
            first = document.lines[here]
            document.problems.append(Problem(dotted(here), f"is given twice; first on line {first}", line))
            continue
        document.lines[here] = line
        own[key] = _value(value_node, here, document)
    return merged | own


def _merged(node: Node, path: FieldPath, document: Document) -> dict[str, Any]:
    """The fields of a merge key's mapping, or of its list of mappings, of which the first wins."""
    sources = reversed(node.value) if isinstance(node, SequenceNode) else [node]
    merged: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, MappingNode):
            merged |= _mapping(source, path, document)
    return merged


def _key(node: Node, path: FieldPath, document: Document) -> str:
    """JSON keys are strings: ``on: 1`` becomes ``{"true": 1}``, as it does in kubectl."""
    key = _value(node, path, document) if isinstance(node, ScalarNode) else None
    if isinstance(key, bool):
        return "true" if key else "false"
    if key is None or isinstance(key, dict | list):
        line = node.start_mark.line + 1
        document.problems.append(Problem(dotted(path) or "manifest", "has a key that is not a string", line))
        return ""
    return f"{key:g}" if isinstance(key, float) else str(key)


def _scalar(node: ScalarNode, path: FieldPath, document: Document) -> Any:
    text, tag = str(node.value), node.tag
    if any("\ud800" <= character <= "\udfff" for character in text):
        line = node.start_mark.line + 1
        document.problems.append(Problem(dotted(path) or "manifest", "has half a character, which no text can", line))
        return ""
    value = _resolve(text) if tag == _PLAIN or tag.removeprefix(_TAG) in {"int", "float", "bool", "null"} else text
    if isinstance(value, float) and not math.isfinite(value):
        line = node.start_mark.line + 1
        document.problems.append(Problem(dotted(path), f"must be a finite number; found {text}", line))
        return 0
    return value


def _resolve(text: str) -> Any:
    """The JSON value of a plain scalar (go-yaml v2, resolve.go)."""
    for values, meaning in ((_TRUE, True), (_FALSE, False), (_NULL, None)):
        if text in values:
            return meaning
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", "", 1))
    plain = text.replace("_", "") if text[0] in "+-0123456789" else text
    if _INTEGER.fullmatch(plain):
        return _integer(plain)
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        if math.isinf(number):
            return text
        # JSON has one kind of number, and Go writes 40.0 as 40.
        return int(number) if number.is_integer() and abs(number) < _INT64 else number
    return text


def _integer(plain: str) -> int | float:
    digits = plain.lstrip("+-").lower()
    if re.fullmatch(r"0[0-7]+", digits):
        digits = "0o" + digits
    number = int(digits, 0) * (-1 if plain[0] == "-" else 1)
    return number if -_INT64 <= number < _INT64 else float(number)
