# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back with a model's own files, and batches as they travel."""

import json
from pathlib import Path

import numpy as np
import pytest
from orchestrator_world import CHARACTERS, EOS, text_of, token_ids
from safetensors.numpy import load

from tandem_api.errors import UserError
from tandem_api.model_source import materialise
from tandem_api.records import ChatMessage, Record
from tandem_api.spec.model import DType, RandomSource
from tandem_orchestrator.batches import Sample, batch_body, digest
from tandem_orchestrator.buffer.rows import Generated
from tandem_orchestrator.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}= {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant={% endif %}"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    source = RandomSource.model_validate(
        {
            "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
            "tokenizer": {"characters": CHARACTERS},
        }
    )
    return materialise(source, tmp_path / "model", DType.FLOAT32)


def with_template(directory: Path, template: str) -> Tokenizer:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return Tokenizer(directory)


def test_a_plain_prompt_is_taken_as_it_stands(directory: Path):
    tokenizer = Tokenizer(directory)
    assert tuple(tokenizer.prompt(Record(id="r", domain="d", prompt="1 + 1 ="))) == token_ids("1 + 1 =")
    assert tokenizer.text([*token_ids("=2"), EOS]) == "=2"
    assert tokenizer.stop_tokens == (EOS,)


def test_with_a_chat_template_a_plain_prompt_becomes_the_users_turn(directory: Path):
    tokenizer = with_template(directory, TEMPLATE)
    turns = (ChatMessage(role="system", content="add"), ChatMessage(role="user", content="1 + 1"))
    prompts = tokenizer.prompts(
        [Record(id="a", domain="d", prompt="1 + 1"), Record(id="b", domain="d", messages=turns)]
    )
    assert [text_of(tokens) for tokens in prompts] == [
        "user= 1 + 1\nassistant=",
        "system= add\nuser= 1 + 1\nassistant=",
    ]


def test_messages_without_a_chat_template_are_refused(directory: Path):
    record = Record(id="chat", domain="d", messages=(ChatMessage(role="user", content="1"),))
    with pytest.raises(UserError, match="record chat: has messages, but the model has no chat template"):
        Tokenizer(directory).prompt(record)


def test_a_template_that_refuses_a_conversation_is_named_with_its_record(directory: Path):
    tokenizer = with_template(directory, "{{ raise_exception('only two turns') }}")
    with pytest.raises(UserError, match="record r: the chat template refuses it: only two turns"):
        tokenizer.prompt(Record(id="r", domain="d", prompt="1"))


def test_a_template_cannot_reach_into_python(directory: Path):
    tokenizer = with_template(directory, "{{ ().__class__.__bases__ }}")
    with pytest.raises(UserError, match="record r: the chat template refuses it"):
        tokenizer.prompt(Record(id="r", domain="d", prompt="1"))


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_record_with_images_is_refused(directory: Path):
    with pytest.raises(UserError, match="record r: has images"):
        Tokenizer(directory).prompt(Record(id="r", domain="d", prompt="1", images=("a.png",)))


def generated(*tokens: int, version: int) -> Generated:
    count = len(tokens)
    return Generated(np.array(tokens), np.linspace(-1, -0.5, count, dtype=np.float32), np.full(count, version))


def test_a_batch_says_where_each_token_came_from():
    body = batch_body(
        3,
        [Sample([7, 8], generated(9, 1, version=4), 0.5, 0), Sample([7, 8], generated(1, version=5), -0.5, 0)],
    )
    tensors = load(body.content)
    assert tensors["tokens"].tolist() == [7, 8, 9, 1, 7, 8, 1]
    assert tensors["offsets"].tolist() == [0, 4, 7]
    assert tensors["lossMask"].tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert tensors["versions"].tolist() == [-1, -1, 4, 4, -1, -1, 5]
    assert tensors["engineLogprobs"].tolist() == [0.0, 0.0, -1.0, -0.5, 0.0, 0.0, -1.0]
    assert digest(tensors) == body.digest


def test_the_digest_tells_batches_apart_by_any_number_in_them():
    bodies = [
        batch_body(0, [Sample([7], generated(token, version=version), reward, 0)])
        for token, version, reward in ((1, 0, 0.0), (2, 0, 0.0), (1, 1, 0.0), (1, 0, 1.0))
    ]
    assert len({body.digest for body in bodies}) == len(bodies)
