"""How much memory a deployment takes: formulas over a model's shape, and overheads as measured. Pure.

Bytes everywhere. `dtype_bytes` is the width of one number: 4 for float32, 2 for bfloat16 and float16.
"""

from __future__ import annotations

from sovereign_ai.spec import Shape

MIB = 1 << 20
GIB = 1 << 30

FLOAT32 = 4
FLOAT16 = 2
"""Widths in bytes; bfloat16 is as wide as float16."""

BATCHED_TOKENS = 2048
"""Tokens that vLLM computes in one step. It is vLLM's own default inside Triton, and set where it is not: a
step as long as the context would need memory for all of it at once."""

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
"""CUDA context and cuBLAS at start: 0.23 GiB on 16 GB cards, 0.53 GiB on an H100 (start-up logs)."""

CUDA_GRAPHS_BYTES = int(0.7 * GIB)
CUDA_GRAPHS_TP4_BYTES = int(2.41 * GIB)
"""CUDA graphs a card: upper end of the 0.2 to 0.7 GiB in start-up logs; 2.41 GiB at TP=4 without
peer-to-peer. The upper end, because a promise too high is an out-of-memory crash."""

NCCL_BYTES = int(0.34 * GIB)
"""NCCL buffers a card as soon as cards work together: upper end of 0.25 to 0.34 GiB at TP=2."""

CUDA_HIDDEN_BYTES = 380 * MIB
CUDA_HIDDEN_LARGE_BYTES = 460 * MIB
"""What the driver keeps: CUDA's total is this much below NVML's (cards up to 12 GB; larger ones)."""


def gib(count: float) -> str:
    """12281336832 → '11.4 GiB'."""
    return f"{count / GIB:.1f} GiB"


def kv_bytes_per_token(shape: Shape, dtype_bytes: int) -> int:
    """KV cache of one token in all layers, unsharded: 2 (K and V) · layers · kv_heads · head_dim · width.

    Source: the definition of attention with grouped heads (https://arxiv.org/abs/2305.13245). Mistral-Nemo:
    163,840 B at 16 bit; SmolLM2-135M: 46,080 B at 32 bit.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype_bytes


def kv_bytes_for_context(shape: Shape, dtype_bytes: int, context: int, *, block: int, tp: int = 1) -> int:
    """The smallest KV cache a device can have: one context of `context` tokens, and one block.

    vLLM hands the cache out in blocks of `block` tokens and keeps the first for itself (its null block,
    vllm/v1/core/block_pool.py). With tensor parallelism a device holds its share of the KV heads, but never
    less than one of them.
    """
    blocks = -(-context // block) + 1
    return blocks * block * kv_bytes_per_token(shape, dtype_bytes) // min(tp, shape.kv_heads)


def weights_bytes(shape: Shape, dtype_bytes: int, *, tp: int = 1) -> int:
    """Weights on each of `tp` devices: parameters · width, evenly split."""
    return -(-shape.parameters * dtype_bytes // tp)


def rope_cache_bytes(shape: Shape, dtype_bytes: int) -> int:
    """vLLM's table of sines and cosines, whole on every device: context_max · head_dim · width.

    Mistral-Nemo at 131,072 tokens: 0.031 GiB at 16 bit.
    """
    return shape.context_max * shape.head_dim * dtype_bytes


def activation_bytes(
    shape: Shape, dtype_bytes: int, *, batched_tokens: int, tp: int = 1, sampled_seqs: int = 0
) -> int:
    """Peak of one step: max(batched_tokens · width · (3·I/TP + 3·H), 9.8 · sampled_seqs · V · 4).

    I, H, V: intermediate, hidden, vocabulary. The second term is the sampler's, which is not sharded; it is
    absent with chunked prefill (`sampled_seqs` 0). Fitted to vLLM's start-up logs on GPUs, where it is the
    peak seen; on CPUs it is an estimate.
    """
    layers = batched_tokens * dtype_bytes * (3 * shape.intermediate // tp + 3 * shape.hidden)
    sampler = int(9.8 * sampled_seqs * shape.vocabulary * 4)
    return max(layers, sampler)


def cuda_total_bytes(nvml_total_bytes: int) -> int:
    """What CUDA calls a card's total memory, from what NVML does; at least 1."""
    small = nvml_total_bytes <= 12 * GIB
    return max(1, nvml_total_bytes - (CUDA_HIDDEN_BYTES if small else CUDA_HIDDEN_LARGE_BYTES))


def cuda_context_bytes(nvml_total_bytes: int) -> int:
    return CUDA_CONTEXT_BYTES if nvml_total_bytes <= 16 * GIB else CUDA_CONTEXT_LARGE_BYTES


def cuda_graphs_bytes(tp: int) -> int:
    return CUDA_GRAPHS_TP4_BYTES if tp >= 4 else CUDA_GRAPHS_BYTES
