"""Gemma 2 and the language part of Gemma 3.

GGUF stores the weights of their norms plus one; the originals add the one while running. What the files do
not say is the same in every released model: theta and scaling of the local layers, and the divisor of the
attention scores, by https://github.com/google/gemma_pytorch/blob/main/gemma/config.py
(`query_pre_attn_scalar`: the head size, but hidden size over heads in both 27B models).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sovereign_ai.errors import BadModelFile, UnsupportedModel
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
from sovereign_ai.store.rope import linear_scaling, read_theta

HEAD_DIM = 256
GEMMA2_WINDOW, GEMMA2_ATTENTION_CAP, GEMMA2_LOGIT_CAP = 4096, 50.0, 30.0
"""Of every Gemma 2; files made in its first days do not say them."""
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
GEMMA3_PATTERN = 6
"""Every sixth layer of a Gemma 3 sees everything."""
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def gemma2(file: GgufFile) -> Blueprint:
    """Raises BadModelFile or UnsupportedModel."""
    sizes = read_sizes(file, head_dim=HEAD_DIM)
    config = {
        **_base(file, sizes, "Gemma2ForCausalLM", "gemma2", GEMMA2_27B_LAYERS),
        "sliding_window": file.integer("gemma2.attention.sliding_window", GEMMA2_WINDOW),
        "attn_logit_softcapping": file.number("gemma2.attn_logit_softcapping", GEMMA2_ATTENTION_CAP),
        "final_logit_softcapping": file.number("gemma2.final_logit_softcapping", GEMMA2_LOGIT_CAP),
        "rope_theta": read_theta(file, LOCAL_THETA),
    }
    return _blueprint(file, sizes, config, _layer(sizes))


def gemma3(file: GgufFile) -> Blueprint:
    """Raises BadModelFile or UnsupportedModel."""
    sizes = read_sizes(file, head_dim=HEAD_DIM)
    norms = [
        Place("attn_q_norm.weight", "self_attn.q_norm.weight", (sizes.head_dim,), change=minus_one),
        Place("attn_k_norm.weight", "self_attn.k_norm.weight", (sizes.head_dim,), change=minus_one),
    ]
    cap = file.number("gemma3.final_logit_softcapping", 0.0)
    scaling = linear_scaling(file)
    config = {
        **_base(file, sizes, "Gemma3ForCausalLM", "gemma3_text", GEMMA3_27B_LAYERS),
        "sliding_window": file.integer("gemma3.attention.sliding_window"),
        "layer_types": _layer_types(file, sizes),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": cap or None,
        "rope_theta": read_theta(file, GLOBAL_THETA),
        "rope_local_base_freq": file.number("gemma3.rope.freq_base_swa", LOCAL_THETA),
        **({"rope_scaling": scaling} if scaling else {}),
    }
    return _blueprint(file, sizes, config, _layer(sizes) + norms)


def minus_one(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed: np.ndarray[Any, Any] = values - np.float32(1)
    return changed


def _layer(sizes: Sizes) -> list[Place]:
    hidden, inner, queries, keys = sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys
    norms = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    return [
        *(Place(f"{old}.weight", f"{new}.weight", (hidden,), change=minus_one) for old, new in norms.items()),
        Place("attn_q.weight", "self_attn.q_proj.weight", (queries, hidden)),
        Place("attn_k.weight", "self_attn.k_proj.weight", (keys, hidden)),
        Place("attn_v.weight", "self_attn.v_proj.weight", (keys, hidden)),
        Place("attn_output.weight", "self_attn.o_proj.weight", (hidden, queries)),
        Place("ffn_gate.weight", "mlp.gate_proj.weight", (inner, hidden)),
        Place("ffn_up.weight", "mlp.up_proj.weight", (inner, hidden)),
        Place("ffn_down.weight", "mlp.down_proj.weight", (hidden, inner)),
    ]


def _base(
    file: GgufFile, sizes: Sizes, architecture: str, model_type: str, largest_layers: int
) -> dict[str, Any]:
    whole_heads_rotated(file, sizes)
    largest = sizes.layers == largest_layers
    return {
        **base_config(file, sizes, architecture, model_type),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": sizes.hidden // sizes.heads if largest else sizes.head_dim,
    }


def _layer_types(file: GgufFile, sizes: Sizes) -> list[str]:
    """One kind of attention a layer. A pattern that lists them counts layers with a window."""
    key = "gemma3.attention.sliding_window_pattern"
    pattern = file.metadata.get(key, GEMMA3_PATTERN)
    if isinstance(pattern, np.ndarray) and pattern.ndim == 1 and pattern.size > 1:
        if pattern.size != sizes.layers:
            raise BadModelFile(f"{file.path}: `{key}` lists {pattern.size} of {sizes.layers} layers")
        return ["sliding_attention" if slides else "full_attention" for slides in pattern]
    every = file.integer(key, GEMMA3_PATTERN)
    if every <= 0:
        raise UnsupportedModel(f"{file.path}: `{key}` is {every}")
    return ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(sizes.layers)]


def _blueprint(file: GgufFile, sizes: Sizes, config: dict[str, Any], layer: list[Place]) -> Blueprint:
    places = model_places(file, sizes, layer, norm=minus_one)
    return Blueprint(
        targets=find_targets(file, config["architectures"][0], places),
        config=config,
        files={},
        vocabulary=sizes.vocabulary,
        context=sizes.context,
    )
