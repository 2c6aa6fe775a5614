from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.planner.memory import (
    FLOAT16,
    FLOAT32,
    GIB,
    MIB,
    activation_bytes,
    cuda_context_bytes,
    cuda_graphs_bytes,
    cuda_total_bytes,
    gib,
    kv_bytes_for_context,
    kv_bytes_per_token,
    rope_cache_bytes,
    weights_bytes,
)
from tests.planner.models import MINILM_SHAPE, NEMO_SHAPE, SMOL_SHAPE


def test_kv_bytes_per_token() -> None:
    assert kv_bytes_per_token(NEMO_SHAPE, FLOAT16) == 163_840
    assert kv_bytes_per_token(SMOL_SHAPE, FLOAT32) == 46_080


def test_kv_bytes_for_context_counts_whole_blocks_and_the_null_block() -> None:
    assert kv_bytes_for_context(SMOL_SHAPE, FLOAT32, 8192, block=128) == 65 * 128 * 46_080
    assert kv_bytes_for_context(SMOL_SHAPE, FLOAT32, 8193, block=128) == 66 * 128 * 46_080
    assert kv_bytes_for_context(NEMO_SHAPE, FLOAT16, 16, block=16, tp=2) == 32 * 163_840 // 2


def test_more_cards_than_kv_heads_hold_one_head_each() -> None:
    per_card = [kv_bytes_for_context(NEMO_SHAPE, FLOAT16, 16, block=16, tp=tp) for tp in (8, 16)]
    assert per_card[0] == per_card[1] == 32 * 163_840 // 8


def test_weights() -> None:
    assert gib(weights_bytes(NEMO_SHAPE, FLOAT16)) == "22.8 GiB"
    assert weights_bytes(SMOL_SHAPE, FLOAT32) == 538_060_032
    half = weights_bytes(NEMO_SHAPE, FLOAT16, tp=2) + rope_cache_bytes(NEMO_SHAPE, FLOAT16)
    assert round(half / GIB, 2) == 11.44


def test_activation() -> None:
    assert activation_bytes(NEMO_SHAPE, FLOAT16, batched_tokens=2048, tp=2) == 2048 * 2 * (21504 + 15360)
    assert activation_bytes(SMOL_SHAPE, FLOAT32, batched_tokens=1, sampled_seqs=64) == 123_312_537
    assert activation_bytes(MINILM_SHAPE, FLOAT32, batched_tokens=1) == 4 * 3 * (1536 + 384)


def test_cuda() -> None:
    assert cuda_total_bytes(10 * GIB) == 10 * GIB - 380 * MIB
    assert cuda_total_bytes(24 * GIB) == 24 * GIB - 460 * MIB
    assert cuda_total_bytes(MIB) == 1
    assert cuda_context_bytes(16 * GIB) < cuda_context_bytes(80 * GIB)
    assert cuda_graphs_bytes(2) < cuda_graphs_bytes(4)


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 GiB"), (12_281_336_832, "11.4 GiB")])
def test_gib(count: int, text: str) -> None:
    assert gib(count) == text


@given(st.integers(1, 200_000), st.sampled_from([1, 2, 4, 8]))
def test_a_longer_context_never_takes_less(context: int, tp: int) -> None:
    shorter = kv_bytes_for_context(NEMO_SHAPE, FLOAT16, context, block=16, tp=tp)
    assert shorter >= (context + 1) * kv_bytes_per_token(NEMO_SHAPE, FLOAT16) // tp
    assert shorter <= kv_bytes_for_context(NEMO_SHAPE, FLOAT16, context + 1, block=16, tp=tp)
