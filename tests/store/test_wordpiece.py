from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.tokenizer import TokenizerFiles, convert_tokenizer
from tests.store.families import word_tokenizer


def converted(more: tuple[str, ...] = (), **changes: Any) -> TokenizerFiles:
    fields = word_tokenizer() | {name.replace("__", "."): value for name, value in changes.items()}
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], *more]
    fields["tokenizer.ggml.token_type"] = np.array(fields["tokenizer.ggml.token_type"] + [1] * len(more))
    metadata = {key: value for key, value in fields.items() if value is not None}
    return convert_tokenizer(GgufFile(Path("m.gguf"), metadata, ()), 100, 32)


def tokenizer(more: tuple[str, ...] = (), **changes: Any) -> Tokenizer:
    return Tokenizer.from_str(converted(more, **changes).tokenizer)


def test_words_and_what_continues_them() -> None:
    assert tokenizer().encode("the worlding").tokens == ["[CLS]", "the", "world", "##ing", "[SEP]"]
    assert tokenizer().encode("hello_").tokens == ["[CLS]", "hello", "[UNK]", "[SEP]"]


def test_two_texts_are_told_apart() -> None:
    encoded = tokenizer().encode("hello", "world")
    assert encoded.tokens == ["[CLS]", "hello", "[SEP]", "world", "[SEP]"]
    assert encoded.type_ids == [0, 0, 0, 1, 1]


def test_capital_letters_are_lowered_where_the_vocabulary_has_none() -> None:
    assert tokenizer().encode("HELLO Thé").tokens == ["[CLS]", "hello", "the", "[SEP]"]
    cased = tokenizer(("▁Hello",))
    assert cased.encode("Hello hello HELLO").tokens == ["[CLS]", "Hello", "hello", "[UNK]", "[SEP]"]


def test_special_tokens() -> None:
    files = converted()
    assert files.special_tokens == {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    assert Tokenizer.from_str(files.tokenizer).encode("[MASK]").tokens == ["[CLS]", "[MASK]", "[SEP]"]


def test_special_tokens_that_are_not_marked_as_such() -> None:
    kinds = [1] * len(word_tokenizer()["tokenizer.ggml.tokens"])
    assert converted(tokenizer__ggml__token_type=kinds).special_tokens["cls_token"] == "[CLS]"


def test_newer_files_call_the_first_token_bos() -> None:
    chosen = tokenizer(tokenizer__ggml__cls_token_id=None, tokenizer__ggml__bos_token_id=2)
    assert chosen.encode("the").tokens == ["[CLS]", "the", "[SEP]"]


def test_a_vocabulary_without_special_tokens() -> None:
    with pytest.raises(BadModelFile, match=r"lacks \[CLS\], \[SEP\] or \[UNK\]"):
        converted(tokenizer__ggml__seperator_token_id=0xFFFFFFFF)


def test_two_spellings_of_one_token() -> None:
    with pytest.raises(BadModelFile, match="a token is listed twice"):
        converted(("▁##ing",))
