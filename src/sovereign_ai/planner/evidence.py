"""Tables of what others measured → cases that the formulas can be held against. Pure: rows come as mappings.

Two formats: start-up logs of vLLM (settings, and what it left for the KV cache) and decode speeds. Cells that
are empty were not stated; what vLLM's own default would be is assumed and named in `assumed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.errors import ConfigError
from sovereign_ai.planner import memory
from sovereign_ai.planner.calibration import Point, PromptPoint
from sovereign_ai.planner.memory import GIB, Rank
from sovereign_ai.planner.performance import gpu_card
from sovereign_ai.spec import Format, Noun, Shape

Row = Mapping[str, str]

BLOCK = 16
DEFAULT_SEQS = 256
DEFAULT_UTILIZATION = 0.9
LONG_CONTEXT = 32768
"""V0 turns chunked prefill on by itself above this max_model_len (vllm/engine/arg_utils.py)."""

CHUNK_EARLY, CHUNK = 512, 2048
"""Its step of then: 512 tokens at first, 2,048 since 0.6.6 and in V1's server."""

LARGE_CARD_GIB, LARGE_CHUNK = 70, 8192
"""V1's server computes longer steps on cards from this memory on, A100s excepted
(vllm/engine/arg_utils.py)."""

LABEL_NOISE = re.compile(r"\bx ?\d+\b|\bWSL2?\b|\(.*?\)", re.IGNORECASE)
"""What labels of machines say beside the card's name."""

FORMATS: tuple[tuple[str, Format], ...] = (
    (r"bnb|nf4", "bnb4"),
    (r"awq|wna16", "awq"),
    (r"gptq.?(int)?8|8.?bit", "int8"),
    (r"gptq", "gptq"),
    (r"w4a16|int4|q4|4\.\dbpw|4.?bit", "w4a16"),
    (r"fp8|w8a16", "fp8"),
    (r"int8|w8a8|q8", "int8"),
    (r"fp32|float32|f32", "float32"),
    (r"bf16|bfloat16", "bfloat16"),
    (r"f16|fp16|float16", "float16"),
)


class Skipped(Noun, frozen=True, kw_only=True):
    """A row that nothing can be predicted for."""

    row: str
    reason: str


class MemoryCase(Noun, frozen=True, kw_only=True):
    """One start-up log: the ranks that differ, and what vLLM said. `kv_tokens` None: it does not say;
    `refused`: it did not start."""

    label: str
    grade: str
    ranks: tuple[Rank, ...]
    cuda_total_bytes: int
    utilization: float
    context: int
    kv_tokens: int | None
    refused: bool
    assumed: tuple[str, ...] = ()

    @property
    def predicted_bytes(self) -> int:
        """KV cache of the rank that has least: vLLM gives all of them as many blocks."""
        return min(memory.kv_budget(rank, self.cuda_total_bytes, self.utilization) for rank in self.ranks)

    @property
    def predicted_tokens(self) -> int:
        kv = self.predicted_bytes
        return min(max(0, kv // memory.rank_kv_bytes_per_token(rank)) for rank in self.ranks) // BLOCK * BLOCK

    @property
    def predicted_to_start(self) -> bool:
        return self.predicted_tokens >= (self.context if "max_model_len" not in self.assumed else 1)


def number(text: str | None) -> float | None:
    """The first number of a cell; None for an empty one."""
    found = re.search(r"-?\d+(?:\.\d+)?", text or "")
    return float(found[0]) if found else None


def label_of(row: Row) -> str:
    """What a start-up log is called in tables."""
    return f"{row['gpu']} · {row['model']} · {row['quant']} · vLLM {row['vllm']}"


def weights_format(text: str) -> Format | None:
    """`bnb-4bit + LoRA` → bnb4."""
    return next((kind for pattern, kind in FORMATS if re.search(pattern, text.lower())), None)


def memory_cases(rows: Iterable[Row]) -> tuple[list[MemoryCase], list[Skipped]]:
    """Start-up logs that say enough, and the others with the reason."""
    cases: list[MemoryCase] = []
    skipped: list[Skipped] = []
    for row in rows:
        made = _memory_case(row)
        (cases if isinstance(made, MemoryCase) else skipped).append(made)  # type: ignore[arg-type]
    return cases, skipped


def _memory_case(row: Row) -> MemoryCase | Skipped:
    label = label_of(row)
    known, kind, total = find_shape(row["model"]), weights_format(row["quant"]), number(row["cuda_total_gib"])
    missing = (
        (known is None, f"no shape known for `{row['model']}`"),
        (kind is None, f"weights format `{row['quant']}` not understood"),
        (total is None, "the card's memory is not stated"),
    )
    for is_missing, reason in missing:
        if is_missing:
            return Skipped(row=label, reason=reason)
    assert known is not None and kind is not None and total is not None  # noqa: S101
    try:
        version = VllmVersion.parse(row["vllm"])
    except ConfigError as error:
        return Skipped(row=label, reason=error.message)
    return _case(row, label, known.shape, kind, total, version)


def _case(row: Row, label: str, shape: Shape, kind: Format, total: float, version: VllmVersion) -> MemoryCase:
    assumed: list[str] = []

    def stated(key: str, default: float) -> float:
        value = number(row.get(key))
        if value is None:
            assumed.append(key)
            return default
        return value

    facts = find_gpu(LABEL_NOISE.sub(" ", row["gpu"]))
    v1 = version.runs_v1(facts.compute_capability if facts else "8.0")
    context = int(stated("max_model_len", shape.context_max))
    batched = number(row.get("max_num_batched_tokens"))
    if batched is None and "max_model_len" in assumed:
        # The step would be as long as the context, which nobody stated: vLLM's smallest is the likelier
        # guess.
        batched = CHUNK
    tp = int(number(row.get("tp")) or 1)
    large = total >= LARGE_CARD_GIB and "A100" not in row["gpu"].upper()
    rank = Rank(
        shape=shape,
        format=kind,
        vllm=version,
        v1=v1,
        tp=tp,
        batched_tokens=int(batched or _default_batched(version, v1, context, large=large)),
        max_num_seqs=int(stated("max_num_seqs", DEFAULT_SEQS)),
        eager=row.get("enforce_eager") == "y",
    )
    rank = msgspec.structs.replace(
        rank, kv_width=_kv_width(rank, number(row.get("kv_bytes_per_token_per_gpu")))
    )
    utilization = stated("gpu_memory_utilization", DEFAULT_UTILIZATION)
    observed = _observed_tokens(row)
    return MemoryCase(
        label=label,
        grade=row.get("grade", ""),
        ranks=(rank,),
        cuda_total_bytes=int(total * GIB),
        utilization=utilization,
        context=context,
        kv_tokens=observed,
        refused=observed == 0,
        assumed=tuple(assumed),
    )


def _kv_width(rank: Rank, stated_bytes: float | None) -> int:
    """Bytes of a number in the KV cache: 1 where a token is stated to take half of what 16 bit would."""
    usual = memory.rank_kv_bytes_per_token(rank)
    return 1 if stated_bytes and abs(stated_bytes / usual - 0.5) < KV_TOLERANCE else rank.kv_width


KV_TOLERANCE = 0.02


def _default_batched(version: VllmVersion, v1: bool, context: int, *, large: bool) -> int:
    if v1:
        return LARGE_CHUNK if large else CHUNK
    if context <= LONG_CONTEXT:
        return max(context, CHUNK)
    return CHUNK if version >= VllmVersion.parse("0.6.6") else CHUNK_EARLY


def _observed_tokens(row: Row) -> int | None:
    """Tokens that the log gives: 0 for a refusal; from blocks, else from bytes, where it gives those only."""
    tokens, blocks, kv = (
        number(row.get("kv_tokens")),
        number(row.get("kv_blocks")),
        number(row.get("kv_gib_per_gpu")),
    )
    each = number(row.get("kv_bytes_per_token_per_gpu"))
    if (kv is not None and kv < 0) or blocks == 0 or "refused" in row.get("notes", "").lower():
        return 0
    if tokens is not None:
        return int(tokens)
    if blocks is not None:
        return int(blocks) * BLOCK
    return int(kv * GIB / each) if kv is not None and each else None


def decode_points(rows: Iterable[Row]) -> tuple[list[Point], list[Skipped]]:
    """Measured decode speeds of single sequences, and the rows that cannot be used with the reason."""
    points: list[Point] = []
    skipped: list[Skipped] = []
    for row in rows:
        made = _decode_point(row)
        (points if isinstance(made, Point) else skipped).append(made)  # type: ignore[arg-type]
    return points, skipped


def engine_of(text: str) -> str:
    """`llama.cpp 3e12fbd` → llama.cpp; `vLLM 0.6.3` → vllm."""
    return next(
        (name for name in ("llama.cpp", "vllm", "exllama", "torch") if name in text.lower()), text.lower()
    )


def _decode_point(row: Row) -> Point | Skipped:
    label = f"{row['gpu']} ×{row['n_gpu']} · {row['model']} · {row['quant']} · {row['test']}"
    speed = number(row["decode_tok_s"])
    facts, known, kind = find_gpu(row["gpu"]), find_shape(row["model"]), weights_format(row["quant"])
    if not speed:
        return Skipped(row=label, reason="no decode speed")
    if facts is None or known is None or kind is None:
        what = row["gpu"] if facts is None else row["model"] if known is None else row["quant"]
        return Skipped(row=label, reason=f"`{what}` is not known")
    link, weights = row.get("link_parallel", ""), number(row.get("weights_gib"))
    tp = int(number(re.sub(r".*TP ?= ?(\d+).*", r"\1", link)) or 1) if "TP" in link else 1
    return Point(
        name=facts.name,
        engine=engine_of(row["engine"]),
        card=gpu_card(facts),
        rank=_point_rank(known.shape, kind, tp),
        context=_mean_context(row["test"]),
        tokens_per_s=speed,
        batch=int(number(row.get("batch")) or 1),
        cards=int(number(row["n_gpu"]) or 1),
        weights_bytes=weights * GIB if weights else None,
        source=row.get("source", ""),
    )


def prompt_points(rows: Iterable[Row]) -> list[PromptPoint]:
    """Measured prefill speeds on one card, of rows whose test says how long the prompt was (`pp2048`)."""
    points = []
    for row in rows:
        speed, length = number(row.get("prefill_tok_s")), re.search(r"pp(\d+)", row["test"])
        facts, known, kind = find_gpu(row["gpu"]), find_shape(row["model"]), weights_format(row["quant"])
        if speed and length and facts and known and kind and number(row["n_gpu"]) == 1:
            points.append(
                PromptPoint(
                    name=facts.name,
                    engine=engine_of(row["engine"]),
                    card=gpu_card(facts),
                    rank=_point_rank(known.shape, kind, 1),
                    length=int(length[1]),
                    tokens_per_s=speed,
                )
            )
    return points


def _point_rank(shape: Shape, kind: Format, tp: int) -> Rank:
    return Rank(
        shape=shape,
        format=kind,
        vllm=VllmVersion.parse("0.9.0"),
        batched_tokens=LARGEST_STEP,
        max_num_seqs=1,
        tp=tp,
    )


class Weighed(Noun, frozen=True, kw_only=True):
    """One part of a model's memory, measured by itself on a card."""

    model: str
    what: str
    measured_bytes: int
    predicted_bytes: int

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1 if self.measured_bytes else 0.0


def weighed(row: Row) -> Weighed:
    """A row of a table of measured memory: `kind` is weights, kv (of `size` tokens), step (of `size` tokens),
    graphs (for `size` sequences) or context (of a card of `size` bytes). In bfloat16, on one card.

    Raises ConfigError for a kind or a model that is not known.
    """
    kind, size = row["kind"], int(row["size"] or 0)
    if kind == "context":
        predicted, what = memory.cuda_context_bytes(size), "CUDA context and cuBLAS"
    else:
        predicted, what = _weighed(row["model"], kind, size)
    return Weighed(
        model=row["model"] or "–",
        what=what,
        measured_bytes=int(row["measured_bytes"]),
        predicted_bytes=predicted,
    )


def _weighed(model: str, kind: str, size: int) -> tuple[int, str]:
    known = find_shape(model)
    if known is None:
        raise ConfigError(f"no shape known for `{model}`")
    rank = msgspec.structs.replace(
        _point_rank(known.shape, "bfloat16", 1), batched_tokens=size, max_num_seqs=size
    )
    kinds: dict[str, tuple[Callable[[], int], str]] = {
        "weights": (lambda: memory.weights_bytes(rank), "weights"),
        "kv": (lambda: memory.kv_bytes_of_sequence(rank, size, block=BLOCK), f"KV cache of {size:,} tokens"),
        "step": (
            lambda: memory.activation_bytes(msgspec.structs.replace(rank, max_num_seqs=1)),
            f"peak of a step of {size:,} tokens",
        ),
        "graphs": (lambda: memory.graphs_bytes(rank), f"CUDA graphs for {size} sequences"),
    }
    if kind not in kinds:
        raise ConfigError(f"`{kind}` is no kind of memory", f"one of: context, {', '.join(kinds)}")
    work, what = kinds[kind]
    return work(), what


LARGEST_STEP = 8192
"""Tokens of one step of a measured prompt: benchmarks compute prompts in one piece."""

SHORT_TEST = 256
"""Mean context, in tokens, taken where a test does not say its length: that of the shortest usual test."""


def _mean_context(test: str) -> float:
    """`tg1024` generates so many tokens from nothing: half of them on average; `ctx1024` has that many."""
    generated = re.search(r"tg_?(\d+)", test)
    if generated:
        return int(generated[1]) / 2
    prompt = re.search(r"(?:prompt |ctx ?)(\d+)(k?)", test)
    return int(prompt[1]) * (1024 if prompt[2] else 1) if prompt else SHORT_TEST
