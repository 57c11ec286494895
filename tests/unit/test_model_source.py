# SPDX-License-Identifier: Apache-2.0
"""The directory of a random model, read by those who read it in a run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tandem_api.errors import UserError
from tandem_api.model_source import EOS, PAD, SPECIAL_TOKENS, _tokenizer, materialise, model_directory, vocabulary
from tandem_api.spec.model import CharacterTokenizer, DType, ModelSpec, RandomSource

QWEN = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
SUMS = CharacterTokenizer(characters="0123456789+-= \n", words=("State the final answer", "State", "1 + 1"))


def random_source(**config: object) -> RandomSource:
    return RandomSource(config={**QWEN, **config}, tokenizer=SUMS)


# Text that JSON and UTF-8 can carry: no lone surrogates.
_characters = st.characters(exclude_categories=("Cs",))
tokenizers = st.builds(
    CharacterTokenizer,
    characters=st.text(_characters, min_size=1, max_size=20),
    words=st.lists(st.text(_characters, min_size=1, max_size=6), max_size=6).map(tuple),
)


@given(st.data())
def test_any_text_of_the_alphabet_survives_encoding_and_decoding(data: st.DataObject) -> None:
    made = data.draw(tokenizers.filter(lambda made: not set(made.words) & set(SPECIAL_TOKENS)))
    tokenizer = Tokenizer.from_str(json.dumps(_tokenizer(made)))
    pieces = st.sampled_from([*made.characters, *made.words, EOS])
    text = "".join(data.draw(st.lists(pieces, max_size=30)))

    numbers = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(numbers, skip_special_tokens=False) == text


def test_the_longest_listed_word_wins_over_its_parts(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(materialise(random_source(), tmp_path, DType.FLOAT32) / "tokenizer.json"))

    assert tokenizer.encode("State the final answer").tokens == ["State the final answer"]
    assert tokenizer.encode("State1 + 12").tokens == ["State", "1 + 1", "2"]
    assert tokenizer.encode("1 + 2").tokens == list("1 + 2")


def test_a_character_outside_the_alphabet_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(materialise(random_source(), tmp_path, DType.FLOAT32) / "tokenizer.json"))

    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
        tokenizer.encode("1 * 2")


def test_transformers_reads_the_directory(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    directory = materialise(random_source(), tmp_path / "model", DType.BFLOAT16)
    config = AutoConfig.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)

    assert (config.model_type, str(config.dtype)) == ("qwen3", "torch.bfloat16")
    assert config.vocab_size == len(tokenizer) == len(vocabulary(SUMS))
    assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(EOS)
    assert config.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids(PAD)
    assert GenerationConfig.from_pretrained(directory).eos_token_id == tokenizer.eos_token_id
    text = "1 + 1 = 2 ,\n".replace(",", "- 1 ")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    first = materialise(random_source(), tmp_path / "a", DType.FLOAT32)
    second = materialise(random_source(), tmp_path / "b", DType.FLOAT32)

    assert sorted(p.name for p in first.iterdir()) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_what_the_config_gives_is_kept(tmp_path: Path) -> None:
    config = json.loads(
        (materialise(random_source(vocab_size=64, bos_token_id=1), tmp_path, DType.FLOAT32) / "config.json").read_text()
    )

    assert (config["vocab_size"], config["bos_token_id"], config["hidden_size"]) == (64, 1, 64)


@pytest.mark.parametrize(
    ("source", "field"),
    [
        (random_source(vocab_size=4), "config.vocab_size"),
        (random_source(model_type=None), "config.model_type"),
        (random_source(architectures=[]), "config.architectures"),
        (
            RandomSource(config=QWEN, tokenizer=CharacterTokenizer(characters="ab", words=("a", "<eos>"))),
            "tokenizer.words[1]",
        ),
    ],
)
def test_a_config_that_cannot_belong_to_the_tokenizer_is_refused(
    source: RandomSource, field: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        materialise(source, tmp_path, DType.FLOAT32)

    assert [problem.where for problem in caught.value.problems] == [f"spec.model.source.random.{field}"]
    assert not list(tmp_path.iterdir())


def test_each_kind_of_source_names_its_directory(tmp_path: Path) -> None:
    def directory(**source: object) -> str:
        return str(model_directory(ModelSpec.model_validate({"source": source}), tmp_path))

    assert directory(hf={"path": "/models/qwen3"}) == "/models/qwen3"
    assert directory(checkpoint={"path": "/checkpoints/iter-4", "hf": "/models/qwen3"}) == "/models/qwen3"
    assert directory(random=random_source().model_dump()) == str(tmp_path / "model")
