"""What an engine is told of a fit: arguments and environment. Pure."""

from __future__ import annotations

from typing import Any

from sovereign_ai.catalog.formats import format_facts
from sovereign_ai.catalog.releases import Release, supported_arguments
from sovereign_ai.planner.cpu import cpu_arguments
from sovereign_ai.planner.sizing import FULL, Fit
from sovereign_ai.planner.wish import Wish, embedding_arguments


def engine_arguments(wish: Wish, fit: Fit, release: Release) -> dict[str, Any]:
    """Arguments for model.json. What this vLLM does not know is left out: an unknown one fails the load."""
    if wish.model.task == "embed":
        return embedding_arguments(wish)
    if fit.layout.rooms[0].device.kind == "cpu":
        return cpu_arguments(fit) | _code(wish)
    known, wanted = supported_arguments(release.version), _gpu_arguments(fit) | _code(wish)
    return {key: value for key, value in wanted.items() if key in known and value is not None}


def _code(wish: Wish) -> dict[str, Any]:
    """Only where factory.yaml says so by name."""
    return {"trust_remote_code": True} if wish.remote_code else {}


def _gpu_arguments(fit: Fit) -> dict[str, Any]:
    """Chunked prefill is set: at a context of exactly 32,768 vLLM 0.5.5 would leave it off and profile a
    batch of as many tokens. Custom all-reduce needs peer-to-peer. `kv_cache_memory_bytes` wins over the
    utilization where it is known, and then needs no profile at all."""
    facts, layout = format_facts(fit.format), fit.layout
    several = len(layout.rooms) > 1
    return {
        "dtype": fit.format if fit.format in FULL else "auto",
        "quantization": facts.quantization,
        "load_format": facts.load_format,
        "gpu_memory_utilization": fit.utilization,
        "kv_cache_memory_bytes": fit.kv_bytes,
        "tensor_parallel_size": layout.tp,
        "pipeline_parallel_size": layout.pp if layout.pp > 1 else None,
        "max_model_len": fit.context,
        "max_num_seqs": fit.rung.max_num_seqs,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": fit.rung.batched_tokens,
        "enforce_eager": fit.rung.eager or None,
        "disable_custom_all_reduce": True if several and layout.link == "host" else None,
        "disable_log_stats": False,
    }


def engine_environment(fit: Fit) -> dict[str, str]:
    """`CUDA_DEVICE_ORDER`: the default order is fastest first, which is not the order of ranks that was
    planned."""
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if len(fit.layout.rooms) > 1 and fit.layout.link == "host":
        variables["NCCL_P2P_DISABLE"] = "1"
    if fit.partition:
        variables["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, fit.partition))
    return variables
