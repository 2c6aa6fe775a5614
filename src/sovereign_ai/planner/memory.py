"""How much memory one rank of a deployment takes: formulas over a model's shape, and overheads as measured.
Pure.

Bytes everywhere. Every constant says what it was fitted on. "Log" means a start-up log of vLLM that prints
what it measured of itself (benchmarks/prediction.py compares these formulas with such logs).
"""

from __future__ import annotations

from sovereign_ai.catalog.formats import format_facts
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.spec import Format, Noun, Shape, Vision

MIB = 1 << 20
GIB = 1 << 30

FLOAT32 = 4
FLOAT16 = 2
"""Widths in bytes; bfloat16 is as wide as float16."""

BATCHED_TOKENS = 2048
"""Tokens that vLLM computes in one step. It is vLLM's own default inside Triton, and set where it is not: a
step as long as the context would need memory for all of it at once."""

VOCABULARY_PADDING = 64
"""vLLM pads embedding and head to a multiple of this many rows on every rank (VocabParallelEmbedding)."""

LOADING_SHARE = 0.005
"""What loading takes beyond the weights at its peak, which vLLM counts as weights: 0 to 1.4 % in nine logs,
median
0.5 (models of 0.5B to 14B; none in those of Llama)."""

PIXELS_A_PATCH = 3 * 2 * 14 * 14
"""Numbers that one patch of an image is given as: colours, frames, height and width (Qwen2-VL's processor).
They arrive as float32, and a 16-bit copy is made."""

VLLM_FRONT_BYTES = int(0.55 * GIB)
"""The process that holds the engine's client side (Triton's Python stub). Measured: vLLM 0.32 for CPUs,
SmolLM2-135M in float32, one machine with 2 cores."""

VLLM_CORE_BYTES = int(0.55 * GIB)
"""vLLM's EngineCore process, measured as VLLM_FRONT_BYTES was."""

VLLM_CPU_WORKER_BYTES = int(1.4 * GIB)
"""vLLM's CPU worker beside weights and KV cache, measured as VLLM_FRONT_BYTES was."""

VLLM_CPU_OVERHEAD_BYTES = VLLM_FRONT_BYTES + VLLM_CORE_BYTES + VLLM_CPU_WORKER_BYTES

EMBEDDING_OVERHEAD_BYTES = VLLM_FRONT_BYTES
"""The embedding backend's one process with torch and transformers: taken to be like vLLM's front process,
which loads the same libraries. Not measured by itself."""

CUDA_CONTEXT_BYTES = int(0.25 * GIB)
CUDA_CONTEXT_LARGE_BYTES = int(0.53 * GIB)
"""CUDA context and cuBLAS at start: 0.23 GiB on 16 GB cards, 0.53 GiB on an H100 (logs)."""

NON_TORCH_BYTES = int(0.08 * GIB)
"""What else than PyTorch takes memory while vLLM profiles itself: 0.04 to 0.28 GiB on one card, median 0.08
(nine logs, vLLM 0.6.5 to 0.8)."""

NCCL_BYTES = int(0.3 * GIB)
"""The same for cards that work together: 0.25 at TP=2, 0.34 to 0.36 GiB at more (three logs). One log of two
H100s has 3.58 GiB: NVLink buffers, which are not modelled."""

GRAPHS_BYTES = int(0.2 * GIB)
GRAPHS_FULL_BYTES = int(0.5 * GIB)
GRAPHS_NCCL_BYTES = int(0.55 * GIB)
GRAPHS_FULL_CAPTURES = 35
"""CUDA graphs: 0.2 to 0.7 GiB a card in logs of one card, upper end at the 35 batch sizes that 256
sequences capture; 2.41 GiB at TP=4 without peer-to-peer (vllm-project/vllm#7553), taken as so much for each
further rank. The upper end, because a promise too high is an out-of-memory crash."""

SAMPLER_V0 = 9.8
"""V0 profiles its sampler at max_num_seqs: peak in units of seqs · vocabulary · 4 bytes. Seven logs of vLLM
0.6.5 to 0.7 lie within 3 % (0.5B to 14B models, vocabularies of 128k and 152k)."""

SAMPLER_V1 = 2.2
"""V1 keeps the logits as float32 and a copy or so: fitted on two logs (vLLM 0.28 on a 4 GB card; a 12 GB card
in 2026); they cannot tell graphs from logits, so this is an upper end."""

RESERVED_FACTOR = 1.84
"""Before 0.6.4 vLLM counted what PyTorch had reserved, not what it had used, as the peak: 3.8 GiB for a
peak of
2.06 (one log of 0.5.5)."""

ALLOCATED_SINCE = VllmVersion.parse("0.6.4")
"""The profile of used memory came with vllm-project/vllm#10511."""

SNAPSHOT_LATE_SINCE = VllmVersion.parse("0.20")
"""From here on vLLM takes its snapshot after NCCL and cuBLAS have started: they are outside its budget."""

HYBRID_KV_SINCE = VllmVersion.parse("0.10")
"""From here on layers with a sliding window keep the window only, beside full layers; before, a model that
has both keeps everything everywhere."""

VISION_PROFILE_V1 = True
"""V1 profiles the image encoder with its largest image; V0 logs show no such peak beside the sampler's."""


class Rank(Noun, frozen=True, kw_only=True):
    """One rank of a deployment: everything that its memory depends on. `layers` are those of its pipeline
    stage; `first` has the embedding, `last` the head and the sampler. `peers`: ranks reach each other
    directly."""

    shape: Shape
    format: Format
    vllm: VllmVersion
    batched_tokens: int
    max_num_seqs: int
    tp: int = 1
    pp: int = 1
    layers: int = 0
    first: bool = True
    last: bool = True
    lead: bool = True
    eager: bool = False
    peers: bool = False
    v1: bool = True
    kv_width: int = FLOAT16
    width: int = FLOAT16

    @property
    def depth(self) -> int:
        """Layers of this stage; all of them where none are given."""
        return self.layers or self.shape.layers


def gib(count: float) -> str:
    """12281336832 → '11.4 GiB'."""
    return f"{count / GIB:.1f} GiB"


def gib2(count: float) -> str:
    """12281336832 → '11.44 GiB': where a tenth decides."""
    return f"{count / GIB:.2f} GiB"


def _ceil(number: int, step: int) -> int:
    return -(-number // step) * step


def linear_parameters(shape: Shape) -> int:
    """Everything that quantizing touches: all but embedding and head. (Norms and biases are too few to
    count.)"""
    return max(0, shape.parameters - shape.embedding_parameters)


def weights_bytes(rank: Rank) -> int:
    """What vLLM counts as weights on this rank: those themselves, and what loading them takes beside.

    Logs agree within 1 % (nine models, 0.5B to 14B, TP=1 and 2).
    """
    rope = rope_cache_bytes(rank.shape, rank.width)
    return int((checkpoint_bytes(rank) - rope) * (1 + LOADING_SHARE)) + rope


def checkpoint_bytes(rank: Rank) -> int:
    """Weights on this rank: its share of the linear layers in their format, embedding and head at `width`,
    and the table of sines and cosines, which is whole on every rank. A split table is padded per rank."""
    shape = rank.shape
    linear = linear_parameters(shape) * rank.depth / shape.layers / rank.tp
    table = _ceil(-(-shape.vocabulary // rank.tp), VOCABULARY_PADDING) * shape.hidden * rank.width
    tables = int(rank.first) + int(rank.last) - int(rank.first and rank.last and shape.tied_head)
    # bitsandbytes loads a tied head a second time: seen in one log (1.49 GiB where 1.06 would do).
    tables += int(shape.tied_head and rank.format == "bnb4")
    per_parameter = rank.width if _full(rank.format) else format_facts(rank.format).bytes_per_parameter
    if rank.format == "w4a16":
        per_parameter += SCALE_BYTES / group_size(shape) - SCALE_BYTES / GROUPS[0]
    return int(linear * per_parameter) + tables * table + rope_cache_bytes(shape, rank.width)


GROUPS = (128, 64, 32)
SCALE_BYTES = 2


def group_size(shape: Shape) -> int:
    """Weights that share a scale in w4a16: 128, or 64 or 32 where a layer's rows are not whole groups of it
    (SmolLM2-135M, 576 wide: 64). The catalog's bytes are for 128."""
    widths = (shape.hidden, shape.heads * shape.head_dim, shape.intermediate, shape.expert_intermediate)
    return next((size for size in GROUPS if not any(width % size for width in widths)), GROUPS[-1])


def _full(kind: Format) -> bool:
    return kind in ("float32", "bfloat16", "float16")


def rope_cache_bytes(shape: Shape, width: int) -> int:
    """vLLM's table of sines and cosines, whole on every rank: context_max · head_dim · width.

    Mistral-Nemo at 131,072 tokens: 0.031 GiB at 16 bit.
    """
    return shape.context_max * shape.head_dim * width


def kv_bytes_per_token(shape: Shape, width: int) -> int:
    """KV cache of one token in all layers, unsharded: 2 (K and V) · layers · kv_heads · head_dim · width.

    Source: the definition of attention with grouped heads (https://arxiv.org/abs/2305.13245). Mistral-Nemo:
    163,840 B at 16 bit; SmolLM2-135M: 46,080 B at 32 bit.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * width


def layer_kv_bytes(rank: Rank) -> int:
    """KV cache of one token in one layer on this rank. A rank never holds less than one KV head."""
    heads = -(-rank.shape.kv_heads // rank.tp)
    return 2 * heads * rank.shape.head_dim * rank.kv_width


def rank_kv_bytes_per_token(rank: Rank) -> int:
    return layer_kv_bytes(rank) * rank.depth


def kv_bytes_of_sequence(rank: Rank, tokens: int, *, block: int) -> int:
    """KV cache that one sequence of `tokens` takes on this rank, in whole blocks.

    A layer with a sliding window keeps the window and what one step adds to it.
    """
    full, sliding = _layers_by_kind(rank)
    window = min(tokens, rank.shape.sliding_window + rank.batched_tokens)
    kept = full * _ceil(tokens, block) + sliding * _ceil(window, block)
    return kept * layer_kv_bytes(rank)


def _layers_by_kind(rank: Rank) -> tuple[int, int]:
    """(full, sliding) layers of this rank, as this version of vLLM treats them."""
    shape = rank.shape
    uniform = shape.sliding_layers == shape.layers
    if not shape.sliding_layers or not (uniform or rank.vllm >= HYBRID_KV_SINCE):
        return rank.depth, 0
    sliding = round(rank.depth * shape.sliding_layers / shape.layers)
    return rank.depth - sliding, sliding


def kv_tokens(rank: Rank, kv_bytes: int, *, context: int, block: int) -> int:
    """Tokens of sequences of `context` tokens that `kv_bytes` hold, in whole blocks. 0 where there is no
    room.

    vLLM keeps one block for itself (its null block, vllm/v1/core/block_pool.py).
    """
    left = kv_bytes - block * rank_kv_bytes_per_token(rank)
    if left <= 0:
        return 0
    one = kv_bytes_of_sequence(rank, context, block=block)
    return int(left / one * _ceil(context, block)) // block * block


def kv_bytes_for_context(rank: Rank, context: int, *, sequences: int = 1, block: int) -> int:
    """The least KV cache for `sequences` requests of `context` tokens: inverse of kv_tokens()."""
    one = kv_bytes_of_sequence(rank, context, block=block)
    return sequences * one + block * rank_kv_bytes_per_token(rank)


def activation_bytes(rank: Rank) -> int:
    """Peak of one step: the largest of the layers, the sampler and the image encoder.

    Layers: batched_tokens · width · (3·I/TP + 3·H), I and H being intermediate and hidden; experts keep their
    rows apart. Logs of four models with steps of 8,192 to 20,000 tokens agree within 4 %.
    """
    peak = max(_layers_peak(rank), _sampler_peak(rank), _vision_peak(rank))
    return int(peak * (1.0 if rank.vllm >= ALLOCATED_SINCE or rank.v1 else RESERVED_FACTOR))


def _layers_peak(rank: Rank) -> float:
    shape = rank.shape
    dense = 3 * shape.intermediate / rank.tp + 3 * shape.hidden
    routed = shape.experts_per_token * (3 * shape.expert_intermediate / rank.tp + shape.hidden)
    moe = routed + 3 * shape.shared_intermediate / rank.tp + 3 * shape.hidden if shape.experts else 0
    return rank.batched_tokens * rank.width * max(dense, moe)


def _sampler_peak(rank: Rank) -> float:
    """V0 samples on the first rank of the last stage only; V1 on all of its ranks."""
    if not rank.last or not (rank.lead or rank.v1):
        return 0.0
    factor = SAMPLER_V1 if rank.v1 else SAMPLER_V0
    return factor * rank.max_num_seqs * rank.shape.vocabulary * FLOAT32


def _vision_peak(rank: Rank) -> float:
    vision = rank.shape.vision
    if vision is None or not rank.v1 or not rank.first:
        return 0.0
    return _encoder_peak(vision, rank.shape.hidden) + _layers_peak(rank)


def _encoder_peak(vision: Vision, hidden: int) -> float:
    each = 3 * vision.intermediate + 3 * vision.hidden
    pixels = vision.patches * PIXELS_A_PATCH * (FLOAT32 + FLOAT16)
    return pixels + (vision.patches * each + vision.outputs * hidden) * FLOAT16


def inside_bytes(rank: Rank) -> int:
    """What vLLM counts against its budget beside weights, activations and KV cache."""
    if rank.vllm >= SNAPSHOT_LATE_SINCE:
        return NON_TORCH_BYTES
    return NCCL_BYTES if rank.tp * rank.pp > 1 else NON_TORCH_BYTES


def outside_bytes(rank: Rank, card_bytes: int) -> int:
    """What is taken beyond vLLM's budget and beside graphs: the driver's context, late NCCL."""
    late = NCCL_BYTES if rank.tp * rank.pp > 1 and rank.vllm >= SNAPSHOT_LATE_SINCE else 0
    return cuda_context_bytes(card_bytes) + late


def graphs_bytes(rank: Rank) -> int:
    """CUDA graphs: a batch size each, 1, 2, 4 and then every 8th up to max_num_seqs."""
    if rank.eager:
        return 0
    captures = min(GRAPHS_FULL_CAPTURES, 3 + rank.max_num_seqs // 8) / GRAPHS_FULL_CAPTURES
    ranks = 0 if rank.peers else rank.tp - 1
    return int(GRAPHS_BYTES + captures * (GRAPHS_FULL_BYTES + ranks * GRAPHS_NCCL_BYTES))


def cuda_context_bytes(nvml_total_bytes: int) -> int:
    return CUDA_CONTEXT_BYTES if nvml_total_bytes <= 16 * GIB else CUDA_CONTEXT_LARGE_BYTES


def kv_budget(rank: Rank, cuda_total_bytes: int, utilization: float) -> int:
    """Bytes that vLLM would give the KV cache on this rank: what `gpu_memory_utilization` grants, less the
    rest. Below 0 it refuses to start."""
    taken = weights_bytes(rank) + activation_bytes(rank) + inside_bytes(rank)
    return int(cuda_total_bytes * utilization) - taken
