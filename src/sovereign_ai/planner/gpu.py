"""Placement on GPUs: one card where the model fits, else matched cards together. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sovereign_ai.errors import PlanError
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import gib
from sovereign_ai.planner.wish import MAX_NUM_SEQS, Spot, Wish, embedding_arguments, embedding_memory
from sovereign_ai.spec import Deployment, Memory, Rejected

KV_BLOCK_TOKENS = 16
"""vLLM's block on GPUs."""

UTILIZATION = 0.9
"""Part of a card's CUDA memory that vLLM plans for: its own default. CUDA graphs and context come on top."""

Placed = tuple[tuple[Deployment, ...], tuple[Rejected, ...]]
Reserved = Mapping[tuple[str, str], int]


class _Option(NamedTuple):
    """Cards that could serve a model; more than one means tensor parallelism over them."""

    spots: tuple[Spot, ...]

    @property
    def tp(self) -> int:
        return len(self.spots)

    @property
    def dtype(self) -> str:
        """bfloat16 needs compute capability 8.0 (Ampere); older cards have float16 only."""
        oldest = min(float(spot.device.compute_capability or 0) for spot in self.spots)
        return "bfloat16" if oldest >= 8 else "float16"

    @property
    def label(self) -> str:
        first = self.spots[0]
        cards = f"{self.tp}× {first.device.name}" + (f" at TP={self.tp}" if self.tp > 1 else "")
        return f"{self.dtype} on {cards} (tier {first.tier.name}, node {first.node})"


class _Fit(NamedTuple):
    """How an option holds a model, on each card."""

    option: _Option
    memory: Memory
    utilization: float


def place_on_gpus(spots: Sequence[Spot], wishes: Sequence[Wish]) -> Placed:
    """Embedding models first, each on the smallest card of the last tier that holds it; then chat models in
    their order, each on the first option that holds it: by tier, one card before 2, 4, 8… matched cards.

    A card serves one chat model; embedding models may share its memory. Raises PlanError with the reason of
    every option where none holds a model.
    """
    reserved: dict[tuple[str, str], int] = {}
    placed: dict[int, Deployment] = {}
    rejected: list[Rejected] = []
    for at, wish in enumerate(wishes):
        if wish.model.task == "embed":
            placed[at] = _place_embedding(wish, spots, reserved)
            key = placed[at].node, placed[at].devices[0]
            reserved[key] = reserved.get(key, 0) + placed[at].memory.total_bytes
    taken: set[tuple[str, str]] = set()
    for at, wish in enumerate(wishes):
        if wish.model.task == "chat":
            placed[at], losers = _place_chat(wish, spots, reserved, taken)
            taken |= {(placed[at].node, device) for device in placed[at].devices}
            rejected += losers
    return tuple(placed[at] for at in sorted(placed)), tuple(rejected)


def _key(spot: Spot) -> tuple[str, str]:
    return spot.node, spot.device.id


def _left(spot: Spot, reserved: Reserved) -> int:
    return spot.device.memory_free_bytes - reserved.get(_key(spot), 0)


def _place_embedding(wish: Wish, spots: Sequence[Spot], reserved: Reserved) -> Deployment:
    smallest_last_tier_first = sorted(spots, key=lambda spot: (-spot.tier.rank, spot.device.memory_bytes))
    for spot in smallest_last_tier_first:
        needed = embedding_memory(wish, memory.cuda_context_bytes(spot.device.memory_bytes))
        if needed.total_bytes <= _left(spot, reserved):
            reason = f"the smallest card of the last tier that has {gib(needed.total_bytes)} free"
            return _deployment(wish, (spot,), needed, embedding_arguments(wish), reason)
    most = max(_left(spot, reserved) for spot in spots)
    raise PlanError(
        f"no card holds `{wish.model.name}`: it needs {gib(needed.total_bytes)}, {gib(most)} is available",
        "serve a smaller model",
    )


def _place_chat(
    wish: Wish, spots: Sequence[Spot], reserved: Reserved, taken: Collection[tuple[str, str]]
) -> tuple[Deployment, list[Rejected]]:
    free = [spot for spot in spots if _key(spot) not in taken]
    found = [(option, _fit(wish, option, reserved)) for option in _options(free, reserved)]
    chosen = next((fit for _, fit in found if isinstance(fit, _Fit)), None)
    if chosen is None:
        raise _no_place(wish, [(option.label, str(why)) for option, why in found])
    rejected = [
        Rejected(model=wish.model.name, option=option.label, reason=_why_not(fit, chosen))
        for option, fit in found
        if fit is not chosen
    ]
    reason = f"the first that fits, by tier and with the fewest cards: {chosen.option.label}"
    arguments = _vllm_arguments(wish, chosen)
    return _deployment(wish, chosen.option.spots, chosen.memory, arguments, reason), rejected


def _why_not(fit: _Fit | str, chosen: _Fit) -> str:
    return fit if isinstance(fit, str) else f"fits, but {chosen.option.label} comes first"


def _no_place(wish: Wish, found: Sequence[tuple[str, str]]) -> PlanError:
    reasons = [f"  {label}: {why}" for label, why in found] or ["  every card serves another model"]
    headline = f"no place for `{wish.model.name}` with a context of {wish.context} tokens:"
    return PlanError("\n".join([headline, *reasons]), "give it a smaller context, or serve a smaller model")


def _options(spots: Sequence[Spot], reserved: Reserved) -> Iterator[_Option]:
    """By tier: one card (the one with most memory left), then 2, 4, 8… of the cards of one node."""
    for _, group in groupby(spots, key=lambda spot: (spot.tier.rank, spot.node)):
        cards = sorted(group, key=lambda spot: -_left(spot, reserved))
        for size in (1 << power for power in range(len(cards).bit_length())):
            yield _Option(tuple(sorted(cards[:size], key=lambda spot: spot.device.index)))


def _fit(wish: Wish, option: _Option, reserved: Reserved) -> _Fit | str:
    """The fit, or with numbers why there is none."""
    shape, tp = wish.model.shape, option.tp
    if shape.heads % tp or (shape.kv_heads % tp and tp % shape.kv_heads):
        return f"{shape.heads} heads and {shape.kv_heads} KV heads do not split over {tp} cards"
    weights = memory.weights_bytes(shape, memory.FLOAT16, tp=tp)
    weights += memory.rope_cache_bytes(shape, memory.FLOAT16)
    kv_least = memory.kv_bytes_for_context(shape, memory.FLOAT16, wish.context, block=KV_BLOCK_TOKENS, tp=tp)
    activation = memory.activation_bytes(shape, memory.FLOAT16, batched_tokens=memory.BATCHED_TOKENS, tp=tp)
    nccl = memory.NCCL_BYTES if tp > 1 else 0
    outside = max(_outside(spot, tp) for spot in option.spots)
    utilization, budget = _budget(option, outside, reserved)
    if weights + kv_least + activation + nccl > budget:
        return (
            f"needs {gib(weights)} of weights, {gib(kv_least)} of KV cache for {wish.context} tokens and "
            f"{gib(activation + nccl)} to compute on each card; {gib(budget)} is usable"
        )
    needed = Memory(
        weights_bytes=weights,
        kv_cache_bytes=budget - weights - activation - nccl,
        activation_bytes=activation,
        overhead_bytes=nccl + outside,
    )
    return _Fit(option, needed, utilization)


def _outside(spot: Spot, tp: int) -> int:
    """What vLLM takes beyond its budget: CUDA context and graphs."""
    return memory.cuda_context_bytes(spot.device.memory_bytes) + memory.cuda_graphs_bytes(tp)


def _budget(option: _Option, outside: int, reserved: Reserved) -> tuple[float, int]:
    """(gpu_memory_utilization, bytes it gives on the poorest card), as much as is free up to UTILIZATION."""
    totals = [memory.cuda_total_bytes(spot.device.memory_bytes) for spot in option.spots]
    free = [_left(spot, reserved) - outside for spot in option.spots]
    shares = [100 * there // total for there, total in zip(free, totals, strict=True)]
    percent = max(0, min(round(100 * UTILIZATION), *shares))
    return percent / 100, min(totals) * percent // 100


def _vllm_arguments(wish: Wish, fit: _Fit) -> dict[str, Any]:
    """Chunked prefill is set: at a context of exactly 32,768 vLLM would leave it off and profile a batch of
    as many tokens. Custom all-reduce needs peer-to-peer, which GeForce cards do not have.
    """
    arguments: dict[str, Any] = {
        "dtype": fit.option.dtype,
        "gpu_memory_utilization": fit.utilization,
        "tensor_parallel_size": fit.option.tp,
        "max_model_len": wish.context,
        "max_num_seqs": MAX_NUM_SEQS,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": memory.BATCHED_TOKENS,
        "disable_log_stats": False,
    }
    if fit.option.tp > 1:
        arguments["disable_custom_all_reduce"] = True
    return arguments


def _deployment(
    wish: Wish, spots: Sequence[Spot], needed: Memory, arguments: dict[str, Any], reason: str
) -> Deployment:
    return Deployment(
        model=wish.model.name,
        version=wish.model.version,
        task=wish.model.task,
        engine="triton",
        backend="vllm" if wish.model.task == "chat" else "embedding",
        node=spots[0].node,
        tier=spots[0].tier.name,
        devices=tuple(spot.device.id for spot in spots),
        context=wish.context,
        max_num_seqs=MAX_NUM_SEQS,
        memories=(needed,),
        engine_args=arguments,
        reason=reason,
    )
