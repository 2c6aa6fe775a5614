from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import Blueprint, Sizes, read_sizes
from sovereign_ai.store.gguf_file import GgufFile, read_gguf
from sovereign_ai.store.llama import llama, unpermute
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


def read(tmp_path: Path, weights: dict[str, Any] | None = None, **changes: Any) -> Blueprint:
    return llama(tiny(tmp_path, weights, **changes))


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
    assert read_sizes(read_gguf(tiny_gguf)) == Sizes(
        LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY, 128
    )


def test_key_value_heads_default_to_heads(tmp_path: Path) -> None:
    assert read_sizes(tiny(tmp_path, llama__attention__head_count_kv=None)).kv_heads == HEADS


def test_the_head_size_is_what_the_file_says(tmp_path: Path) -> None:
    file = tiny(tmp_path, llama__attention__key_length=32, llama__rope__dimension_count=32)
    assert read_sizes(file).head_dim == 32


def test_every_tensor_has_a_place(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    found = llama(file).targets
    assert len(found) == len(file.tensors)
    permuted = {target.name.split(".", 3)[-1] for target in found if target.unit == HEAD_DIM}
    assert permuted == {"self_attn.q_proj.weight", "self_attn.k_proj.weight"}


def test_an_untied_head(tmp_path: Path) -> None:
    found = read(tmp_path, tensors(tied=False))
    assert found.targets[-1].name == "lm_head.weight"
    assert found.config["tie_word_embeddings"] is False


def test_config(tiny_gguf: Path) -> None:
    fields = llama(read_gguf(tiny_gguf)).config
    assert fields["architectures"] == ["LlamaForCausalLM"]
    assert fields["rms_norm_eps"] == 1e-5
    assert fields["rope_theta"] == 100_000.0
    assert fields["head_dim"] == HEAD_DIM
    assert fields["tie_word_embeddings"] is True
    assert "rope_scaling" not in fields


def test_old_files_do_not_say_theta(tmp_path: Path) -> None:
    assert read(tmp_path, llama__rope__freq_base=None).config["rope_theta"] == 10_000.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"llama__expert_count": 8}, "a mixture of experts"),
        ({"llama__rope__dimension_count": 8}, "`llama.rope.dimension_count` differs from the head size 16"),
        ({"llama__attention__value_length": 8}, "`llama.attention.value_length` differs"),
    ],
)
def test_relatives_are_unsupported(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read(tmp_path, **changes)


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
        read(tmp_path, **changes)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_up.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = tensors()
    del weights[name]
    with pytest.raises(BadModelFile, match=f"`{name}` is missing"):
        read(tmp_path, weights)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    weights = tensors() | {"blk.0.attn_k.weight": np.ones((16, HIDDEN), np.float32)}
    with pytest.raises(
        BadModelFile, match=r"`blk.0.attn_k.weight` has shape \[16, 64\], expected \[32, 64\]"
    ):
        read(tmp_path, weights)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    weights = tensors() | {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    with pytest.raises(UnsupportedModel, match=r"`blk.0.attn_q.bias` has no place in LlamaForCausalLM"):
        read(tmp_path, weights)


def test_linear_rope_scaling(tmp_path: Path) -> None:
    found = read(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert found.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_yarn(tmp_path: Path) -> None:
    prefix = "llama__rope__scaling__"
    more: dict[str, Any] = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 64,
        "yarn_beta_fast": 16.0,
    }
    found = read(tmp_path, None, **{prefix + key: value for key, value in more.items()})
    assert found.config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
    }


def test_other_rope_scaling_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="RoPE scaling `longrope`"):
        read(tmp_path, llama__rope__scaling__type="longrope")


def test_rope_factors_of_llama_3(tmp_path: Path) -> None:
    factors = llama3_factors(100_000.0, HEAD_DIM, 8.0)
    found = read(tmp_path, tensors() | {"rope_freqs.weight": factors})
    assert found.config["rope_scaling"]["rope_type"] == "llama3"
    with pytest.raises(UnsupportedModel, match="not those of Llama 3"):
        read(tmp_path, tensors() | {"rope_freqs.weight": factors * np.float32(1.5)})
    with pytest.raises(BadModelFile, match=r"`rope_freqs.weight` has shape \[3\], expected \[8\]"):
        read(tmp_path, tensors() | {"rope_freqs.weight": factors[:3]})
    with pytest.raises(BadModelFile, match="values that are no numbers"):
        read(tmp_path, tensors() | {"rope_freqs.weight": factors * np.float32(np.inf)})
    with pytest.raises(UnsupportedModel, match="weights of type I32"):
        read(tmp_path, tensors() | {"rope_freqs.weight": factors.astype(np.int32)})
