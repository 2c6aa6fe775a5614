from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.tokenizer import TokenizerFiles, convert_tokenizer
from tests.store.families import piece_tokenizer

SIZE = len(piece_tokenizer()["tokenizer.ggml.tokens"])


def converted(*, prefix: bool = True, architecture: str = "llama", **changes: Any) -> TokenizerFiles:
    fields = piece_tokenizer(prefix=prefix) | {name.replace("__", "."): v for name, v in changes.items()}
    for name in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        fields[name] = np.asarray(fields[name])
    metadata = {"general.architecture": architecture, **{k: v for k, v in fields.items() if v is not None}}
    return convert_tokenizer(GgufFile(Path("m.gguf"), metadata, ()), SIZE, 128)


def tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer.from_str(converted(**changes).tokenizer)


WITH_PREFIX, BARE = tokenizer(), tokenizer(prefix=False)


def test_pieces_with_better_scores_join_first() -> None:
    assert WITH_PREFIX.encode("the hello").tokens == ["<s>", "▁the", "▁hello"]
    merges = json.loads(WITH_PREFIX.to_str())["model"]["merges"]
    assert merges[:2] == [["▁", "t"], ["h", "e"]]
    assert ["he", "llo"] not in merges, "what is no piece is no part"
    assert merges.index(["▁t", "he"]) < merges.index(["▁", "hello"])


def test_what_no_piece_covers_becomes_bytes() -> None:
    assert WITH_PREFIX.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert BARE.encode("\n").tokens == ["<s>", "<0x0A>"]


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    """But for U+2581, which SentencePiece itself cannot tell from a space."""
    for chosen in (WITH_PREFIX, BARE):
        encoded = chosen.encode(text, add_special_tokens=False)
        assert chosen.decode(encoded.ids, skip_special_tokens=False) == text.replace("▁", " ")


def test_a_space_before_every_text_or_none() -> None:
    assert WITH_PREFIX.encode("the", add_special_tokens=False).tokens == ["▁the"]
    assert BARE.encode("the", add_special_tokens=False).tokens == ["t", "he"]
    assert WITH_PREFIX.encode("<|end|>the", add_special_tokens=False).tokens == ["<|end|>", "▁the"]


def test_words_of_the_user_are_never_taken_apart() -> None:
    assert WITH_PREFIX.encode("a  a").tokens == ["<s>", "▁a", "  ", "▁a"]
    assert BARE.encode("a  a").tokens == ["<s>", "a", "▁▁", "a"]
    assert BARE.decode(BARE.encode("a  a").ids) == "a  a"


def test_what_stands_around_a_text() -> None:
    assert tokenizer(tokenizer__ggml__add_bos_token=False).encode("a").tokens == ["▁a"]
    both = tokenizer(tokenizer__ggml__add_eos_token=True)
    assert both.encode("a").tokens == ["<s>", "▁a", "</s>"]
    assert both.encode("a", "a").tokens == ["<s>", "▁a", "</s>", "<s>", "▁a", "</s>"]
    assert both.encode("a", "a").type_ids == [0, 0, 0, 1, 1, 1]


def test_special_tokens_of_files_that_do_not_say_them() -> None:
    files = converted(
        tokenizer__ggml__bos_token_id=None,
        tokenizer__ggml__eos_token_id=None,
        tokenizer__ggml__unknown_token_id=None,
        tokenizer__ggml__padding_token_id=None,
    )
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_white_space_behind_the_special_tokens_of_phi3() -> None:
    phi3 = tokenizer(architecture="phi3")
    assert phi3.encode("<|end|>\n the").ids == tokenizer().encode("<|end|>the").ids
    assert phi3.encode("<s>\nthe").tokens[:4] == ["<s>", "<s>", "▁", "<0x0A>"]
    assert WITH_PREFIX.encode("<|end|>\nthe").tokens == ["<s>", "<|end|>", "▁", "<0x0A>", "t", "he"]


def test_gemma_goes_by_the_numbers() -> None:
    scores = np.zeros(SIZE, np.float32)
    by_number = json.loads(tokenizer(architecture="gemma3", tokenizer__ggml__scores=scores).to_str())
    assert by_number["model"]["merges"] == json.loads(WITH_PREFIX.to_str())["model"]["merges"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer__ggml__remove_extra_whitespaces": True}, "removes white space"),
        ({"tokenizer__ggml__precompiled_charsmap": np.zeros(4, np.uint8)}, "replaces characters"),
    ],
)
def test_changed_text_is_unsupported(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        converted(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer__ggml__scores": [1.0]}, f"{SIZE} tokens, but 1 scores"),
        ({"tokenizer__ggml__scores": [float("nan")] * SIZE}, "`tokenizer.ggml.scores` is not a list of num"),
        ({"tokenizer__ggml__scores": None}, "`tokenizer.ggml.scores` is missing"),
    ],
)
def test_contradictions_are_bad_files(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises((BadModelFile), match=problem):
        fields = {key: value for key, value in changes.items() if value is not None}
        converted(**fields) if fields else without_scores()


def without_scores() -> None:
    fields = piece_tokenizer()
    del fields["tokenizer.ggml.scores"]
    fields["tokenizer.ggml.token_type"] = np.asarray(fields["tokenizer.ggml.token_type"])
    convert_tokenizer(GgufFile(Path("m.gguf"), {"general.architecture": "llama", **fields}, ()), SIZE, 128)
