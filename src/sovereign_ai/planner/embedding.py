"""Embedding models: one device, one pass, float32. Pure."""

from __future__ import annotations

from sovereign_ai.planner import memory
from sovereign_ai.planner.layout import Layout, Rung
from sovereign_ai.planner.memory import gib2
from sovereign_ai.planner.sizing import MARGIN_BYTES, Fit, Misfit
from sovereign_ai.planner.wish import MAX_NUM_SEQS, Wish, embedding_context, embedding_memory
from sovereign_ai.spec import Speed

COMPUTE = 0.4
"""Part of a device's float32 peak that a batch of short texts reaches: an estimate."""


def fit_embedding(wish: Wish, layout: Layout) -> Fit | Misfit:
    """The model on the one device of `layout`; its batch is planned for in full."""
    room = layout.rooms[0]
    gpu = room.device.kind == "gpu"
    overhead = memory.cuda_context_bytes(room.device.memory_bytes) if gpu else memory.EMBEDDING_OVERHEAD_BYTES
    needed = embedding_memory(wish, overhead)
    free = room.usable_bytes - (MARGIN_BYTES if gpu else 0)
    if needed.total_bytes > free:
        return Misfit(
            reason=f"needs {gib2(needed.total_bytes)} in float32, {gib2(free)} usable",
            missing_bytes=needed.total_bytes - free,
        )
    context = embedding_context(wish)
    shape = wish.model.shape
    # Every token is multiplied with all but its own row of the embedding table; there is no head.
    flops = (room.facts.fp32_flops if room.facts else None) or room.card.flops
    rate = COMPUTE * flops / (2.0 * max(1, shape.parameters - shape.vocabulary * shape.hidden))
    return Fit(
        layout=layout,
        format="float32",
        context=context,
        rung=Rung(MAX_NUM_SEQS, memory.BATCHED_TOKENS, True),
        utilization=0.0,
        kv_bytes=0,
        kv_tokens=0,
        partition=(),
        memories=(needed,),
        speed=Speed(
            decode_one=round(rate, 1),
            decode_full=round(rate, 1),
            batch=MAX_NUM_SEQS,
            batch_context=context,
            prefill=round(rate),
            ttft_s={context: round(context / rate, 4)},
        ),
    )
