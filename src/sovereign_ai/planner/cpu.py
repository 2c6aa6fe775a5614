"""Placement on a machine without GPUs: every model on the device `cpu`, in float32. Pure.

The KV rule: a cache holds the contexts that are wished for at least. It aims at two, and at 1 GiB where two
take less, but at no more than a quarter of the free memory. Where all aims together exceed the free memory,
each cache gives up the same share of what it has above its least, down to whole blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.planner import memory, performance
from sovereign_ai.planner.layout import Layout, Rung
from sovereign_ai.planner.memory import GIB, Rank, gib
from sovereign_ai.planner.performance import Stage
from sovereign_ai.planner.rooms import Room
from sovereign_ai.planner.sizing import Fit, Misfit
from sovereign_ai.planner.wish import MAX_NUM_SEQS, Wish
from sovereign_ai.spec import Memory

CPU_VLLM = VllmVersion.parse("0.32.0")
"""The version that engines/locks/cpu.json pins."""

KV_BLOCK_TOKENS = 128
"""vLLM's block on CPUs (vllm/platforms/cpu.py)."""

KV_AIM_BYTES = GIB
"""Enough for 20-odd thousand tokens of a 135M model: some dozens of ordinary chats at once."""

KV_CONTEXTS = 2
"""Full contexts that the KV cache aims to hold, so that one long request does not stop all others."""

KV_FREE_SHARE = 4
"""No model aims at more than one part in this many of the free memory for its KV cache."""

BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


class Need(NamedTuple):
    """What a wish takes; `memory` with the KV cache aimed at, `kv_least` and `kv_block` in bytes."""

    wish: Wish
    context: int
    memory: Memory
    kv_least: int
    kv_block: int

    @property
    def least(self) -> int:
        return self.memory.total_bytes - self.spare

    @property
    def spare(self) -> int:
        return self.memory.kv_cache_bytes - self.kv_least

    @property
    def kv_tokens(self) -> int:
        return self.memory.kv_cache_bytes // self.kv_block * KV_BLOCK_TOKENS


def cpu_rank(wish: Wish) -> Rank:
    return Rank(
        shape=wish.model.shape,
        format="float32",
        width=memory.FLOAT32,
        kv_width=memory.FLOAT32,
        vllm=CPU_VLLM,
        # No start-up log tells whether the sampler's peak is absent on CPUs: counted as V0's, the larger one.
        v1=False,
        batched_tokens=memory.BATCHED_TOKENS,
        max_num_seqs=MAX_NUM_SEQS,
    )


def need(wish: Wish, free_bytes: int, *, context: int | None = None) -> Need:
    """Without a wish the longest context whose least fits into the free memory, else the least one."""
    if context is None:
        return next(
            (
                found
                for length in wish.contexts
                if (found := need(wish, free_bytes, context=length)).least <= free_bytes
            ),
            need(wish, free_bytes, context=wish.least_context),
        )
    rank = cpu_rank(wish)
    block = KV_BLOCK_TOKENS * memory.rank_kv_bytes_per_token(rank)
    least = memory.kv_bytes_for_context(rank, context, sequences=wish.concurrency, block=KV_BLOCK_TOKENS)
    aim = min(max(KV_AIM_BYTES, KV_CONTEXTS * least), free_bytes // KV_FREE_SHARE)
    needed = Memory(
        weights_bytes=memory.weights_bytes(rank),
        kv_cache_bytes=max(least, aim // block * block),
        activation_bytes=memory.activation_bytes(rank),
        overhead_bytes=memory.VLLM_CPU_OVERHEAD_BYTES,
    )
    return Need(wish, context, needed, least, block)


def least_on_cpu(wish: Wish, layout: Layout) -> Fit | Misfit:
    """The smallest that serves a chat model on the CPU of `layout`."""
    room = layout.rooms[0]
    found = need(wish, room.usable_bytes)
    if found.least > room.usable_bytes:
        return Misfit(
            reason=f"needs {gib(found.least)} at least, {gib(room.usable_bytes)} is available",
            missing_bytes=found.least - room.usable_bytes,
        )
    lean = msgspec.structs.replace(found.memory, kv_cache_bytes=found.kv_least)
    return cpu_fit(found._replace(memory=lean), layout)


def settle(needs: Sequence[Need], free_bytes: int) -> list[Need]:
    """The models of one CPU side by side: the KV caches share what memory is left."""
    excess = sum(one.memory.total_bytes for one in needs) - free_bytes
    spare = sum(one.spare for one in needs)
    return [_shrink(one, excess, spare) if excess > 0 else one for one in needs]


def _shrink(one: Need, excess: int, spare: int) -> Need:
    """Take this model's part of `excess` bytes; `spare` is what all models could give together."""
    if not one.spare:
        return one
    given = -(-excess * one.spare // spare)
    left = max(one.kv_least, (one.memory.kv_cache_bytes - given) // one.kv_block * one.kv_block)
    return one._replace(memory=msgspec.structs.replace(one.memory, kv_cache_bytes=left))


def cpu_fit(one: Need, layout: Layout) -> Fit:
    stages = [Stage(rank=cpu_rank(one.wish), card=layout.rooms[0].card)]
    constants = performance.constants_of(stages, "vllm-cpu", CPU_VLLM)
    speed = performance.predict(
        constants,
        stages,
        context=one.context,
        max_num_seqs=MAX_NUM_SEQS,
        kv_tokens=one.kv_tokens,
    )
    return Fit(
        layout=layout,
        format="float32",
        context=one.context,
        rung=Rung(MAX_NUM_SEQS, memory.BATCHED_TOKENS, True),
        utilization=0.0,
        kv_bytes=one.memory.kv_cache_bytes,
        kv_tokens=one.kv_tokens,
        partition=(),
        memories=(one.memory,),
        speed=performance.curved(speed, constants, stages),
    )


def cpu_arguments(found: Fit) -> dict[str, Any]:
    """`enforce_eager`: torch.compile adds two minutes of loading for 15 to 20 % of speed on CPUs."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": found.context,
        "max_num_seqs": found.rung.max_num_seqs,
        "kv_cache_memory_bytes": found.kv_bytes,
        "disable_log_stats": False,
    }


def why_not_bfloat16(room: Room) -> str:
    units = sorted(BFLOAT16_UNITS & set(room.device.instruction_sets))
    if units:
        return f"not measured with this CPU's bfloat16 units ({', '.join(units)}); float32 is"
    return "this CPU has no bfloat16 units: measured 4 to 8 times slower than float32"
