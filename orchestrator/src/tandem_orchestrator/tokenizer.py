# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, with the files that come with a model; neither torch nor transformers is needed."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers

from tandem_api.errors import Problem, UserError
from tandem_api.records import ChatMessage, Record


class Tokenizer:
    """A model's tokenizer, its chat template if it has one, and the tokens that end a response.

    Raises:
        UserError: the directory has no tokenizer, or names no token that ends a response.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                Problem(str(directory), "has no tokenizer.json; save the model's fast tokenizer beside its config.json")
            )
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(Problem(str(path), f"is no tokenizer: {error}")) from error
        self._settings = _read(directory / "tokenizer_config.json")
        self._template = _template(directory, self._settings)
        self.stop_tokens = self._stop_tokens(directory)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, special ones included."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def prompt(self, record: Record) -> list[int]:
        """The tokens that a response to ``record`` follows.

        Messages go through the chat template, and so does a plain prompt if the model has one.

        Raises:
            UserError: the record cannot be written with this tokenizer.
        """
        return self.prompts([record])[0]

    def prompts(self, records: Sequence[Record]) -> list[list[int]]:
        """The same for many records, faster."""
        templated = self._template is not None
        if pictured := next((record for record in records if record.images), None):
            raise UserError(Problem(f"record {pictured.id}", "has images, which this version cannot roll out"))
        texts = [self._text(record) for record in records]
        return [
            self._checked(record, tokens)
            for record, tokens in zip(records, self._encoded(records, texts, special=not templated), strict=True)
        ]

    def response(self, record: Record, text: str) -> list[int]:
        """The tokens of a given response, with the token that ends it.

        Raises:
            UserError: the text cannot be written with this tokenizer.
        """
        return [*self._encoded([record], [text], special=False)[0], self.stop_tokens[0]]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special ones."""
        text: str = self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def _encoded(self, records: Sequence[Record], texts: list[str], *, special: bool) -> list[list[int]]:
        try:
            return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=special)]
        except Exception as error:
            if len(texts) == 1:
                raise UserError(
                    Problem(f"record {records[0].id}", f"cannot be written with the model's tokenizer: {error}")
                ) from error
        return [
            self._encoded([record], [text], special=special)[0] for record, text in zip(records, texts, strict=True)
        ]

    def _checked(self, record: Record, tokens: list[int]) -> list[int]:
        if not tokens:
            raise UserError(Problem(f"record {record.id}", "has a prompt without any token"))
        return tokens

    def _text(self, record: Record) -> str:
        messages = record.messages
        if self._template is None:
            if messages is None:
                return record.prompt or ""
            raise UserError(
                Problem(f"record {record.id}", "has messages, but the model has no chat template; use prompt")
            )
        asked = messages or (ChatMessage(role="user", content=record.prompt or ""),)
        turns = [message.model_dump() for message in asked]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._special_tokens())
        except jinja2.TemplateError as error:
            raise UserError(Problem(f"record {record.id}", f"the chat template refuses it: {error}")) from error

    def _special_tokens(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: _content(self._settings[name]) for name in names if self._settings.get(name)}

    def _stop_tokens(self, directory: Path) -> tuple[int, ...]:
        for file in ("generation_config.json", "config.json"):
            found = _read(directory / file).get("eos_token_id")
            if found is not None:
                return tuple(found) if isinstance(found, list) else (found,)
        if (token := self._special_tokens().get("eos_token")) is not None:
            return (int(self._tokenizer.token_to_id(token)),)
        raise UserError(Problem(str(directory), "names no eos_token_id in generation_config.json or config.json"))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(Problem(str(path), f"is not JSON: {error}")) from error
    return content


def _content(token: Any) -> str:
    """Special tokens are written as text or as an object with the text in it."""
    return str(token["content"] if isinstance(token, Mapping) else token)


def _template(directory: Path, settings: Mapping[str, Any]) -> jinja2.Template | None:
    file = directory / "chat_template.jinja"
    source = file.read_text() if file.is_file() else settings.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not source:
        return None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(Problem(str(directory), f"has a chat template that cannot be read: {error}")) from error


def _refuse(message: str) -> None:
    """What templates call when they cannot express a conversation."""
    raise jinja2.TemplateError(message)
