from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, read_gguf
from sovereign_ai.store.llama import Llama, config, read_llama, targets, token_ids, unpermute
from sovereign_ai.store.rope import llama3_factors
from tests.store.tiny import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    keys,
    tensors,
    write_gguf,
)


def tiny(tmp_path: Path, weights: dict[str, Any] | None = None, **changes: Any) -> GgufFile:
    return read_gguf(write_gguf(tmp_path / "m.gguf", weights, keys(**changes)))


def permute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What makers of GGUF files do: row j of the first half of a head and row j of the second become
    neighbours."""
    head_dim = len(rows) // heads
    order = [
        head * head_dim + half * (head_dim // 2) + j
        for head in range(heads)
        for j in range(head_dim // 2)
        for half in (0, 1)
    ]
    return rows[order]


@given(heads=st.integers(1, 6), half=st.integers(1, 8), columns=st.integers(1, 4))
def test_unpermute_undoes_permute(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns).reshape(-1, columns)
    assert np.array_equal(unpermute(permute(rows, heads), 2 * half), rows)
    assert np.array_equal(permute(unpermute(rows, 2 * half), heads), rows)


def test_sizes(tiny_gguf: Path) -> None:
    assert read_llama(read_gguf(tiny_gguf)) == Llama(
        LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY
    )


def test_key_value_heads_default_to_heads(tmp_path: Path) -> None:
    assert read_llama(tiny(tmp_path, llama__attention__head_count_kv=None)).kv_heads == HEADS


def test_the_head_size_is_what_the_file_says(tmp_path: Path) -> None:
    file = tiny(tmp_path, llama__attention__key_length=32, llama__rope__dimension_count=32)
    assert read_llama(file).head_dim == 32


def test_every_tensor_has_a_place(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    found = targets(file, read_llama(file))
    assert len(found) == len(file.tensors)
    permuted = {target.name.split(".", 3)[-1] for target in found if target.head_dim}
    assert permuted == {"self_attn.q_proj.weight", "self_attn.k_proj.weight"}


def test_an_untied_head(tmp_path: Path) -> None:
    file = tiny(tmp_path, tensors(tied=False))
    sizes = read_llama(file)
    assert targets(file, sizes)[-1].name == "lm_head.weight"
    assert config(file, sizes, "float32", None)["tie_word_embeddings"] is False


def test_config(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    fields = config(file, read_llama(file), "float32", None)
    assert fields["rms_norm_eps"] == 1e-5
    assert fields["rope_theta"] == 100_000.0
    assert fields["head_dim"] == HEAD_DIM
    assert fields["tie_word_embeddings"] is True
    assert fields["bos_token_id"] == 1
    assert "rope_scaling" not in fields


def test_token_ids_that_are_not_set_are_left_out(tmp_path: Path) -> None:
    file = tiny(tmp_path, tokenizer__ggml__padding_token_id=None, tokenizer__ggml__bos_token_id=0xFFFFFFFF)
    assert token_ids(file) == {"eos_token_id": 2}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"llama__expert_count": 8}, "mixtures of experts"),
        ({"split__count": 3}, "split files"),
        ({"llama__rope__dimension_count": 8}, "`llama.rope.dimension_count` differs from the head size 16"),
        ({"llama__attention__value_length": 8}, "`llama.attention.value_length` differs"),
    ],
)
def test_relatives_are_unsupported(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_llama(tiny(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"llama__attention__head_count": 0}, "`llama.attention.head_count` is 0"),
        ({"llama__block_count": 0}, "`layers` is 0"),
        ({"llama__attention__head_count_kv": 3}, "4 heads of 16 do not divide by 3 KV heads"),
        ({"llama__attention__head_count_kv": [2, 2]}, "`llama.attention.head_count_kv` is not an integer"),
        ({"llama__block_count": None}, "`llama.block_count` is missing"),
    ],
)
def test_contradictions_are_bad_files(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadModelFile, match=problem):
        read_llama(tiny(tmp_path, **changes))


def test_another_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="architecture `gemma3` cannot be converted yet"):
        read_llama(read_gguf(write_gguf(tmp_path / "m.gguf", architecture="gemma3")))


def test_a_file_without_embeddings(tmp_path: Path) -> None:
    weights = tensors()
    del weights["token_embd.weight"]
    with pytest.raises(BadModelFile, match=r"`token_embd.weight` is missing"):
        read_llama(tiny(tmp_path, weights))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.1.ffn_up.weight"]
    file = tiny(tmp_path, weights)
    with pytest.raises(BadModelFile, match=r"`blk.1.ffn_up.weight` is missing"):
        targets(file, read_llama(file))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    file = tiny(tmp_path, tensors() | {"blk.0.attn_k.weight": np.ones((16, HIDDEN), np.float32)})
    with pytest.raises(
        BadModelFile, match=r"`blk.0.attn_k.weight` has shape \[16, 64\], expected \[32, 64\]"
    ):
        targets(file, read_llama(file))


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    file = tiny(tmp_path, tensors() | {"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(UnsupportedModel, match=r"`blk.0.attn_q.bias` has no place in LlamaForCausalLM"):
        targets(file, read_llama(file))


def test_linear_rope_scaling(tmp_path: Path) -> None:
    file = tiny(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert config(file, read_llama(file), "float32", None)["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 4.0,
    }


def test_other_rope_scaling_is_unsupported(tmp_path: Path) -> None:
    file = tiny(tmp_path, llama__rope__scaling__type="yarn")
    with pytest.raises(UnsupportedModel, match="RoPE scaling `yarn`"):
        config(file, read_llama(file), "float32", None)


def test_rope_factors_of_llama_3(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    sizes = read_llama(file)
    factors = llama3_factors(100_000.0, HEAD_DIM, 8.0)
    assert config(file, sizes, "float32", factors)["rope_scaling"]["rope_type"] == "llama3"
    with pytest.raises(UnsupportedModel, match="not those of Llama 3"):
        config(file, sizes, "float32", factors * np.float32(1.5))
