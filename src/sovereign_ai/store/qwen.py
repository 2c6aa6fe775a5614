"""Qwen2, Qwen2.5 and the dense Qwen3: Llama's layer with biases on Q, K and V, or with norms on Q and K.

Unlike Llama's, their GGUFs keep the rows of Q and K in the order of the original.
"""

from __future__ import annotations

from sovereign_ai.store.decoder import (
    Blueprint,
    Place,
    base_config,
    find_targets,
    model_places,
    read_sizes,
    whole_heads_rotated,
)
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.llama import gated_layer
from sovereign_ai.store.pooling import pooling_files
from sovereign_ai.store.rope import FACTORS, rope_fields


def qwen2(file: GgufFile) -> Blueprint:
    """Raises BadModelFile or UnsupportedModel."""
    sizes = read_sizes(file)
    biases = [
        Place("attn_q.bias", "self_attn.q_proj.bias", (sizes.queries,)),
        Place("attn_k.bias", "self_attn.k_proj.bias", (sizes.keys,)),
        Place("attn_v.bias", "self_attn.v_proj.bias", (sizes.keys,)),
    ]
    return _qwen(file, "Qwen2ForCausalLM", "qwen2", biases)


def qwen3(file: GgufFile) -> Blueprint:
    """Raises BadModelFile or UnsupportedModel."""
    width = (read_sizes(file).head_dim,)
    norms = [
        Place("attn_q_norm.weight", "self_attn.q_norm.weight", width),
        Place("attn_k_norm.weight", "self_attn.k_norm.weight", width),
    ]
    return _qwen(file, "Qwen3ForCausalLM", "qwen3", norms)


def _qwen(file: GgufFile, architecture: str, model_type: str, more: list[Place]) -> Blueprint:
    sizes = read_sizes(file)
    whole_heads_rotated(file, sizes)
    places = model_places(file, sizes, gated_layer(sizes) + more, norm=None)
    config = base_config(file, sizes, architecture, model_type)
    config |= {"hidden_act": "silu", "use_sliding_window": False, **rope_fields(file, sizes)}
    return Blueprint(
        targets=find_targets(file, architecture, places, frozenset({FACTORS})),
        config=config,
        files=pooling_files(file, sizes.hidden, sizes.context),
        vocabulary=sizes.vocabulary,
        context=sizes.context,
    )
