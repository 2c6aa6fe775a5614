"""Placement on a machine without GPUs: every model on the device `cpu`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.errors import PlanError
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import GIB, gib
from sovereign_ai.planner.wish import MAX_NUM_SEQS, Spot, Wish, embedding_arguments, embedding_memory
from sovereign_ai.spec import Deployment, Memory, Rejected

KV_BLOCK_TOKENS = 128
"""vLLM's block on CPUs (vllm/platforms/cpu.py)."""

KV_AIM_BYTES = GIB
"""Enough for 20-odd thousand tokens of a 135M model: some dozens of ordinary chats at once."""

KV_CONTEXTS = 2
"""Full contexts that the KV cache aims to hold, so that one long request does not stop all others."""

KV_FREE_SHARE = 4
"""No model aims at more than one part in this many of the free memory for its KV cache."""

BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

Placed = tuple[tuple[Deployment, ...], tuple[Rejected, ...]]


class _Need(NamedTuple):
    """What a wish takes; `memory` with the KV cache aimed at, `kv_least` and `kv_block` in bytes."""

    wish: Wish
    memory: Memory
    kv_least: int
    kv_block: int

    @property
    def least(self) -> int:
        return self.memory.total_bytes - self.spare

    @property
    def spare(self) -> int:
        return self.memory.kv_cache_bytes - self.kv_least


def place_on_cpu(spot: Spot, wishes: Sequence[Wish]) -> Placed:
    """Every wish on the CPU, in float32; the KV caches share what memory is left.

    The KV rule: a cache holds one full context at least. It aims at two, and at 1 GiB where two take less,
    but at no more than a quarter of the free memory. Where all aims together exceed the free memory, each
    cache gives up the same share of what it has above its least, down to whole blocks.

    Raises PlanError where even the least does not fit, naming the model that needs most.
    """
    free = spot.device.memory_free_bytes
    needs = [_need(wish, free) for wish in wishes]
    _refuse_too_much(needs, spot)
    excess = sum(need.memory.total_bytes for need in needs) - free
    spare = sum(need.spare for need in needs)
    fitted = [_shrink(need, excess, spare) if excess > 0 else need for need in needs]
    rejected = [_no_bfloat16(need.wish, spot) for need in fitted if need.wish.model.task == "chat"]
    return tuple(_deployment(need, spot) for need in fitted), tuple(rejected)


def _need(wish: Wish, free: int) -> _Need:
    if wish.model.task == "embed":
        return _Need(wish, embedding_memory(wish, memory.EMBEDDING_OVERHEAD_BYTES), 0, 1)
    shape = wish.model.shape
    block = KV_BLOCK_TOKENS * memory.kv_bytes_per_token(shape, memory.FLOAT32)
    least = memory.kv_bytes_for_context(shape, memory.FLOAT32, wish.context, block=KV_BLOCK_TOKENS)
    aim = min(max(KV_AIM_BYTES, KV_CONTEXTS * least), free // KV_FREE_SHARE)
    needed = Memory(
        weights_bytes=memory.weights_bytes(shape, memory.FLOAT32),
        kv_cache_bytes=max(least, aim // block * block),
        activation_bytes=_activation_bytes(wish),
        overhead_bytes=memory.VLLM_CPU_OVERHEAD_BYTES + memory.rope_cache_bytes(shape, memory.FLOAT32),
    )
    return _Need(wish, needed, least, block)


def _activation_bytes(wish: Wish) -> int:
    """With the sampler's share: no start-up log tells whether it is absent on CPUs."""
    return memory.activation_bytes(
        wish.model.shape,
        memory.FLOAT32,
        batched_tokens=memory.BATCHED_TOKENS,
        sampled_seqs=MAX_NUM_SEQS,
    )


def _shrink(need: _Need, excess: int, spare: int) -> _Need:
    """Take this model's part of `excess` bytes; `spare` is what all models could give together."""
    if not need.spare:
        return need
    given = -(-excess * need.spare // spare)
    left = (need.memory.kv_cache_bytes - given) // need.kv_block * need.kv_block
    return need._replace(memory=msgspec.structs.replace(need.memory, kv_cache_bytes=left))


def _refuse_too_much(needs: Sequence[_Need], spot: Spot) -> None:
    least = sum(need.least for need in needs)
    if least <= spot.device.memory_free_bytes:
        return
    largest = max(needs, key=lambda need: need.least)
    name, tokens = largest.wish.model.name, largest.wish.context
    raise PlanError(
        f"not enough memory on `{spot.node}`: the models need {gib(least)} at least, "
        f"{gib(spot.device.memory_free_bytes)} is available; "
        f"`{name}` alone needs {gib(largest.least)} with a context of {tokens} tokens",
        f"give `{name}` a smaller context, or serve a smaller model",
    )


def _no_bfloat16(wish: Wish, spot: Spot) -> Rejected:
    units = sorted(BFLOAT16_UNITS & set(spot.device.instruction_sets))
    if units:
        reason = f"not measured with this CPU's bfloat16 units ({', '.join(units)}); float32 is"
    else:
        reason = "this CPU has no bfloat16 units: measured 4 to 8 times slower than float32"
    return Rejected(model=wish.model.name, option="bfloat16 on the CPU", reason=reason)


def _deployment(need: _Need, spot: Spot) -> Deployment:
    model, chat = need.wish.model, need.wish.model.task == "chat"
    return Deployment(
        model=model.name,
        version=model.version,
        task=model.task,
        engine="triton",
        backend="vllm" if chat else "embedding",
        node=spot.node,
        tier=spot.tier.name,
        devices=(spot.device.id,),
        context=need.wish.context,
        max_num_seqs=MAX_NUM_SEQS,
        memories=(need.memory,),
        engine_args=_vllm_arguments(need) if chat else embedding_arguments(need.wish),
        reason=_reason(need, chat),
    )


def _vllm_arguments(need: _Need) -> dict[str, Any]:
    """`enforce_eager`: torch.compile adds two minutes of loading for 15 to 20 % of speed on CPUs."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": need.wish.context,
        "max_num_seqs": MAX_NUM_SEQS,
        "kv_cache_memory_bytes": need.memory.kv_cache_bytes,
        "disable_log_stats": False,
    }


def _reason(need: _Need, chat: bool) -> str:
    if not chat:
        return "no GPU: the CPU serves, in float32"
    tokens = need.memory.kv_cache_bytes // need.kv_block * KV_BLOCK_TOKENS
    return (
        "no GPU: the CPU serves, in float32 (bfloat16 is 4 to 8 times slower without bfloat16 units); "
        f"the KV cache of {gib(need.memory.kv_cache_bytes)} holds {tokens} tokens"
    )
