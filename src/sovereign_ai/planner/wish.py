"""What every plan starts from: a model and how it is to be served. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sovereign_ai.config import ModelEntry
from sovereign_ai.errors import PlanError
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import Rank
from sovereign_ai.spec import Format, Memory, Model, Noun

MAX_NUM_SEQS = 64
"""Requests that vLLM computes together on a CPU, and texts in one embedding batch."""

EMBEDDING_PEAK_TOKENS = MAX_NUM_SEQS * 512
"""Tokens of the embedding batch that memory is planned for: 64 texts of 512 tokens. Few texts are longer; a
full batch of longer ones takes more than planned."""

CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
"""Contexts that are tried, longest first, where none is wished for."""

LEAST_CONTEXT = 8192
"""What a model without a wish gets at least, where it was made for that much: a document and some turns."""


class Wish(Noun, frozen=True, kw_only=True):
    """One model to place. `context` in tokens, None: the longest that fits. `formats` are those that may be
    used (none: any), `stored` those that the store has. `remote_code`: Python code that
    came with the model may run. `where` says file and line of the wish."""

    model: Model
    context: int | None = None
    priority: int = 1
    share: float = 1.0
    min_tokens_per_s: float = 0.0
    concurrency: int = 1
    replicas: int = 1
    formats: tuple[Format, ...] = ()
    stored: tuple[Format, ...] = ()
    tier: str | None = None
    devices: tuple[str, ...] = ()
    remote_code: bool = False
    where: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def at(self) -> str:
        """`factory.yaml:7: `, for the beginning of a message; empty for a wish of no file."""
        return f"{self.where}: " if self.where else ""

    @property
    def contexts(self) -> tuple[int, ...]:
        """Contexts to try, longest first."""
        most = self.model.shape.context_max
        if self.context is not None:
            return (self.context,)
        least = min(LEAST_CONTEXT, most)
        return tuple(dict.fromkeys((most, *(length for length in CONTEXTS if least <= length < most), least)))

    @property
    def least_context(self) -> int:
        return self.contexts[-1]


def wish_for(model: Model, entry: ModelEntry | None = None, *, stored: Iterable[Format] = ()) -> Wish:
    """The wish of an entry of factory.yaml; all defaults without one.

    Raises PlanError where a wished context is longer than the model allows.
    """
    if entry is None:
        return Wish(model=model, stored=tuple(stored))
    wish = Wish(
        model=model,
        context=entry.context,
        priority=entry.priority,
        share=entry.share,
        min_tokens_per_s=entry.min_tokens_per_s,
        concurrency=entry.concurrency,
        replicas=entry.replicas,
        formats=entry.quantization,
        stored=tuple(stored),
        tier=entry.tier,
        devices=entry.devices,
        remote_code=entry.remote_code,
        where=entry.where,
    )
    most = model.shape.context_max
    if entry.context is not None and entry.context > most:
        raise PlanError(
            f"{wish.at}a context of {entry.context} tokens for `{model.name}` is more than the {most} it was "
            "made for",
            f"set its context to {most} or less",
        )
    return wish


def embedding_context(wish: Wish) -> int:
    """Embedding models keep nothing between requests: they get all the context they were made for."""
    return wish.context or wish.model.shape.context_max


def embedding_arguments(wish: Wish) -> dict[str, int]:
    return {"max_tokens": embedding_context(wish), "max_batch": MAX_NUM_SEQS}


def embedding_memory(wish: Wish, overhead_bytes: int) -> Memory:
    """An embedding model has no KV cache. The backend computes in float32."""
    shape = wish.model.shape
    rank = Rank(
        shape=shape,
        format="float32",
        width=memory.FLOAT32,
        vllm=memory.SNAPSHOT_LATE_SINCE,
        batched_tokens=min(MAX_NUM_SEQS * embedding_context(wish), EMBEDDING_PEAK_TOKENS),
        max_num_seqs=0,
    )
    return Memory(
        weights_bytes=shape.parameters * memory.FLOAT32,
        kv_cache_bytes=0,
        activation_bytes=memory.activation_bytes(rank),
        overhead_bytes=overhead_bytes,
    )
