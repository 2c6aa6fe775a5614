"""How fast a deployment will be: a roofline over bytes and operations, with constants as measured. Pure.

One step of one pipeline stage costs

    layers · (layer_s + attention_s · context) · CLOCK_HZ / clock     kernels wait for each other
    + the larger of  bytes read · read[memory, width] / bandwidth     weights once, KV of every sequence
               and   operations / (compute · peak)
    + two all-reduces a layer over the link there is

and a whole step `step_s + sequence_s · batch` more for scheduling and sampling. Constants belong to one
engine; catalog/speed.toml says what they were fitted on. `sovereign calibrate` replaces them by what one's
own cards do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from sovereign_ai.catalog.formats import format_facts
from sovereign_ai.catalog.gpus import GpuFacts
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.speed import Constants, MemoryKind, constants_for
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import Rank
from sovereign_ai.spec import Format, LinkKind, Noun, Speed

CLOCK_HZ = 1.7e9
"""The clock that latencies are stated at: about what the cards of the training data boost to."""

ECC_SHARE = 15 / 16
"""Bandwidth that is left for data where ECC bits lie in the same GDDR memory; such cards show 15/16 of
their memory too (23,034 of 24,576 MiB). Without it an A40 and an L40S are predicted 8 and 7 % too fast,
with it 2."""

SWITCHED_BYTES_PER_S = 150e9
"""The same over NVLink of data-centre cards with HBM, mostly switched: an estimate between the 50 of a
bridge and the 329 GB/s bus bandwidth that two H100 reach with a gigabyte."""

PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.97e9, 5: 3.94e9, 6: 7.56e9}
HOST_SHARE = 0.2
"""Bytes a second of one PCIe lane by generation, and the part of a slot that an all-reduce through host
memory reaches: 6 GB/s of the 31.5 of a 4.0 x16 slot."""

PROMPT_LENGTHS = (512, 2048, 8192)
"""Prompt lengths, in tokens, that time to first token is told for."""

TYPICAL_CONTEXT = 1024
"""Tokens that a sequence has on average while a full batch decodes: a chat of a few turns."""

LINK_BYTES_PER_S: dict[LinkKind, float] = {"nvlink": 50e9, "p2p": 12e9, "host": 6e9}
LINK_LATENCY_S: dict[LinkKind, float] = {"nvlink": 12e-6, "p2p": 15e-6, "host": 20e-6}
"""An all-reduce between two cards: bytes a second and the least time, over NVLink, PCIe 4.0 peer-to-peer,
and through host memory. Latencies by what single streams at TP=2 and 4 take beyond their bytes (four speeds
of benchmarks/data/vllm_speed_points.csv); bandwidths, and peer-to-peer, are estimates."""


class Card(Noun, frozen=True, kw_only=True):
    """One device as the roofline sees it: bytes/s and operations/s at their peak. `constants` were measured
    on this very card and win over the engine's own. Links to other cards in bytes/s: through the host
    (None: as usual), and over NVLink."""

    name: str
    kind: MemoryKind
    bandwidth: float
    clock_hz: float
    flops: float
    low_ops: float | None = None
    low_formats: frozenset[Format] = frozenset()
    constants: Constants | None = None
    host_bytes_per_s: float | None = None
    bridge_bytes_per_s: float = LINK_BYTES_PER_S["nvlink"]

    @property
    def key(self) -> tuple[object, ...]:
        """Cards with the same key are equally fast."""
        return self.name, self.kind, self.bandwidth, self.clock_hz, self.flops


class Stage(Noun, frozen=True, kw_only=True):
    """A pipeline stage: one of its (equal) ranks and the slowest card that such a rank is on."""

    rank: Rank
    card: Card
    link: LinkKind = "host"


def gpu_card(facts: GpuFacts) -> Card:
    """`flops` with FP32 accumulation, as attention and cuBLAS use in vLLM; FP32 where there are no FP16
    units."""
    kind: MemoryKind = "hbm" if facts.hbm else "gddr"
    share = ECC_SHARE if facts.inline_ecc else 1.0
    native: set[Format] = {"int8"} if facts.int8_ops and facts.capability >= (7, 5) else set()
    if facts.fp8:
        native.add("fp8")
    return Card(
        name=facts.name,
        kind=kind,
        bandwidth=facts.bandwidth_bytes_per_s * share,
        clock_hz=facts.clock_hz or CLOCK_HZ,
        flops=facts.fp16_flops_fp32_accumulate or facts.fp32_flops or 1e12,
        low_ops=facts.int8_ops,
        low_formats=frozenset(native),
        bridge_bytes_per_s=SWITCHED_BYTES_PER_S if facts.hbm else LINK_BYTES_PER_S["nvlink"],
    )


def slowest(cards: Sequence[Card]) -> Card:
    """The card that paces a group: the least of everything."""
    first = min(cards, key=lambda card: card.bandwidth)
    return Card(
        name=first.name,
        kind=first.kind,
        bandwidth=first.bandwidth,
        clock_hz=min(card.clock_hz for card in cards),
        flops=min(card.flops for card in cards),
        low_ops=min((card.low_ops or 0.0 for card in cards), default=0.0) or None,
        low_formats=frozenset.intersection(*(card.low_formats for card in cards)),
        constants=first.constants,
        host_bytes_per_s=min(
            (card.host_bytes_per_s for card in cards if card.host_bytes_per_s), default=None
        ),
        bridge_bytes_per_s=min(card.bridge_bytes_per_s for card in cards),
    )


def constants_of(stages: Sequence[Stage], engine: str, version: VllmVersion) -> Constants:
    """What was measured on the slowest card where it was, else what the engine is known for."""
    paced = min(stages, key=lambda stage: stage.card.bandwidth)
    return paced.card.constants or constants_for(engine, version)


def weight_only(card: Card) -> Card:
    """The card for weights that are widened before they are multiplied: 16-bit arithmetic."""
    return msgspec.structs.replace(card, low_formats=frozenset())


def read_key(kind: MemoryKind, form: Format) -> str:
    """`gddr-4`: which entry of Constants.read applies."""
    bits = {0: 16, 1: 8, 2: 4}[format_facts(form).rank]
    return f"{kind}-{bits}"


def weights_read_bytes(rank: Rank, batch: int) -> float:
    """Bytes of weights that one step reads: of an embedding table only the rows asked for, and of the experts
    those that at least one of `batch` tokens is sent to (each picks evenly)."""
    shape = rank.shape
    total = float(memory.weights_bytes(rank)) - memory.rope_cache_bytes(shape, rank.width)
    if rank.first and not (rank.last and shape.tied_head):
        total -= shape.vocabulary * shape.hidden * rank.width / rank.tp
    if not shape.experts:
        return total
    idle = (1 - shape.experts_per_token / shape.experts) ** batch
    per_parameter = format_facts(rank.format).bytes_per_parameter
    return total - idle * expert_parameters(rank) * per_parameter / rank.tp


def expert_parameters(rank: Rank) -> float:
    """Parameters of this stage's experts, all ranks together: three matrices each."""
    shape = rank.shape
    moe_layers = max(0, shape.layers - shape.dense_layers) * rank.depth / shape.layers
    return 3.0 * shape.hidden * shape.expert_intermediate * shape.experts * moe_layers


def active_parameters(rank: Rank) -> float:
    """Parameters of this rank that one token is multiplied with."""
    shape = rank.shape
    linear = memory.linear_parameters(shape) * rank.depth / shape.layers
    if shape.experts:
        linear -= expert_parameters(rank) * (1 - shape.experts_per_token / shape.experts)
    head = shape.vocabulary * shape.hidden if rank.last else 0
    return (linear + head) / rank.tp


def stage_step_s(constants: Constants, stage: Stage, batch: int, context: float, *, cards: int = 1) -> float:
    """Seconds of one decode step of `batch` sequences of `context` tokens in this stage. `cards` of the whole
    deployment: more than one cost `split_layer_s` a layer."""
    rank, card = stage.rank, stage.card
    split = constants.split_layer_s if cards > 1 else 0.0
    latency = rank.depth * (constants.layer_s + split + constants.attention_s * context)
    return (
        latency * CLOCK_HZ / card.clock_hz
        + max(
            _read_s(constants, stage, batch, context),
            operations_s(constants, stage, batch, batch * context),
        )
        + all_reduces_s(stage, batch)
    )


def _read_s(constants: Constants, stage: Stage, batch: int, context: float) -> float:
    rank, card = stage.rank, stage.card
    weights = weights_read_bytes(rank, batch) * constants.read[read_key(card.kind, rank.format)]
    cached = batch * memory.kv_bytes_of_sequence(rank, max(1, round(context)), block=1)
    return (weights + cached * constants.read[f"{card.kind}-16"]) / card.bandwidth


def operations_s(constants: Constants, stage: Stage, tokens: float, pairs: float) -> float:
    """Seconds of arithmetic for `tokens` new tokens that attend to `pairs` (token, earlier token) pairs."""
    rank, card, shape = stage.rank, stage.card, stage.rank.shape
    low = card.low_ops if rank.format in card.low_formats else None
    attention = 4.0 * pairs * shape.heads * shape.head_dim * rank.depth / rank.tp
    matrices = 2.0 * active_parameters(rank) * tokens
    return (matrices / (low or card.flops) + attention / card.flops) / constants.compute


def all_reduces_s(stage: Stage, tokens: float) -> float:
    """Two all-reduces a layer, each 2·(TP-1)/TP of the hidden states over the link."""
    rank = stage.rank
    if rank.tp == 1:
        return 0.0
    size = tokens * rank.shape.hidden * rank.width * 2 * (rank.tp - 1) / rank.tp
    one = LINK_LATENCY_S[stage.link] * math.log2(rank.tp) + size / link_bytes_per_s(stage)
    return 2 * rank.depth * one


def link_bytes_per_s(stage: Stage) -> float:
    """What an all-reduce reaches between the ranks of a stage: no more than the narrowest slot lets
    through."""
    if stage.link == "nvlink":
        return stage.card.bridge_bytes_per_s
    usual = LINK_BYTES_PER_S[stage.link]
    return min(usual, stage.card.host_bytes_per_s or usual)


def decode_one(constants: Constants, stages: Sequence[Stage], context: float) -> float:
    """Tokens a second of one sequence alone: it passes every stage in turn."""
    cards = sum(stage.rank.tp for stage in stages)
    steps = sum(stage_step_s(constants, stage, 1, context, cards=cards) for stage in stages)
    hops = constants.hop_s * (len(stages) - 1)
    return 1.0 / (steps + hops + constants.step_s + constants.sequence_s)


def decode_full(constants: Constants, stages: Sequence[Stage], batch: int, context: float) -> float:
    """Tokens a second of `batch` sequences together. With several stages the batch is cut into as many parts,
    which are in different stages at the same time; the slowest stage sets the pace, and a batch smaller than
    the stages leaves some idle."""
    cards = sum(stage.rank.tp for stage in stages)
    parts = min(len(stages), batch)
    part = -(-batch // parts)
    times = [stage_step_s(constants, stage, part, context, cards=cards) for stage in stages]
    step = constants.step_s + constants.sequence_s * part
    alone = sum(times) + step + constants.hop_s * (len(stages) - 1)
    return batch / max(parts * (max(times) + step), alone)


def prefill_s(constants: Constants, stages: Sequence[Stage], prompt: int) -> float:
    """Seconds until the first token of a prompt alone, computed in steps of `batched_tokens`. Stages work on
    different steps at the same time: the first step fills the pipeline, the others follow at its pace."""
    size = stages[0].rank.batched_tokens
    starts = [*range(0, prompt, size), prompt]
    cards = sum(stage.rank.tp for stage in stages)
    total = 0.0
    for number, (start, end) in enumerate(pairwise(starts)):
        times = [_chunk_s(constants, stage, start, end, cards) for stage in stages]
        total += (sum(times) if number == 0 else max(times)) + constants.step_s
    return total + constants.hop_s * (len(stages) - 1)


def _chunk_s(constants: Constants, stage: Stage, start: int, end: int, cards: int) -> float:
    tokens = end - start
    pairs = tokens * (start + tokens / 2)
    split = constants.split_layer_s if cards > 1 else 0.0
    latency = stage.rank.depth * (constants.layer_s + split) * CLOCK_HZ / stage.card.clock_hz
    reading = _read_s(constants, stage, 1, end)
    return (
        latency + max(reading, operations_s(constants, stage, tokens, pairs)) + all_reduces_s(stage, tokens)
    )


def batch_curve(
    constants: Constants, stages: Sequence[Stage], context: float, most: int
) -> tuple[tuple[int, float], ...]:
    """(batch, tokens a second) for 1, 2, 4, … up to `most`: to saturation."""
    sizes = sorted({*(1 << power for power in range(most.bit_length())), most})
    return tuple((size, decode_full(constants, stages, size, context)) for size in sizes)


def curved(speed: Speed, constants: Constants, stages: Sequence[Stage]) -> Speed:
    """The speed with its batch curve."""
    points = batch_curve(constants, stages, speed.batch_context, speed.batch)
    return msgspec.structs.replace(speed, curve=tuple((size, round(rate, 1)) for size, rate in points))


def predict(
    constants: Constants, stages: Sequence[Stage], *, context: int, max_num_seqs: int, kv_tokens: int
) -> Speed:
    """All speeds of a deployment. A full batch is what the KV cache holds at TYPICAL_CONTEXT tokens each."""
    typical = min(TYPICAL_CONTEXT, context)
    batch = max(1, min(max_num_seqs, kv_tokens // typical))
    lengths = [length for length in PROMPT_LENGTHS if length <= context] or [context]
    return Speed(
        decode_one=round(decode_one(constants, stages, typical), 1),
        decode_full=round(decode_full(constants, stages, batch, typical), 1),
        batch=batch,
        batch_context=typical,
        prefill=round(lengths[-1] / prefill_s(constants, stages, lengths[-1])),
        ttft_s={length: round(prefill_s(constants, stages, length), 3) for length in lengths},
    )
