from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.special_tokens import UNSET, config_ids, generation_config
from tests.store.tiny import TOKENS, keys


def made(**changes: Any) -> GgufFile:
    return GgufFile(Path("m.gguf"), keys(**changes), ())


def test_numbers_of_the_config() -> None:
    assert config_ids(made()) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_token_ids_that_are_not_set_are_left_out() -> None:
    file = made(tokenizer__ggml__padding_token_id=None, tokenizer__ggml__bos_token_id=UNSET)
    assert config_ids(file) == {"eos_token_id": 2}


def test_numbers_beyond_the_vocabulary() -> None:
    with pytest.raises(BadModelFile, match=f"the bos token is number 1000 of {len(TOKENS)}"):
        config_ids(made(tokenizer__ggml__bos_token_id=1000))


def test_where_answers_end() -> None:
    assert generation_config(made())["eos_token_id"] == 2
    assert generation_config(made(tokenizer__ggml__eos_token_id=0))["eos_token_id"] == [0, 2]
    assert generation_config(made(tokenizer__ggml__eom_token_id=9))["eos_token_id"] == [2, 9]
    assert generation_config(made(tokenizer__ggml__eos_token_id=None))["eos_token_id"] == 2
    plain = ["x" + token.strip("<|>") for token in TOKENS]
    none = made(tokenizer__ggml__eos_token_id=None, tokenizer__ggml__tokens=plain)
    assert "eos_token_id" not in generation_config(none)
