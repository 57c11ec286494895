# SPDX-License-Identifier: Apache-2.0
"""The directory with config.json and tokenizer that engine, trainer and orchestrator read a model from.

Most models come with one. The source ``random`` has none, so it is written here: each process writes its own copy,
byte for byte the same, and none of them needs a shared volume for it.
"""

import json
import re
from pathlib import Path
from typing import Any

from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import Place, dotted
from tandem_api.files import write_whole
from tandem_api.hub import hugging_face_directory
from tandem_api.spec.model import CharacterTokenizer, DType, ModelSpec, RandomSource

PAD = "<pad>"
EOS = "<eos>"
SPECIAL_TOKENS = (PAD, EOS)

_REGEX_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")


def model_directory(model: ModelSpec, scratch: Path) -> Path:
    """The directory with config and tokenizer of ``model``.

    That of a hub id is fetched into the hub client's cache, without weights. A random model is written below
    ``scratch``.

    Raises:
        UserError: the source is none, or not there.
        TryAgain: the hub cannot be reached.
    """
    source = model.source
    if source.random is not None:
        return materialise(source.random, scratch / "model", model.dtype)
    if source.checkpoint is not None:
        return Path(source.checkpoint.hf)
    if source.hf is None:
        raise UserError(Problem("spec.model.source", "set exactly one of hf, checkpoint, random"))
    return hugging_face_directory(source.hf)


def materialise(source: RandomSource, directory: Path, dtype: DType) -> Path:
    """Write config.json, tokenizer.json, tokenizer_config.json and generation_config.json, and return ``directory``.

    The same source gives the same bytes. Files appear whole, so several processes may write the same directory.

    Raises:
        UserError: the config cannot belong to this tokenizer (see :func:`random_source_problems`).
    """
    where = ("spec", "model", "source", "random")
    if places := random_source_problems(source):
        raise UserError(*(Problem(dotted((*where, *path)), message) for path, message in places))
    directory.mkdir(parents=True, exist_ok=True)
    config = _config(source, dtype)
    tokens = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files: dict[str, dict[str, Any]] = {
        "config.json": config,
        "generation_config.json": {name: number for name, number in tokens.items() if number is not None},
        "tokenizer.json": _tokenizer(source.tokenizer),
        "tokenizer_config.json": _tokenizer_config(config),
    }
    for name, content in files.items():
        _write(directory / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return directory


def random_source_problems(source: RandomSource) -> list[Place]:
    """What no schema can say of a config in Hugging Face's own format, and of the tokenizer made for it."""
    places: list[Place] = [
        (("config", name), f"is required: {meaning}")
        for name, meaning in (
            ("model_type", "the model's family, for example qwen3"),
            ("architectures", "the model's class, for example [Qwen3ForCausalLM]"),
        )
        if not source.config.get(name)
    ]
    size = len(vocabulary(source.tokenizer))
    given = source.config.get("vocab_size")
    if given is not None and (not isinstance(given, int) or given < size):
        places.append((("config", "vocab_size"), f"must be at least {size}, the tokenizer's tokens; found {given}"))
    for index, word in enumerate(source.tokenizer.words):
        if word in SPECIAL_TOKENS:
            places.append((("tokenizer", "words", index), f"{word} is a special token already; leave it out"))
    return places


def vocabulary(tokenizer: CharacterTokenizer) -> dict[str, int]:
    """Token ids: the special tokens, then the characters, then the words, each in the order given, each once."""
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *tokenizer.characters, *tokenizer.words))
    return {token: number for number, token in enumerate(tokens)}


def unknown_characters(tokenizer: CharacterTokenizer, text: str) -> str:
    """The characters of ``text`` that the tokenizer has no token for, each once, in order."""
    left = re.sub(_pattern(tokenizer.words + SPECIAL_TOKENS), "", text)
    return "".join(dict.fromkeys(character for character in left if character not in tokenizer.characters))


def _config(source: RandomSource, dtype: DType) -> dict[str, Any]:
    tokens = vocabulary(source.tokenizer)
    from_tokenizer = {
        "vocab_size": len(tokens),
        "bos_token_id": None,
        "eos_token_id": tokens[EOS],
        "pad_token_id": tokens[PAD],
    }
    return {**from_tokenizer, **source.config, "dtype": dtype.value}


def _tokenizer(tokenizer: CharacterTokenizer) -> dict[str, Any]:
    """A tokenizer.json. A character outside the vocabulary is an error on encoding, never silently dropped."""
    tokens = vocabulary(tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token, tokens[token]) for token in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "|".join(filter(None, (_pattern(tokenizer.words), r"[\s\S]")))},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": tokens, "unk_token": "<unk>"},
    }


def _added_token(token: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.get("max_position_embeddings", 10**9),
    }


def _pattern(words: tuple[str, ...]) -> str:
    """A regular expression of the words. An alternation takes its first match, so longer words come first."""
    # Not re.escape: it also escapes spaces and newlines, which other regular expression engines refuse.
    return "|".join(
        _REGEX_SPECIAL.sub(r"\\\1", word) for word in sorted(set(words), key=lambda word: (-len(word), word))
    )


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return  # A process that starts again on a full volume has its model.
    write_whole(path, text.encode())
