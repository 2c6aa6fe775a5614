"""Plans for a machine without GPUs. They prove the arithmetic, not that an engine stays within it."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import PlanError
from sovereign_ai.inventory import form_tiers
from sovereign_ai.planner import make_plan
from sovereign_ai.planner.memory import GIB
from sovereign_ai.spec import Deployment, Inventory, Memory, Model, Plan, Rejected
from tests.inventory.fakes import cpu, inventory, node
from tests.planner.models import LLAMA_3B, MINILM, MINILM_SHAPE, SMOL, SMOL_SHAPE, model

PAGE = 128 * 46_080


def plan(*models: Model, free_bytes: int = 14 * GIB, **contexts: int) -> Plan:
    there = inventory(cpu(free_bytes=free_bytes))
    wishes = {name.replace("_", "-"): context for name, context in contexts.items()}
    return make_plan(there, form_tiers(there), models, contexts=wishes)


def test_the_default_models() -> None:
    there = plan(SMOL, MINILM)
    assert [tier.name for tier in there.tiers] == ["cpu"]
    chat, embed = there.deployments
    assert chat == Deployment(
        model="smollm2-135m",
        version="1",
        task="chat",
        engine="triton",
        backend="vllm",
        node="box",
        tier="cpu",
        devices=("cpu",),
        context=8192,
        max_num_seqs=64,
        memories=(
            Memory(
                weights_bytes=538_060_032,
                kv_cache_bytes=182 * PAGE,
                activation_bytes=123_312_537,
                overhead_bytes=2_684_354_559 + 2_097_152,
            ),
        ),
        engine_args={
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 8192,
            "max_num_seqs": 64,
            "kv_cache_memory_bytes": 182 * PAGE,
            "disable_log_stats": False,
        },
        reason="no GPU: the CPU serves, in float32 (bfloat16 is 4 to 8 times slower without bfloat16 units); "
        "the KV cache of 1.0 GiB holds 23296 tokens",
    )
    assert (embed.backend, embed.engine_args) == ("embedding", {"max_tokens": 256, "max_batch": 64})
    assert embed.memory == Memory(
        weights_bytes=90_852_864,
        kv_cache_bytes=0,
        activation_bytes=64 * 256 * 4 * (3 * 1536 + 3 * 384),
        overhead_bytes=590_558_003,
    )
    assert there.rejected == (
        Rejected(
            model="smollm2-135m",
            option="bfloat16 on the CPU",
            reason="this CPU has no bfloat16 units: measured 4 to 8 times slower than float32",
        ),
    )


def test_bfloat16_units_are_told() -> None:
    there = inventory(cpu(sets=("avx512_bf16", "amx_bf16", "avx2")))
    (rejected,) = make_plan(there, form_tiers(there), [SMOL]).rejected
    assert (
        rejected.reason == "not measured with this CPU's bfloat16 units (amx_bf16, avx512_bf16); float32 is"
    )


def test_a_wished_context() -> None:
    (chat,) = plan(SMOL, smollm2_135m=2048).deployments
    assert (chat.context, chat.engine_args["max_model_len"]) == (2048, 2048)


def test_too_long_a_context() -> None:
    with pytest.raises(PlanError, match="8193 tokens for `smollm2-135m` is more than the 8192") as caught:
        plan(SMOL, smollm2_135m=8193)
    assert "8192 or less" in caught.value.hint


def test_two_contexts_where_they_take_more_than_a_gibibyte() -> None:
    (chat,) = plan(model("long", msgspec.structs.replace(SMOL_SHAPE, context_max=32768))).deployments
    assert chat.memory.kv_cache_bytes == 2 * 257 * PAGE


def test_kv_caches_shrink_alike_when_memory_is_short() -> None:
    small, large = SMOL, model("large", msgspec.structs.replace(SMOL_SHAPE, context_max=16384))
    roomy, short = plan(small, large, free_bytes=10 * GIB), plan(small, large, free_bytes=8 * GIB)
    gave = [
        before.memory.kv_cache_bytes - after.memory.kv_cache_bytes
        for before, after in zip(roomy.deployments, short.deployments, strict=True)
    ]
    assert all(given > 0 for given in gave)
    assert sum(deployment.memory.total_bytes for deployment in short.deployments) <= 8 * GIB
    assert all(deployment.memory.kv_cache_bytes % PAGE == 0 for deployment in short.deployments)


def test_only_what_can_shrink_shrinks() -> None:
    """Models at their least, and embedding models, have nothing to give."""
    roomy = plan(SMOL, MINILM)
    total = sum(deployment.memory.total_bytes for deployment in roomy.deployments)
    short = plan(SMOL, MINILM, free_bytes=total - 1)
    assert short.deployments[0].memory.kv_cache_bytes == 181 * PAGE
    assert short.deployments[1].memory == roomy.deployments[1].memory


def test_not_enough_memory_even_for_the_least() -> None:
    with pytest.raises(PlanError) as caught:
        plan(SMOL, MINILM, LLAMA_3B, free_bytes=12 * GIB)
    assert caught.value.message == (
        "not enough memory on `box`: the models need 47.3 GiB at least, 12.0 GiB is available; "
        "`llama-3b` alone needs 42.9 GiB with a context of 131072 tokens"
    )
    assert caught.value.hint == "give `llama-3b` a smaller context, or serve a smaller model"


def test_no_models_and_no_devices() -> None:
    assert plan().deployments == ()
    with pytest.raises(PlanError, match="no device"):
        make_plan(Inventory(nodes=()), (), [SMOL])


def test_the_first_node_serves() -> None:
    """Two nodes with a device called `cpu`: told apart by node."""
    there = Inventory(nodes=(node(cpu(), name="b"), node(cpu(), name="a")))
    assert make_plan(there, form_tiers(there), [SMOL]).deployments[0].node == "a"


@st.composite
def chats(draw: st.DrawFn) -> Model:
    shape = msgspec.structs.replace(
        SMOL_SHAPE,
        parameters=draw(st.integers(10**6, 4 * 10**9)),
        layers=draw(st.integers(1, 40)),
        context_max=draw(st.integers(16, 100_000)),
    )
    return model(f"chat-{draw(st.integers(0, 10**9))}", shape)


def embeds() -> st.SearchStrategy[Model]:
    shapes = st.integers(16, 9000).map(lambda most: msgspec.structs.replace(MINILM_SHAPE, context_max=most))
    return shapes.map(lambda shape: model("embed", shape, "embed"))


@given(st.lists(st.one_of(chats(), embeds()), max_size=4), st.integers(0, 64 * GIB), st.randoms())
def test_what_is_planned_fits(models: list[Model], free_bytes: int, chance: random.Random) -> None:
    try:
        there = plan(*models, free_bytes=free_bytes)
    except PlanError as error:
        assert "GiB" in error.message
        return
    assert [deployment.model for deployment in there.deployments] == [model.name for model in models]
    assert sum(deployment.memory.total_bytes for deployment in there.deployments) <= free_bytes
    for deployment, wished in zip(there.deployments, models, strict=True):
        per_token = 8 * wished.shape.layers * 3 * 64
        if deployment.backend == "vllm":
            assert deployment.memory.kv_cache_bytes >= deployment.context * per_token
    assert msgspec.json.encode(there) == msgspec.json.encode(plan(*models, free_bytes=free_bytes))
