# SPDX-License-Identifier: Apache-2.0
"""Records of prompt sets: JSON Lines, one record a line, read one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tandem_api.base import Contract
from tandem_api.complaints import complaints, found
from tandem_api.errors import Problem
from tandem_api.field_paths import dotted
from tandem_api.schema import structural


class ChatMessage(Contract):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class TestCase(Contract):
    """Standard input of a program and the standard output that it must give."""

    __test__ = False

    input: str = ""
    output: str


class Record(Contract):
    """One prompt with what is needed to score its responses.

    Exactly one of ``prompt`` and ``messages`` is set. ``answer`` is for rewards that compare, ``tests`` for those that
    run code, ``response`` for supervised warm-up. ``difficulty`` orders a curriculum, easy first. ``meta`` is handed
    to rewards as it is.
    """

    id: str = Field(min_length=1, max_length=256)
    domain: str = Field(min_length=1, max_length=128)
    prompt: str | None = Field(None, min_length=1)
    messages: tuple[ChatMessage, ...] | None = Field(None, min_length=1)
    answer: str | None = None
    tests: tuple[TestCase, ...] = ()
    images: tuple[str, ...] = ()
    difficulty: float | None = Field(None, allow_inf_nan=False)
    response: str | None = Field(None, min_length=1)
    meta: dict[str, Any] = {}


_MOST_COMPLAINTS = 3


def read_records(path: Path, *, response_required: bool = False) -> Iterator[Record | Problem]:
    """The records of a JSONL file in order; in the place of a line that is none, a problem at ``path:line``.

    Empty lines are passed over. The ids of a file are unique: a later line with an id seen before is a problem.
    ``response_required`` is for warm-up sets. Memory grows with the ids alone.

    Raises:
        OSError: the file cannot be read.
    """
    first_lines: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            record = parse_record(text, f"{path}:{number}", response_required=response_required)
            if isinstance(record, Record):
                first = first_lines.setdefault(record.id, number)
                if first != number:
                    yield Problem(f"{path}:{number}", f"id {record.id!r} is that of line {first} too; ids are unique")
                    continue
            yield record


def parse_record(line: bytes | str, where: str, *, response_required: bool = False) -> Record | Problem:
    """One line of JSON as a record, or what is wrong with it."""
    try:
        record = Record.model_validate_json(line, strict=True)
    except ValidationError as error:
        return Problem(where, "; ".join(_sentences(error)[:_MOST_COMPLAINTS]))
    if (record.prompt is None) == (record.messages is None):
        return Problem(where, "set exactly one of prompt and messages")
    if response_required and record.response is None:
        return Problem(where, "response is required in a warm-up set")
    return record


def _sentences(error: ValidationError) -> list[str]:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        # The parser sees one line at a time, so the line that it names is always 1.
        return [f"is not JSON: {first['ctx']['error']}".replace(" at line 1 column", " at column")]
    if not first["loc"]:
        return [f"must be a JSON object; {found(first['input'])}"]
    return [f"{dotted(path)} {message}" for path, message in complaints(error, structural(Record))]
