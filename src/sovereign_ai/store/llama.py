"""The `llama` architecture of GGUF (Llama, SmolLM2, Mistral, Mistral Nemo) in the names of LlamaForCausalLM.

Mistral's models have the same architecture; MistralForCausalLM differs by its sliding window alone, and is
named only where the file has one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from sovereign_ai.store.decoder import (
    Blueprint,
    Place,
    Sizes,
    base_config,
    find_targets,
    model_places,
    read_sizes,
    whole_heads_rotated,
)
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.rope import FACTORS, rope_fields


def llama(file: GgufFile) -> Blueprint:
    """Raises BadModelFile, or UnsupportedModel for relatives that LlamaForCausalLM does not cover."""
    sizes = read_sizes(file)
    whole_heads_rotated(file, sizes)
    places = model_places(file, sizes, _layer(sizes), norm=None)
    return Blueprint(
        targets=find_targets(file, "LlamaForCausalLM", places, frozenset({FACTORS})),
        config=_config(file, sizes),
        files={},
        vocabulary=sizes.vocabulary,
        context=sizes.context,
    )


def _layer(sizes: Sizes) -> list[Place]:
    back = partial(unpermute, head_dim=sizes.head_dim)
    return [
        place._replace(unit=sizes.head_dim, change=back)
        if place.old in ("attn_q.weight", "attn_k.weight")
        else place
        for place in gated_layer(sizes)
    ]


def gated_layer(sizes: Sizes) -> list[Place]:
    """The layer of Llama, which Qwen extends."""
    hidden, inner, queries, keys = sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys
    return [
        Place("attn_norm.weight", "input_layernorm.weight", (hidden,)),
        Place("attn_q.weight", "self_attn.q_proj.weight", (queries, hidden)),
        Place("attn_k.weight", "self_attn.k_proj.weight", (keys, hidden)),
        Place("attn_v.weight", "self_attn.v_proj.weight", (keys, hidden)),
        Place("attn_output.weight", "self_attn.o_proj.weight", (hidden, queries)),
        Place("ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)),
        Place("ffn_gate.weight", "mlp.gate_proj.weight", (inner, hidden)),
        Place("ffn_up.weight", "mlp.up_proj.weight", (inner, hidden)),
        Place("ffn_down.weight", "mlp.down_proj.weight", (hidden, inner)),
    ]


def unpermute(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Put the rows of Q or K back: (heads·head_dim, columns) → the same shape.

    GGUF keeps the two numbers that RoPE rotates together in neighbouring rows (0, 1), (2, 3), …;
    LlamaForCausalLM wants them half a head apart: (0, d/2), (1, d/2 + 1), …
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _config(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    window = file.integer("llama.attention.sliding_window", 0)
    named = ("MistralForCausalLM", "mistral") if window else ("LlamaForCausalLM", "llama")
    fields = base_config(file, sizes, *named) | {"hidden_act": "silu", "mlp_bias": False}
    return fields | rope_fields(file, sizes) | ({"sliding_window": window} if window else {})
