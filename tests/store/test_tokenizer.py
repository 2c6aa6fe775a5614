from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.byte_level import _RULES
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.tokenizer import TokenizerFiles, convert_tokenizer
from tests.store.tiny import TEMPLATE, TOKENS, VOCABULARY, keys


def converted(**changes: Any) -> TokenizerFiles:
    fields = keys(**changes)
    fields["tokenizer.ggml.token_type"] = np.asarray(fields["tokenizer.ggml.token_type"])
    return convert_tokenizer(GgufFile(Path("m.gguf"), fields, ()), VOCABULARY, 128)


def tokenizer(pre: str, **changes: Any) -> Tokenizer:
    return Tokenizer.from_str(converted(tokenizer__ggml__pre=pre, **changes).tokenizer)


TOKENIZERS = {pre: tokenizer(pre) for pre in _RULES}


@given(text=st.text(), pre=st.sampled_from(sorted(TOKENIZERS)))
def test_text_survives_the_round_trip(text: str, pre: str) -> None:
    encoded = TOKENIZERS[pre].encode(text, add_special_tokens=False)
    expected = unicodedata.normalize("NFC", text) if _RULES[pre].normalize else text
    assert TOKENIZERS[pre].decode(encoded.ids, skip_special_tokens=False) == expected


def test_numbers_of_tokens_stay() -> None:
    found = TOKENIZERS["smollm"].get_vocab()
    assert [found[token] for token in TOKENS] == list(range(VOCABULARY))


def test_merges_are_applied() -> None:
    assert TOKENIZERS["smollm"].encode("hello world").tokens[:2] == ["hello", "Ġwo"]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("gpt-2", ["12", "3", "4"]),
        ("llama-bpe", ["12", "3", "4"]),
        ("tekken", ["1", "2", "3", "4"]),
        ("gpt-4o", ["12", "3", "4"]),
        ("deepseek-coder", ["1", "2", "3", "4"]),
        ("deepseek-r1-qwen", ["1", "2", "3", "4"]),
    ],
)
def test_digits_are_split_as_the_model_learned(pre: str, expected: list[str]) -> None:
    assert TOKENIZERS[pre].encode("1234", add_special_tokens=False).tokens == expected


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("tekken", ["camel", "Case", "HTTPServer", "'s", " DON", "'T", " ./\n"]),
        ("gpt-4o", ["camel", "Case", "HTTPServer's", " DON'T", " ./\n"]),
        ("llama-bpe", ["camelCaseHTTPServer", "'s", " DON", "'T", " ./\n"]),
        ("deepseek-coder", ["camelCaseHTTPServer", "'", "s", " DON", "'", "T", " ./", "\n"]),
        ("gpt-2", ["camelCaseHTTPServer", "'s", " DON", "'", "T", " ./", "\n"]),
    ],
)
def test_text_is_split_as_the_model_learned(pre: str, expected: list[str]) -> None:
    text = "camelCaseHTTPServer's DON'T ./\n"
    steps = TOKENIZERS[pre].pre_tokenizer
    assert steps is not None
    assert [text[begin:end] for _, (begin, end) in steps.pre_tokenize_str(text)] == expected


def test_a_text_ends_with_eos_where_the_model_wants_it() -> None:
    chosen = tokenizer("qwen2", tokenizer__ggml__add_eos_token=True)
    assert chosen.encode("hello").tokens == ["hello", "<|im_end|>"]


@pytest.mark.parametrize("token", ["", "$A", "a:1"])
def test_tokens_that_cannot_begin_a_text(token: str) -> None:
    with pytest.raises(BadModelFile, match="cannot be a token that begins or ends a text"):
        tokenizer(
            "qwen2",
            tokenizer__ggml__tokens=[TOKENS[0], token, *TOKENS[2:]],
            tokenizer__ggml__add_bos_token=True,
        )


def test_control_tokens_are_special_and_added_words_are_not() -> None:
    encoded = TOKENIZERS["smollm"].encode("<|im_start|>hello<think>")
    assert encoded.tokens == ["<|im_start|>", "hello", "<think>"]
    assert TOKENIZERS["smollm"].decode(encoded.ids, skip_special_tokens=True) == "hello<think>"


def test_a_text_begins_with_bos_where_the_model_wants_it() -> None:
    chosen = tokenizer("smollm", tokenizer__ggml__add_bos_token=True)
    assert chosen.encode("hello").tokens == ["<|im_start|>", "hello"]
    assert chosen.encode("hello", add_special_tokens=False).tokens == ["hello"]
    assert chosen.encode("hello", "hello").tokens == ["<|im_start|>", "hello"] * 2
    by_default = tokenizer("llama-bpe", tokenizer__ggml__add_bos_token=None)
    assert by_default.encode("hello").tokens == ["<|im_start|>", "hello"]


def test_config() -> None:
    files = converted()
    assert files.config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert files.config["chat_template"] == TEMPLATE
    assert files.config["model_max_length"] == 128
    assert files.config["add_bos_token"] is False
    assert files.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }


def test_what_the_file_does_not_say_is_left_out() -> None:
    files = converted(tokenizer__chat_template=None, tokenizer__ggml__padding_token_id=None)
    assert "chat_template" not in files.config
    assert "pad_token" not in files.special_tokens


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer__ggml__model": "t5"}, "tokenizer `t5` cannot be converted yet"),
        ({"tokenizer__ggml__pre": "falcon"}, "pre-tokenizer `falcon` cannot be converted yet"),
    ],
)
def test_other_tokenizers_are_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        converted(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer__ggml__tokens": [*TOKENS, "more"]}, "tokens, but only"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], "h"]}, "a token is listed twice"),
        ({"tokenizer__ggml__merges": ["he"]}, "merge `he` does not join"),
        ({"tokenizer__ggml__merges": ["h h"]}, "merge `h h` does not join"),
        ({"tokenizer__ggml__token_type": [1]}, "tokens, but 1 token types"),
        ({"tokenizer__ggml__eos_token_id": 10_000}, "the eos token is number 10000"),
    ],
)
def test_contradictions_are_bad_files(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadModelFile, match=problem):
        converted(**changes)
