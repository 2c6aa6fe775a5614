"""The `llama` architecture of GGUF (Llama, Mistral, SmolLM2) in the names of LlamaForCausalLM.

Keys by https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, names of the target by the `config.json`
and weights of the same models on their hub pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, TensorInfo
from sovereign_ai.store.rope import llama3_scaling

DEFAULT_ROPE_THETA = 10_000.0
"""Of the first Llama; files made before `rope.freq_base` existed do not say it."""
ROPE_FACTORS = "rope_freqs.weight"
UNSET = 0xFFFFFFFF
"""A token id that files use for `there is none`."""


class Llama(NamedTuple):
    """The sizes that names and shapes follow from. All in elements."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


class Target(NamedTuple):
    """One tensor to write: its new name and shape, and where its data comes from.

    `head_dim` is set where rows are permuted within heads and have to be put back.
    """

    name: str
    shape: tuple[int, ...]
    info: TensorInfo
    head_dim: int | None


def read_llama(file: GgufFile) -> Llama:
    """The sizes. Raises UnsupportedModel for relatives that LlamaForCausalLM does not cover."""
    architecture = file.text("general.architecture")
    if architecture != "llama":
        raise UnsupportedModel(
            f"{file.path}: architecture `{architecture}` cannot be converted yet, only `llama`",
            "look for the same model as SafeTensors",
        )
    if file.integer("llama.expert_count", 0) or file.integer("split.count", 1) > 1:
        raise UnsupportedModel(f"{file.path}: mixtures of experts and split files cannot be converted yet")
    hidden = file.integer("llama.embedding_length")
    heads = _positive(file, "llama.attention.head_count", file.integer("llama.attention.head_count"))
    sizes = Llama(
        layers=file.integer("llama.block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=file.integer("llama.attention.head_count_kv", heads),
        head_dim=file.integer("llama.attention.key_length", hidden // heads),
        intermediate=file.integer("llama.feed_forward_length"),
        vocabulary=_embedding(file).shape[0],
    )
    _check(file, sizes)
    return sizes


def _positive(file: GgufFile, key: str, value: int) -> int:
    if value <= 0:
        raise BadModelFile(f"{file.path}: `{key}` is {value}")
    return value


def _embedding(file: GgufFile) -> TensorInfo:
    for tensor in file.tensors:
        if tensor.name == "token_embd.weight":
            return tensor
    raise BadModelFile(f"{file.path}: tensor `token_embd.weight` is missing")


def _check(file: GgufFile, sizes: Llama) -> None:
    for name, value in sizes._asdict().items():
        _positive(file, name, value)
    if sizes.heads % sizes.kv_heads or sizes.head_dim % 2:
        raise BadModelFile(
            f"{file.path}: {sizes.heads} heads of {sizes.head_dim} do not divide by {sizes.kv_heads} KV heads"
        )
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if file.integer(key, sizes.head_dim) != sizes.head_dim:
            raise UnsupportedModel(f"{file.path}: `{key}` differs from the head size {sizes.head_dim}")


def targets(file: GgufFile, sizes: Llama) -> tuple[Target, ...]:
    """Every tensor to write, in the model's order.

    Raises BadModelFile for one that is missing or has another shape than the sizes say, UnsupportedModel
    for one that LlamaForCausalLM has no place for.
    """
    present = {tensor.name: tensor for tensor in file.tensors if tensor.name != ROPE_FACTORS}
    found = []
    for old, new, shape, permuted in _names(sizes, tied="output.weight" not in present):
        info = present.pop(old, None)
        if info is None:
            raise BadModelFile(f"{file.path}: tensor `{old}` is missing")
        if info.shape != shape:
            raise BadModelFile(
                f"{file.path}: tensor `{old}` has shape {list(info.shape)}, expected {list(shape)}"
            )
        found.append(Target(new, shape, info, sizes.head_dim if permuted else None))
    for name in present:
        raise UnsupportedModel(f"{file.path}: tensor `{name}` has no place in LlamaForCausalLM")
    return tuple(found)


def _names(sizes: Llama, *, tied: bool) -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
    """(name in GGUF, name in SafeTensors, row-major shape, rows permuted within heads)."""
    hidden = sizes.hidden
    yield "token_embd.weight", "model.embed_tokens.weight", (sizes.vocabulary, hidden), False
    for layer in range(sizes.layers):
        for old, new, shape, permuted in _layer_names(sizes):
            yield f"blk.{layer}.{old}.weight", f"model.layers.{layer}.{new}.weight", shape, permuted
    yield "output_norm.weight", "model.norm.weight", (hidden,), False
    if not tied:
        yield "output.weight", "lm_head.weight", (sizes.vocabulary, hidden), False


def _layer_names(sizes: Llama) -> tuple[tuple[str, str, tuple[int, ...], bool], ...]:
    hidden, inner = sizes.hidden, sizes.intermediate
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return (
        ("attn_norm", "input_layernorm", (hidden,), False),
        ("attn_q", "self_attn.q_proj", (queries, hidden), True),
        ("attn_k", "self_attn.k_proj", (keys, hidden), True),
        ("attn_v", "self_attn.v_proj", (keys, hidden), False),
        ("attn_output", "self_attn.o_proj", (hidden, queries), False),
        ("ffn_norm", "post_attention_layernorm", (hidden,), False),
        ("ffn_gate", "mlp.gate_proj", (inner, hidden), False),
        ("ffn_up", "mlp.up_proj", (inner, hidden), False),
        ("ffn_down", "mlp.down_proj", (hidden, inner), False),
    )


def unpermute(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Put the rows of Q or K back: (heads·head_dim, columns) → the same shape.

    GGUF keeps the two numbers that RoPE rotates together in neighbouring rows (0, 1), (2, 3), …;
    LlamaForCausalLM wants them half a head apart: (0, d/2), (1, d/2 + 1), …
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def config(
    file: GgufFile, sizes: Llama, dtype: str, rope_factors: np.ndarray[Any, np.dtype[np.float32]] | None
) -> dict[str, Any]:
    """config.json of LlamaForCausalLM. `dtype` is that of the weights written."""
    theta = file.number("llama.rope.freq_base", DEFAULT_ROPE_THETA)
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": _positive(file, "context", file.integer("llama.context_length")),
        "rms_norm_eps": file.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in file.tensors),
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
    }
    scaling = _rope_scaling(file, rope_factors, theta, sizes.head_dim)
    return fields | token_ids(file) | ({"rope_scaling": scaling} if scaling else {})


def token_ids(file: GgufFile) -> dict[str, int]:
    """The special tokens that are set, as config.json and generation_config.json name them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: file.integer(f"tokenizer.ggml.{key}_token_id", UNSET) for name, key in keys.items()}
    return {name: number for name, number in found.items() if number != UNSET}


def _rope_scaling(
    file: GgufFile, factors: np.ndarray[Any, np.dtype[np.float32]] | None, theta: float, head_dim: int
) -> dict[str, Any] | None:
    kind = file.text("llama.rope.scaling.type", "none")
    if kind == "linear" and factors is None:
        return {"rope_type": "linear", "factor": file.number("llama.rope.scaling.factor")}
    if kind != "none":
        raise UnsupportedModel(f"{file.path}: RoPE scaling `{kind}` cannot be converted yet")
    if factors is None:
        return None
    scaling = llama3_scaling(factors, theta, head_dim)
    if scaling is None:
        raise UnsupportedModel(f"{file.path}: the RoPE factors in `{ROPE_FACTORS}` are not those of Llama 3")
    return scaling
