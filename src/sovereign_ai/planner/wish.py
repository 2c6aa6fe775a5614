"""What every planner starts from: a model and the context to serve it with. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sovereign_ai.errors import PlanError
from sovereign_ai.planner import memory
from sovereign_ai.spec import Device, Inventory, Memory, Model, Noun, Tier

MAX_NUM_SEQS = 64
"""Requests that vLLM computes together, and texts in one embedding batch."""

EMBEDDING_PEAK_TOKENS = MAX_NUM_SEQS * 512
"""Tokens of the embedding batch that memory is planned for: 64 texts of 512 tokens. Few texts are longer; a
full batch of longer ones takes more than planned."""


class Wish(Noun, frozen=True, kw_only=True):
    """One model to place. `context` in tokens, prompt and answer together."""

    model: Model
    context: int


class Spot(Noun, frozen=True, kw_only=True):
    """A device with the node and the tier it is in."""

    node: str
    tier: Tier
    device: Device


def wishes(models: Sequence[Model], contexts: Mapping[str, int]) -> tuple[Wish, ...]:
    """Raises PlanError where a wished context is longer than the model allows."""
    return tuple(Wish(model=model, context=_context(model, contexts.get(model.name))) for model in models)


def _context(model: Model, wish: int | None) -> int:
    most = model.shape.context_max
    if wish is not None and wish > most:
        raise PlanError(
            f"a context of {wish} tokens for `{model.name}` is more than the {most} it was made for",
            f"set its context to {most} or less",
        )
    return most if wish is None else wish


def spots(inventory: Inventory, tiers: Sequence[Tier]) -> tuple[Spot, ...]:
    """Every device of every tier by rank, inside a tier by node and then in the tier's order."""
    there = {(node.name, device.id): device for node in inventory.nodes for device in node.devices}
    names = sorted({node.name for node in inventory.nodes})
    return tuple(
        Spot(node=name, tier=tier, device=there[name, device])
        for tier in sorted(tiers, key=lambda tier: tier.rank)
        for name in names
        for device in dict.fromkeys(tier.devices)
        if (name, device) in there
    )


def embedding_arguments(wish: Wish) -> dict[str, int]:
    return {"max_tokens": wish.context, "max_batch": MAX_NUM_SEQS}


def embedding_memory(wish: Wish, overhead_bytes: int) -> Memory:
    """An embedding model keeps nothing between requests: no KV cache. The backend computes in float32."""
    shape = wish.model.shape
    tokens = min(MAX_NUM_SEQS * wish.context, EMBEDDING_PEAK_TOKENS)
    return Memory(
        weights_bytes=memory.weights_bytes(shape, memory.FLOAT32),
        kv_cache_bytes=0,
        activation_bytes=memory.activation_bytes(shape, memory.FLOAT32, batched_tokens=tokens),
        overhead_bytes=overhead_bytes,
    )
