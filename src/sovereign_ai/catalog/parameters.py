"""How many parameters a model has, from its shape and architecture. Pure.

Every sum is checked against published models to the last parameter (tests/catalog/test_shapes.py). What an
architecture has beside the matrices that all have, by the model's source in
https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from sovereign_ai.spec import Shape, Vision

SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "Model")


class Layout(NamedTuple):
    """What a layer, and the model around the layers, has beside its matrices.

    `norms` in each layer, `norm_bias`: they are LayerNorms with a bias. `qk_norm` of one head's width or of
    all heads together. `sinks`: one learned number a head. `shared_gate`: the shared expert has a gate of
    its own. `positions`: a learned table, with so many rows beyond the context. `token_types`: rows of their
    table. `pooler`: one more layer at the end.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norms: int = 2
    norm_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    qk_norm: Literal["", "head", "full"] = ""
    sinks: bool = False
    moe_bias: bool = False
    shared_gate: bool = False
    positions: bool = False
    position_offset: int = 0
    token_types: int = 0
    pooler: bool = False


PLAIN = Layout()
QWEN2 = Layout(qkv_bias=True)
QWEN3 = Layout(qk_norm="head")
BERT = Layout(
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    norm_bias=True,
    final_norm=False,
    embedding_norm=True,
    positions=True,
    token_types=2,
    pooler=True,
)
LAYOUTS = {
    "Qwen2": QWEN2,
    "Qwen2VL": QWEN2,
    "Qwen2_5_VL": QWEN2,
    "Qwen2Moe": QWEN2._replace(shared_gate=True),
    "Qwen3": QWEN3,
    "Qwen3Moe": QWEN3,
    "Qwen3VL": QWEN3,
    "Gemma2": Layout(norms=4),
    "Gemma3": Layout(norms=4, qk_norm="head"),
    "Olmo": Layout(norms=0, final_norm=False),
    "Olmo2": Layout(qk_norm="full"),
    "Olmo3": Layout(qk_norm="full"),
    "Olmoe": Layout(qk_norm="full"),
    "Starcoder2": Layout(qkv_bias=True, o_bias=True, mlp_bias=True, norm_bias=True),
    "GptOss": Layout(qkv_bias=True, o_bias=True, sinks=True, moe_bias=True),
    "Bert": BERT,
    "Roberta": BERT._replace(token_types=1, position_offset=2),
    "XLMRoberta": BERT._replace(token_types=1, position_offset=2),
    "NomicBert": Layout(norm_bias=True, final_norm=False, embedding_norm=True, token_types=2),
}


def family(architecture: str) -> str:
    """`Llama` of `LlamaForCausalLM`."""
    for suffix in SUFFIXES:
        if architecture.endswith(suffix):
            return architecture.removesuffix(suffix)
    return architecture


def layout(architecture: str) -> Layout:
    """Of an architecture; one that is not known is taken to be like Llama."""
    return LAYOUTS.get(family(architecture), PLAIN)


def parameter_count(shape: Shape, *, extras: Layout | None = None, positions: int | None = None) -> int:
    """All parameters, counted once where the head is the embedding; `shape.parameters` is not read.

    `extras` where a config departs from its architecture's layout; `positions`: rows of the learned table
    of positions, where the model serves a shorter context than it has.
    """
    extras = layout(shape.architecture) if extras is None else extras
    rows = shape.context_max + extras.position_offset if positions is None else positions
    table = shape.embedding_parameters + extras.token_types * shape.hidden
    table += rows * shape.hidden if extras.positions else 0
    layers = shape.layers * (_attention(shape, extras) + extras.norms * _norm(shape, extras))
    dense = shape.layers if not shape.experts else shape.dense_layers
    layers += dense * _mlp(shape, extras, shape.intermediate) + (shape.layers - dense) * _moe(shape, extras)
    ends = (extras.final_norm + extras.embedding_norm) * _norm(shape, extras)
    ends += shape.hidden * shape.hidden + shape.hidden if extras.pooler else 0
    return table + layers + ends + _vision(shape)


def _norm(shape: Shape, extras: Layout) -> int:
    return shape.hidden * (2 if extras.norm_bias else 1)


def _attention(shape: Shape, extras: Layout) -> int:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    count = 2 * shape.hidden * (queries + keys)
    count += queries + 2 * keys if extras.qkv_bias else 0
    count += shape.hidden if extras.o_bias else 0
    count += {"": 0, "head": 2 * shape.head_dim, "full": queries + keys}[extras.qk_norm]
    return count + (shape.heads if extras.sinks else 0)


def _mlp(shape: Shape, extras: Layout, width: int) -> int:
    upward = 2 if shape.gated_mlp else 1
    bias = upward * width + shape.hidden if extras.mlp_bias else 0
    return (upward + 1) * shape.hidden * width + bias


def _moe(shape: Shape, extras: Layout) -> int:
    """Router, experts and shared experts of one layer."""
    expert = _mlp(shape, extras._replace(mlp_bias=extras.moe_bias), shape.expert_intermediate)
    router = shape.experts * (shape.hidden + (1 if extras.moe_bias else 0))
    shared = _mlp(shape, extras, shape.shared_intermediate) if shape.shared_intermediate else 0
    gate = shape.hidden if extras.shared_gate and shared else 0
    return router + shape.experts * expert + shared + gate


def _vision(shape: Shape) -> int:
    if shape.vision is None:
        return 0
    count = ENCODERS.get(family(shape.architecture), _vit)
    return count(shape.vision, shape.hidden)


def _vit(vision: Vision, hidden: int) -> int:
    """A plain vision transformer and a projector of two matrices: near enough for encoders not known."""
    matrices = 4 * vision.hidden * vision.hidden + 2 * vision.hidden * vision.intermediate
    return vision.layers * matrices + (vision.hidden + hidden) * hidden


def _qwen2_vl(vision: Vision, hidden: int) -> int:
    """Patches of 2 × 14 × 14 × 3, LayerNorms, everything with a bias; the merger joins four patches."""
    width, inner = vision.hidden, vision.intermediate
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    merged = 4 * width
    merger = 2 * width + merged * (merged + 1) + (merged + 1) * hidden
    return 2 * 14 * 14 * 3 * width + vision.layers * block + merger


def _qwen25_vl(vision: Vision, hidden: int) -> int:
    """As Qwen2-VL, with RMS norms and a gated MLP."""
    width, inner = vision.hidden, vision.intermediate
    block = 4 * (width * width + width) + 3 * width * inner + 2 * inner + width + 2 * width
    merged = 4 * width
    merger = width + merged * (merged + 1) + (merged + 1) * hidden
    return 2 * 14 * 14 * 3 * width + vision.layers * block + merger


def _siglip(vision: Vision, hidden: int) -> int:
    """SigLIP with patches of 14 × 14 × 3 and a table of positions; one matrix and a norm lead to the text."""
    width, inner = vision.hidden, vision.intermediate
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    patches = 14 * 14 * 3 * width + width + vision.patches * width
    return patches + vision.layers * block + 2 * width + width * hidden + width


def _pixtral(vision: Vision, hidden: int) -> int:
    """Patches of 14 × 14 × 3, RMS norms, a gated MLP, no biases; four patches are merged to one."""
    width, inner = vision.hidden, vision.intermediate
    block = 4 * width * width + 3 * width * inner + 2 * width
    merger = width + 4 * width * width + width * hidden + hidden * hidden
    return 14 * 14 * 3 * width + width + vision.layers * block + merger


ENCODERS: dict[str, Callable[[Vision, int], int]] = {
    "Gemma3": _siglip,
    "Mistral3": _pixtral,
    "Qwen2VL": _qwen2_vl,
    "Qwen2_5_VL": _qwen25_vl,
}
