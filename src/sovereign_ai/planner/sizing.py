"""How one model is set up on one group of devices: settings, memory of every device, speed. Or why it is
not. Pure.

The settings are tried from generous to frugal; the first that holds the wish is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from sovereign_ai.catalog.formats import format_facts, kernel, supports
from sovereign_ai.catalog.releases import Release, VllmVersion
from sovereign_ai.catalog.speed import Constants
from sovereign_ai.planner import memory, performance
from sovereign_ai.planner.layout import Layout, Rung, ladder
from sovereign_ai.planner.memory import Rank, gib, gib2
from sovereign_ai.planner.partition import StageBound, split_layers
from sovereign_ai.planner.performance import Stage, curved, slowest, weight_only
from sovereign_ai.planner.rooms import Room
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Format, Memory, Noun, Shape, Speed

KV_BLOCK_TOKENS = 16
"""vLLM's block on GPUs."""

MARGIN_BYTES = 150 << 20
"""Left free on every card for what no formula sees: fragmentation, a second cuBLAS workspace."""

TOKENS_A_SEQUENCE = 512
"""A KV cache should hold this many tokens for each of max_num_seqs, or the batch can never be that large."""

FULL = frozenset({"float32", "bfloat16", "float16"})
"""Formats that are not quantized: cast while loading to what the card computes in."""

INTERLEAVED_SINCE = VllmVersion.parse("0.6.4")
"""Layers with and without a sliding window in one model (vllm-project/vllm#9403)."""

GROUP_SIZE = 128
"""4-bit formats scale groups of so many numbers; a rank's part of a matrix must be whole groups."""


class Fit(Noun, frozen=True, kw_only=True):
    """How a layout holds a model. `memories` one a device, in the layout's order."""

    layout: Layout
    format: Format
    context: int
    rung: Rung
    utilization: float
    kv_bytes: int
    kv_tokens: int
    partition: tuple[int, ...]
    memories: tuple[Memory, ...]
    speed: Speed

    @property
    def total_bytes(self) -> int:
        """Weights and what is computed in, of all devices: what the model takes without its KV cache."""
        return sum(one.total_bytes - one.kv_cache_bytes for one in self.memories)

    @property
    def needed_bytes(self) -> int:
        """On the device that holds most, KV cache and all."""
        return max(one.total_bytes for one in self.memories)


class Misfit(Noun, frozen=True, kw_only=True):
    """Why not. `missing_bytes`: how much more memory the tightest device would need, where that is the
    reason; `too_slow`: the tokens a second that it would have, where they are. `context_helps`: a smaller one
    could mend it."""

    reason: str
    missing_bytes: int | None = None
    too_slow: float | None = None
    context_helps: bool = True


def formats_for(wish: Wish, capability: str, release: Release) -> tuple[Format, ...]:
    """Formats to try on such cards, the most faithful first.

    As the checkpoint is (16-bit weights are cast to what the card computes in), then what quantizing a 16-bit
    checkpoint makes. A checkpoint that is quantized stays what it is.
    """
    given = wish.model.given_format
    wide: Format = "float16" if supports("bfloat16", capability, release.version) else "bfloat16"
    as_is: tuple[Format, ...] = (wide,) if given in ("float32", "bfloat16", "float16") else (given,)
    made: tuple[Format, ...] = ("fp8", "int8", "w4a16") if as_is == (wide,) else ()
    every = dict.fromkeys((*as_is, *(form for form in wish.stored if form not in FULL), *made))
    allowed = [
        form for form in every if not wish.formats or form in wish.formats or _cast(form, wish.formats)
    ]
    extra = [form for form in wish.formats if form not in every and form not in FULL]
    return tuple(sorted((*allowed, *extra), key=lambda form: format_facts(form).rank))


def _cast(form: Format, wanted: Sequence[Format]) -> bool:
    return form in FULL and any(name in FULL for name in wanted)


def is_made(wish: Wish, form: Format) -> bool:
    """Whether the weights of this format exist: as given, or in the store."""
    given = wish.model.given_format
    return form == given or form in wish.stored or (form in FULL and given in FULL)


def refusal(wish: Wish, layout: Layout, form: Format, release: Release) -> str:
    """Reasons that need no arithmetic: "" where there are none."""
    given = wish.model.given_format
    if given not in FULL and form != given and form not in wish.stored:
        return f"the checkpoint is {given} already, it cannot be made {form}"
    if reason := supports(form, layout.capability, release.version):
        return reason
    if reason := release.refuses_card(layout.capability):
        return reason
    shape, tp = wish.model.shape, layout.tp
    if shape.heads % tp or (shape.kv_heads % tp and tp % shape.kv_heads):
        return f"{shape.heads} heads and {shape.kv_heads} KV heads do not split over {tp} cards"
    widths = [shape.intermediate or tp, *([shape.expert_intermediate] if shape.experts else [])]
    if odd := [width for width in widths if width % tp]:
        return f"an MLP {odd[0]} wide does not split over {tp} cards"
    if format_facts(form).rank == 2 and tp > 1:
        if not format_facts(form).tensor_parallel:
            return f"{form} does not split over cards"
        if odd := [width // tp for width in widths if width // tp % GROUP_SIZE]:
            return f"{odd[0]} columns a card are not whole groups of {GROUP_SIZE}"
    if layout.pp > shape.layers:
        return f"{shape.layers} layers do not make {layout.pp} stages"
    return ""


def fit(wish: Wish, layout: Layout, form: Format, release: Release, *, least: bool = False) -> Fit | Misfit:
    """The first settings that hold the wish, at the longest context that is acceptable.

    `least` asks for the smallest memory that serves the least context, for a device that is to be shared.
    """
    if reason := refusal(wish, layout, form, release):
        return Misfit(reason=reason)
    contexts = _contexts(wish, release)
    if not contexts:
        window = wish.model.shape.sliding_window
        return Misfit(
            reason=f"vLLM {release.vllm} cuts the context of such a model down to its window, {window}"
        )
    if least:
        return _fit_least(wish, layout, form, release, contexts[-1])
    frugal = _Draft(wish, layout, form, release, contexts[-1], ladder(wish.concurrency)[-1])
    if not frugal.holds():
        return frugal.misfit()
    for context in contexts[:-1]:
        longer = _fit_context(wish, layout, form, release, context)
        # A context that nobody asked for is not worth frugal settings.
        if longer is not None and longer.rung not in ladder(wish.concurrency)[-3:]:
            return _checked(wish, longer)
    return _checked(wish, _fit_context(wish, layout, form, release, contexts[-1]) or frugal.fit())


def _contexts(wish: Wish, release: Release) -> tuple[int, ...]:
    """Those of the wish that this vLLM can serve, longest first; none where one is wished for that it
    cannot."""
    most = longest(wish.model.shape, release)
    possible = tuple(context for context in wish.contexts if context <= most)
    return possible or (() if wish.context else (most,))


def longest(shape: Shape, release: Release) -> int:
    """Tokens that this vLLM serves at most: early ones could not mix sliding and full attention and cut the
    context of such models (Gemma 2) down to the window."""
    mixed = 0 < shape.sliding_layers < shape.layers
    early = release.version < INTERLEAVED_SINCE
    return min(shape.context_max, shape.sliding_window) if mixed and early else shape.context_max


def _checked(wish: Wish, found: Fit) -> Fit | Misfit:
    if found.speed.decode_one < wish.min_tokens_per_s:
        return Misfit(
            reason=f"decodes {found.speed.decode_one:.1f} tokens/s, {wish.min_tokens_per_s:g} are asked for",
            too_slow=found.speed.decode_one,
        )
    return found


def _fit_context(wish: Wish, layout: Layout, form: Format, release: Release, context: int) -> Fit | None:
    """The most generous settings whose batch the KV cache can feed, else the most generous of the frugal ones
    that hold the context: CUDA graphs are given up last. None where nothing holds it."""
    rungs = ladder(wish.concurrency)
    frugal = _Draft(wish, layout, form, release, context, rungs[-1])
    if not frugal.holds():
        return None
    for rung in rungs[:-1]:
        # A larger batch leaves less for the cache: what the most frugal cache cannot feed needs no try.
        if rung in rungs[-3:] or frugal.feeds(rung.max_num_seqs):
            draft = _Draft(wish, layout, form, release, context, rung)
            if draft.holds() and (rung in rungs[-3:] or draft.feeds(rung.max_num_seqs)):
                return draft.fit()
    return frugal.fit()


def _fit_least(wish: Wish, layout: Layout, form: Format, release: Release, context: int) -> Fit | Misfit:
    for rung in ladder(wish.concurrency)[-3:]:
        draft = _Draft(wish, layout, form, release, context, rung)
        if draft.holds():
            return _checked(wish, draft.fit(tokens=context * wish.concurrency))
    return draft.misfit()


def with_curve(wish: Wish, found: Fit, release: Release) -> Fit:
    """The fit with the speeds of smaller batches: only what is chosen is worth working them out."""
    draft = _Draft(wish, found.layout, found.format, release, found.context, found.rung)
    return msgspec.structs.replace(found, speed=curved(found.speed, *draft.staged()))


def enlarge(wish: Wish, found: Fit, extra_bytes: int, release: Release) -> Fit:
    """The fit on a shared device with so much more memory: a longer context where none was wished for, then
    the largest batch that the KV cache feeds."""
    room_bytes = found.needed_bytes + max(0, extra_bytes)
    for context in (length for length in _contexts(wish, release) if length >= found.context):
        for rung in ladder(wish.concurrency):
            draft = _Draft(wish, found.layout, found.format, release, context, rung)
            tokens = min(draft.tokens_within(room_bytes), draft.kv_tokens)
            feeds = tokens >= rung.max_num_seqs * min(TOKENS_A_SEQUENCE, context)
            if tokens >= context * wish.concurrency and (feeds or rung == found.rung):
                return draft.fit(tokens=tokens)
    return found


class _Draft:
    """One combination of settings, worked out."""

    def __init__(
        self, wish: Wish, layout: Layout, form: Format, release: Release, context: int, rung: Rung
    ) -> None:
        self._wish, self._layout, self._form, self._release = wish, layout, form, release
        self._context, self._rung = context, rung
        self._v1 = release.version.runs_v1(layout.capability)
        # Neither graphs nor what is outside the budget depend on how the layers are split.
        self.utilization = self._utilization(self._ranks([1] * layout.pp))
        self._partition = self._split()
        self.seats = self._seats(self._ranks(self._partition))

    def _ranks(self, partition: Sequence[int]) -> list[Rank]:
        layout, rung, last = self._layout, self._rung, self._layout.pp - 1
        return [
            Rank(
                shape=self._wish.model.shape,
                format=self._form,
                vllm=self._release.version,
                v1=self._v1,
                batched_tokens=rung.batched_tokens,
                max_num_seqs=rung.max_num_seqs,
                tp=layout.tp,
                pp=layout.pp,
                layers=layers,
                first=stage == 0,
                last=stage == last,
                eager=rung.eager,
                peers=layout.link != "host",
            )
            for stage, layers in enumerate(partition)
        ]

    def _seats(self, ranks: Sequence[Rank]) -> list[tuple[Rank, Room]]:
        """Every device with the rank that it runs."""
        return [
            (rank, room) for rank, rooms in zip(ranks, self._layout.stages, strict=True) for room in rooms
        ]

    def _utilization(self, ranks: Sequence[Rank]) -> float:
        """One number for all ranks: what the tightest device has free, in whole percents."""
        shares = []
        for rank, room in self._seats(ranks):
            outside = memory.outside_bytes(rank, room.device.memory_bytes) + memory.graphs_bytes(rank)
            free = room.usable_bytes - outside - MARGIN_BYTES
            shares.append(100 * free // room.cuda_bytes)
        return max(0, min(shares)) / 100

    def _split(self) -> tuple[int, ...]:
        """Layers of each stage, for the KV cache that the wish needs."""
        layout, layers = self._layout, self._wish.model.shape.layers
        if layout.pp == 1:
            return (layers,)
        one, two = self._ranks([1] * layout.pp), self._ranks([2] * layout.pp)
        bounds = [
            StageBound(
                seconds=1.0 / slowest([room.card for room in rooms]).bandwidth,
                fixed_bytes=2 * self._least(first) - self._least(second),
                layer_bytes=self._least(second) - self._least(first),
                room_bytes=int(min(room.cuda_bytes for room in rooms) * self.utilization),
            )
            for first, second, rooms in zip(one, two, layout.stages, strict=True)
        ]
        return split_layers(layers, bounds)

    def _least(self, rank: Rank) -> int:
        """Bytes of a rank's budget that the wish takes at least."""
        kv = memory.kv_bytes_for_context(
            rank, self._context, sequences=self._sequences, block=KV_BLOCK_TOKENS
        )
        return memory.weights_bytes(rank) + memory.activation_bytes(rank) + memory.inside_bytes(rank) + kv

    @property
    def _sequences(self) -> int:
        """In V0 every stage of a pipeline hands out its own part of the blocks: one request sees 1/PP of
        them."""
        return self._wish.concurrency * (1 if self._v1 else self._layout.pp)

    @cached_property
    def kv_tokens(self) -> int:
        """Tokens for requests of the context. Every rank gets as many blocks as the one that has least."""
        least = min(
            memory.kv_tokens(
                rank,
                memory.kv_budget(rank, room.cuda_bytes, self.utilization),
                context=self._context,
                block=KV_BLOCK_TOKENS,
            )
            for rank, room in self.seats
        )
        return least if self._v1 else least // self._layout.pp

    def holds(self) -> bool:
        """Whether all requests that are wished for fit at full context."""
        return self.kv_tokens >= self._context * self._wish.concurrency

    def feeds(self, sequences: int) -> bool:
        """Whether the cache has something for each of so many sequences."""
        return self.kv_tokens >= sequences * min(TOKENS_A_SEQUENCE, self._context)

    def tokens_within(self, room_bytes: int) -> int:
        """Tokens of the KV cache where the whole of one device's share is so large."""
        rank, room = self.seats[0]
        empty = self._memory(rank, room, 0)
        kv_bytes = room_bytes - (empty.total_bytes - empty.kv_cache_bytes)
        return memory.kv_tokens(self.seats[0][0], kv_bytes, context=self._context, block=KV_BLOCK_TOKENS)

    def misfit(self) -> Misfit:
        """The device that is tightest, with the numbers behind it."""
        rank, room = max(
            self.seats, key=lambda seat: self._least(seat[0]) - int(seat[1].cuda_bytes * self.utilization)
        )
        budget, weights = int(room.cuda_bytes * self.utilization), memory.checkpoint_bytes(rank)
        each = " a card" if len(self._layout.rooms) > 1 else ""
        missing = max(1, self._least(rank) - budget)
        if weights > budget:
            reason = f"{gib2(weights)} of weights{each}, {gib(room.cuda_bytes)} in all, {gib(budget)} usable"
            return Misfit(reason=reason, missing_bytes=missing, context_helps=False)
        compute = memory.activation_bytes(rank) + memory.inside_bytes(rank)
        compute += memory.weights_bytes(rank) - weights
        needed = self._context * self._wish.concurrency
        reason = (
            f"the KV cache would hold {self.kv_tokens:,} tokens, {needed:,} are needed: {gib2(weights)} of "
            f"weights and {gib2(compute)} to compute{each}, {gib(budget)} usable"
        )
        return Misfit(reason=reason, missing_bytes=missing)

    def fit(self, *, tokens: int | None = None) -> Fit:
        """With the whole memory, or with a KV cache of so many `tokens` (for a device that is shared)."""
        whole = tokens is None
        tokens = self.kv_tokens if tokens is None else tokens
        memories = tuple(self._memory(rank, room, tokens) for rank, room in self.seats)
        return Fit(
            layout=self._layout,
            format=self._form,
            context=self._context,
            rung=self._rung,
            utilization=self.utilization if whole else self._utilization_for(memories[0]),
            kv_bytes=min(one.kv_cache_bytes for one in memories),
            kv_tokens=tokens,
            partition=self._partition if self._layout.pp > 1 else (),
            memories=memories,
            speed=self._speed(tokens),
        )

    def _utilization_for(self, taken: Memory) -> float:
        """What grants the KV cache of `taken` on a shared device, rounded up to a hundredth of a percent:
        whole percents of several neighbours would add up to more than the card has."""
        rank, room = self.seats[0]
        budget = (
            taken.weights_bytes + taken.activation_bytes + taken.kv_cache_bytes + memory.inside_bytes(rank)
        )
        return -(-10_000 * budget // room.cuda_bytes) / 10_000

    def _memory(self, rank: Rank, room: Room, tokens: int) -> Memory:
        """`tokens` on every rank alike: what a larger card has beyond that stays free."""
        total = tokens * (1 if self._v1 else self._layout.pp)
        one = memory.kv_bytes_of_sequence(rank, self._context, block=KV_BLOCK_TOKENS)
        kv = int(total / self._context * one) + KV_BLOCK_TOKENS * memory.rank_kv_bytes_per_token(rank)
        return Memory(
            weights_bytes=memory.weights_bytes(rank),
            kv_cache_bytes=kv,
            activation_bytes=memory.activation_bytes(rank),
            overhead_bytes=memory.inside_bytes(rank) + memory.outside_bytes(rank, room.device.memory_bytes),
            graphs_bytes=memory.graphs_bytes(rank),
        )

    def _speed(self, tokens: int) -> Speed:
        constants, stages = self.staged()
        return performance.predict(
            constants,
            stages,
            context=self._context,
            max_num_seqs=self._rung.max_num_seqs,
            kv_tokens=tokens,
        )

    def staged(self) -> tuple[Constants, list[Stage]]:
        """What speeds are worked out from."""
        ranks = self._ranks(self._partition)
        cards = [slowest([room.card for room in rooms]) for rooms in self._layout.stages]
        version, capability = self._release.version, self._layout.capability
        native = kernel(self._form, capability, version) == "native"
        stages = [
            Stage(rank=rank, card=card if native else weight_only(card), link=self._layout.link)
            for rank, card in zip(ranks, cards, strict=True)
        ]
        return performance.constants_of(stages, "vllm", version), stages
