"""Phi-3, Phi-3.5 and Phi-4 mini in the names of Phi3ForCausalLM.

Q, K and V are one matrix, gate and up another, in both formats. The models with a long context stretch each
frequency of RoPE by a factor of its own ("longrope"), by one list for texts up to the original context and
by another beyond it.
"""

from __future__ import annotations

import math
from typing import Any

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import (
    ELSEWHERE,
    Blueprint,
    Place,
    Sizes,
    base_config,
    find_targets,
    model_places,
    read_sizes,
    rotated,
)
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.rope import DEFAULT_THETA, read_factors, read_theta

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
MINI_4K = (32, 3072, 4096)
"""Layers, hidden size and context of Phi-3-mini-4k, whose first files do not say its sliding window."""
MINI_4K_WINDOW = 2047


def phi3(file: GgufFile) -> Blueprint:
    """Raises BadModelFile or UnsupportedModel."""
    sizes = read_sizes(file)
    places = model_places(file, sizes, _layer(sizes), norm=None)
    return Blueprint(
        targets=find_targets(file, "Phi3ForCausalLM", places, frozenset({LONG, SHORT})),
        config=_config(file, sizes),
        files={},
        vocabulary=sizes.vocabulary,
        context=sizes.context,
    )


def _layer(sizes: Sizes) -> list[Place]:
    hidden, inner = sizes.hidden, sizes.intermediate
    fused = sizes.queries + 2 * sizes.keys
    return [
        Place("attn_norm.weight", "input_layernorm.weight", (hidden,)),
        Place("attn_qkv.weight", "self_attn.qkv_proj.weight", (fused, hidden)),
        Place("attn_output.weight", "self_attn.o_proj.weight", (hidden, sizes.queries)),
        Place("ffn_norm.weight", "post_attention_layernorm.weight", (hidden,)),
        Place("ffn_up.weight", "mlp.gate_up_proj.weight", (2 * inner, hidden)),
        Place("ffn_down.weight", "mlp.down_proj.weight", (hidden, inner)),
    ]


def _config(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    original = file.integer("phi3.rope.scaling.original_context_length", sizes.context)
    turned = rotated(file, sizes)
    fields = base_config(file, sizes, "Phi3ForCausalLM", "phi3") | {
        "hidden_act": "silu",
        "sliding_window": _window(file, sizes),
        "original_max_position_embeddings": original,
        "rope_theta": read_theta(file, DEFAULT_THETA),
        "partial_rotary_factor": turned / sizes.head_dim,
    }
    scaling = _longrope(file, sizes, original, turned)
    return fields | ({"rope_scaling": scaling} if scaling else {})


def _window(file: GgufFile, sizes: Sizes) -> int | None:
    window = file.metadata.get("phi3.attention.sliding_window")
    if window is not None:
        return file.integer("phi3.attention.sliding_window") or None
    if (sizes.layers, sizes.hidden, sizes.context) == MINI_4K:
        return MINI_4K_WINDOW
    raise UnsupportedModel(
        f"{file.path}: made before files of its kind said how far attention reaches "
        "(`phi3.attention.sliding_window` is missing)",
        "get a newer GGUF of the same model",
    )


def _longrope(file: GgufFile, sizes: Sizes, original: int, turned: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json, None where nothing is stretched."""
    if file.tensor(LONG) is None and file.tensor(SHORT) is None:
        kind = file.text("phi3.rope.scaling.type", "none")
        if kind != "none":
            raise UnsupportedModel(f"{file.path}: RoPE scaling `{kind}` cannot be converted yet", ELSEWHERE)
        return None
    _check_magnitude(file, sizes.context, original)
    return {
        "rope_type": "longrope",
        "short_factor": read_factors(file, SHORT, turned // 2).tolist(),
        "long_factor": read_factors(file, LONG, turned // 2).tolist(),
    }


def _check_magnitude(file: GgufFile, context: int, original: int) -> None:
    """Engines compute what attention is scaled by; the file must mean the same.

    √(1 + ln(context/original) / ln(original)): Phi-3's `Phi3LongRoPEScaledRotaryEmbedding`, which files
    carry out in `rope.scaling.attn_factor`.
    """
    if not 1 < original <= context:
        raise BadModelFile(f"{file.path}: an original context of {original} tokens, {context} in all")
    usual = math.sqrt(1 + math.log(context / original) / math.log(original))
    said = file.number("phi3.rope.scaling.attn_factor", usual)
    if not math.isclose(said, usual, rel_tol=1e-3):
        raise UnsupportedModel(
            f"{file.path}: attention is scaled by {said} (`phi3.rope.scaling.attn_factor`), "
            f"not by the {usual:.4f} of longrope",
            ELSEWHERE,
        )
