"""Plans for a machine without GPUs. They prove the arithmetic, not that an engine stays within it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.planner.cpu import KV_BLOCK_TOKENS, Need, cpu_arguments, cpu_fit, least_on_cpu, need, settle
from sovereign_ai.planner.cpu import why_not_bfloat16 as why_not
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.memory import GIB
from sovereign_ai.planner.sizing import Fit, Misfit
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Memory
from tests.inventory.fakes import cpu, inventory
from tests.planner.models import LLAMA_3B, SMOL, SMOL_SHAPE, model, rooms

PAGE = KV_BLOCK_TOKENS * 46_080
"""A block of SmolLM2's cache in float32."""


def here(free_bytes: int = 14 * GIB, **options: tuple[str, ...]) -> Layout:
    return Layout(rooms=rooms(inventory(cpu(free_bytes=free_bytes, **options))))


def test_the_default_chat_model() -> None:
    found = need(Wish(model=SMOL), 14 * GIB)
    assert found.memory == Memory(
        weights_bytes=int(4 * 134_515_008 * 1.005) + 2_097_152,
        kv_cache_bytes=182 * PAGE,
        activation_bytes=123_312_537,
        overhead_bytes=2_684_354_559,
    )
    assert (found.context, found.kv_tokens) == (8192, 182 * 128)
    assert found.least == found.memory.total_bytes - 117 * PAGE


def test_a_cache_aims_at_two_contexts() -> None:
    long = model("long", msgspec.structs.replace(SMOL_SHAPE, context_max=32_768))
    assert need(Wish(model=long, context=32_768), 64 * GIB).memory.kv_cache_bytes == 2 * 257 * PAGE


def test_no_cache_aims_at_more_than_a_quarter_of_what_is_free() -> None:
    found = need(Wish(model=SMOL, context=2048), 2 * GIB)
    assert found.memory.kv_cache_bytes == GIB // 2 // PAGE * PAGE
    # but the context that is wished for comes first
    assert need(Wish(model=SMOL, context=8192), GIB).memory.kv_cache_bytes == 65 * PAGE


def test_a_cache_holds_all_requests_at_once() -> None:
    four = need(Wish(model=SMOL, context=8192, concurrency=4), 4 * GIB)
    assert four.memory.kv_cache_bytes == four.kv_least == (4 * 64 + 1) * PAGE
    assert four.spare == 0


def test_the_longest_context_whose_least_fits() -> None:
    long = Wish(model=model("long", msgspec.structs.replace(SMOL_SHAPE, context_max=131_072)))
    contexts = [need(long, free * GIB).context for free in (64, 8, 5, 1)]
    assert contexts == [131_072, 65_536, 32_768, 8192]


def test_the_smallest_that_serves() -> None:
    found = least_on_cpu(Wish(model=SMOL), here())
    assert isinstance(found, Fit)
    assert (found.kv_bytes, found.format, found.partition) == (65 * PAGE, "float32", ())
    assert found.needed_bytes == need(Wish(model=SMOL), 14 * GIB).least
    assert 15 < found.speed.decode_one < 35  # 25 were measured on such a machine


def test_what_does_not_fit() -> None:
    found = least_on_cpu(Wish(model=LLAMA_3B, context=32_768), here(12 * GIB))
    assert isinstance(found, Misfit)
    assert found.reason == "needs 21.9 GiB at least, 12.0 GiB is available"
    assert found.missing_bytes == pytest.approx(9.9 * GIB, rel=0.01)


def test_nobody_gives_where_there_is_enough() -> None:
    needs = [need(Wish(model=SMOL), 14 * GIB)] * 2
    assert settle(needs, 14 * GIB) == needs


def test_caches_shrink_alike() -> None:
    small = need(Wish(model=SMOL), 8 * GIB)
    large = need(Wish(model=model("large", msgspec.structs.replace(SMOL_SHAPE, context_max=16_384))), 8 * GIB)
    total = small.memory.total_bytes + large.memory.total_bytes
    left = settle([small, large], total - GIB)
    gave = [
        before.memory.kv_cache_bytes - after.memory.kv_cache_bytes
        for before, after in zip((small, large), left, strict=True)
    ]
    assert sum(gave) >= GIB
    assert gave[0] / small.spare == pytest.approx(gave[1] / large.spare, rel=0.05)


def test_only_what_can_shrink_shrinks() -> None:
    full = need(Wish(model=SMOL, concurrency=4), 4 * GIB)
    roomy = need(Wish(model=SMOL), 14 * GIB)
    left = settle([full, roomy], full.memory.total_bytes + roomy.memory.total_bytes - 1)
    assert left[0] == full
    assert left[1].memory.kv_cache_bytes == 181 * PAGE


def test_arguments_of_the_engine() -> None:
    found = cpu_fit(need(Wish(model=SMOL, context=2048), 14 * GIB), here())
    assert cpu_arguments(found) == {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": found.kv_bytes,
        "disable_log_stats": False,
    }


def test_why_not_bfloat16() -> None:
    assert (
        why_not(here().rooms[0])
        == "this CPU has no bfloat16 units: measured 4 to 8 times slower than float32"
    )
    able = here(sets=("avx512_bf16", "amx_bf16", "avx2")).rooms[0]
    assert why_not(able) == "not measured with this CPU's bfloat16 units (amx_bf16, avx512_bf16); float32 is"


@st.composite
def needs(draw: st.DrawFn) -> list[Need]:
    free = draw(st.integers(GIB, 64 * GIB))
    found = []
    for number in range(draw(st.integers(1, 4))):
        layers, most = draw(st.integers(1, 40)), draw(st.integers(16, 100_000))
        shape = msgspec.structs.replace(SMOL_SHAPE, layers=layers, context_max=most)
        found.append(
            need(Wish(model=model(f"chat-{number}", shape), concurrency=draw(st.integers(1, 4))), free)
        )
    return found


@settings(max_examples=100, deadline=None)
@given(needs(), st.floats(0, 1.2))
def test_what_is_settled_fits_where_the_least_does(wanted: list[Need], part: float) -> None:
    least, most = sum(one.least for one in wanted), sum(one.memory.total_bytes for one in wanted)
    free = least + int(part * (most - least))
    left = settle(wanted, free)
    assert sum(one.memory.total_bytes for one in left) <= free
    for before, after in zip(wanted, left, strict=True):
        assert before.kv_least <= after.memory.kv_cache_bytes <= before.memory.kv_cache_bytes
        assert after.kv_tokens >= after.context * after.wish.concurrency
