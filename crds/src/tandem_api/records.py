# SPDX-License-Identifier: Apache-2.0
"""Records of prompt sets: JSON Lines, one record a line, read one at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tandem_api.base import Contract
from tandem_api.complaints import complaints, found
from tandem_api.errors import Problem
from tandem_api.field_paths import dotted
from tandem_api.scalars import Fragment
from tandem_api.schema import structural


class ChatMessage(Contract):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: str = Field(description="What is said.")


class TestCase(Contract):
    """Standard input of a program and the standard output that it must give."""

    __test__ = False

    input: str = Field("", description="Standard input.")
    output: str = Field(description="Standard output that it must give.")


class Record(Contract):
    """One prompt with what is needed to score its responses.

    Exactly one of ``prompt`` and ``messages`` is set.
    """

    id: str = Field(min_length=1, max_length=256, description="Unique name.")
    domain: str = Field(min_length=1, max_length=128, description="Kind of problem; picks the reward.")
    prompt: str | None = Field(None, min_length=1, description="What the model is asked. Either this or messages.")
    messages: tuple[ChatMessage, ...] | None = Field(
        None, min_length=1, description="A conversation, laid out by the model's chat template. Either this or prompt."
    )
    answer: str | None = Field(None, description="The right answer, for rewards that compare.")
    tests: tuple[TestCase, ...] = Field((), description="Tests, for rewards that run code.")
    images: tuple[str, ...] = Field((), description="Paths or URLs of images.")
    difficulty: float | None = Field(None, allow_inf_nan=False, description="Orders a curriculum, easy (small) first.")
    response: str | None = Field(None, min_length=1, description="What to imitate; required in a warm-up set.")
    meta: Fragment = Field(default_factory=dict, description="Anything else; rewards get it as it is.")


_MOST_COMPLAINTS = 3


def read_records(path: Path, *, response_required: bool = False) -> Iterator[Record | Problem]:
    """The records of a JSONL file in order; in the place of a line that is none, a problem at ``path:line``.

    Empty lines are passed over. The ids of a file are unique: a later line with an id seen before is a problem.
    ``response_required`` is for warm-up sets. Memory grows with the ids alone.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        yield from records_of(file, str(path), response_required=response_required)


def records_of(lines: Iterable[bytes], name: str, *, response_required: bool = False) -> Iterator[Record | Problem]:
    """As :func:`read_records`, of lines that come from elsewhere; ``name`` stands for the file in problems."""
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.strip():
            continue
        where = f"{name}:{number}"
        record = parse_record(text.strip(), where, response_required=response_required)
        if isinstance(record, Record) and (first := first_lines.setdefault(record.id, number)) != number:
            record = Problem(where, f"id {record.id!r} is that of line {first} too; ids are unique")
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
