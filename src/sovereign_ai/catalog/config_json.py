"""config.json of Hugging Face models → shape, task and format. Pure: the caller has read the file.

Keys and their defaults by the configuration classes in
https://github.com/huggingface/transformers/tree/main/src/transformers/models. What cannot be modelled (latent
attention, state-space layers, encoder-decoders) is refused by name, bad values with file and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.catalog.parameters import Layout, family, layout, parameter_count
from sovereign_ai.catalog.quantization import read_format
from sovereign_ai.catalog.vision import read_vision
from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.spec import Format, Shape, Task

__all__ = ["ModelFacts", "parameter_count", "read_config"]

MOST = 10_000_000
MOST_TOKENS = 100_000_000
"""No size of a model is larger, no context longer: beyond lies a damaged file."""

ALIASES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "max_position_embeddings": ("n_positions",),
    "num_experts": ("num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token", "num_experts_per_token"),
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
    "sliding_window_pattern": ("_sliding_window_pattern",),
}
"""Other names that some families use."""

DEFAULTS: dict[str, dict[str, int]] = {
    "Gemma2": {"head_dim": 256},
    "Gemma3": {
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262_208,
    },
    "Qwen3": {"head_dim": 128},
}
"""What a config may leave out because its class has it: published files do."""

EMBEDDING = frozenset({"Bert", "Roberta", "XLMRoberta", "NomicBert"})
EMBEDDING_DECODERS = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
"""A decoder without its head answers with vectors."""
CHAT_WITH_IMAGES = frozenset({"Gemma3", "Llava", "Mistral3", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL"})
TIED = frozenset({"Gemma", "Gemma2", "Gemma3", "Starcoder2"})
"""The head is the embedding unless the config says otherwise; elsewhere it is a table of its own."""
UNGATED = EMBEDDING - {"NomicBert"} | {"Starcoder2"}

REFUSED_KEYS = {
    "kv_lora_rank": "multi-head latent attention",
    "mamba_d_state": "state-space layers",
    "state_size": "state-space layers",
    "ssm_cfg": "state-space layers",
    "hybrid_override_pattern": "state-space layers",
    "block_types": "recurrent layers",
    "layers_block_type": "state-space layers",
    "linear_num_key_heads": "linear attention",
    "cross_attention_layers": "cross-attention layers",
    "interleave_moe_layer_step": "experts in some of the layers",
}
ENCODER_DECODERS = frozenset(
    {"Bart", "BlenderbotSmall", "MBart", "MT5", "Marian", "Pegasus", "T5", "Whisper"}
)

SLIDING_EVERYWHERE = frozenset({"Mistral", "Mistral3", "Mixtral", "Phi3", "Starcoder2"})
SLIDING_PATTERNS = {"Gemma2": 2, "GptOss": 2, "Gemma3": 6, "Cohere2": 4, "Olmo3": 4}
"""One layer of so many sees everything."""
ATTENTION = ("full_attention", "sliding_attention")
QWEN_FULL_LAYERS = 28
"""`max_window_layers` where a config does not say it: the first so many layers see everything."""


class ModelFacts(NamedTuple):
    """`shape.parameters` is computed from the shape. `format` is None for a checkpoint that is not quantized,
    `dtype` what its numbers are then."""

    shape: Shape
    task: Task
    format: Format | None
    dtype: str


class _Fields(NamedTuple):
    """The keys that describe the language model, wherever they stand in the file."""

    values: Mapping[str, Any]
    where: str
    family: str

    def get(self, key: str) -> Any:
        found = (self.values.get(name) for name in (key, *ALIASES.get(key, ())))
        value = next((value for value in found if value is not None), None)
        return DEFAULTS.get(self.family, {}).get(key) if value is None else value

    def integer(self, key: str, default: int | None = None, *, most: int = MOST, least: int = 1) -> int:
        """A whole number between `least` and `most`. Raises UnsupportedModel."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if value is None:
            raise UnsupportedModel(f"{self.where}: `{key}` is missing")
        size = "plausible" if isinstance(value, int) and value > most else "positive"
        raise UnsupportedModel(f"{self.where}: `{key}` is {value!r}, not a {size} number")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        raise UnsupportedModel(f"{self.where}: `{key}` is {value!r}, neither true nor false")


def read_config(config: Mapping[str, Any], where: str, *, embeds: bool = False) -> ModelFacts:
    """Shape, task and format. `where` names the file in errors; `embeds`: files around it say that the model
    embeds, whatever its architecture.

    Raises UnsupportedModel.
    """
    architecture = _architecture(config, where)
    _refuse(config, where, architecture)
    text = config.get("text_config")
    fields = _Fields(text if isinstance(text, Mapping) else config, where, family(architecture))
    _refuse(fields.values, where, architecture)
    task = _task(architecture, where, embeds)
    shape = _shape(fields, config, architecture, task)
    count = parameter_count(shape, extras=_extras(fields, architecture), positions=_positions(fields))
    return ModelFacts(
        shape=msgspec.structs.replace(shape, parameters=count),
        task=task,
        format=read_format(config, where),
        dtype=_dtype(config, fields),
    )


def _architecture(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise UnsupportedModel(f"{where}: does not name its architecture")


def _refuse(fields: Mapping[str, Any], where: str, architecture: str) -> None:
    """What the formulas of memory do not describe."""
    if fields.get("is_encoder_decoder") is True or family(architecture) in ENCODER_DECODERS:
        raise UnsupportedModel(f"{where}: {architecture} is an encoder-decoder, which cannot be served")
    for key, what in REFUSED_KEYS.items():
        if fields.get(key) is not None:
            raise UnsupportedModel(
                f"{where}: {architecture} has {what} (`{key}`), which cannot be planned for"
            )


def _task(architecture: str, where: str, embeds: bool) -> Task:
    if embeds or family(architecture) in EMBEDDING or architecture in EMBEDDING_DECODERS:
        return "embed"
    if architecture.endswith("ForCausalLM") or family(architecture) in CHAT_WITH_IMAGES:
        return "chat"
    raise UnsupportedModel(f"{where}: {architecture} is neither a language model nor an embedding model")


def _shape(fields: _Fields, config: Mapping[str, Any], architecture: str, task: Task) -> Shape:
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    window, sliding = _sliding(fields, layers)
    moe = _experts(fields, layers)
    return Shape(
        architecture=architecture,
        parameters=0,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=_head_dim(fields, hidden, heads),
        intermediate=_intermediate(fields, hidden, moe),
        vocabulary=fields.integer("vocab_size"),
        context_max=_context(fields),
        tied_head=task == "embed" or _tied(fields, config),
        gated_mlp=fields.family not in UNGATED,
        sliding_window=window,
        sliding_layers=sliding,
        vision=read_vision(config, fields.family, fields.where),
        **moe,
    )


def _kv_heads(fields: _Fields, heads: int) -> int:
    count = fields.integer("num_key_value_heads", heads)
    if heads % count:
        raise UnsupportedModel(
            f"{fields.where}: `num_key_value_heads` is {count}, which does not divide the {heads} heads"
        )
    return count


def _head_dim(fields: _Fields, hidden: int, heads: int) -> int:
    if fields.get("head_dim") is None and hidden % heads:
        raise UnsupportedModel(
            f"{fields.where}: `num_attention_heads` is {heads}, which does not divide `hidden_size` {hidden}"
        )
    return fields.integer("head_dim", max(1, hidden // heads))


def _intermediate(fields: _Fields, hidden: int, moe: Mapping[str, int]) -> int:
    """GPT-2's family leaves it out and means four times the width; a model of experts only may, too."""
    default = 4 * hidden if fields.values.get("n_embd") is not None else moe.get("expert_intermediate")
    return fields.integer("intermediate_size", default)


def _context(fields: _Fields) -> int:
    """Tokens. Some tables of positions begin with rows for padding."""
    positions = fields.integer("max_position_embeddings", most=MOST_TOKENS)
    return max(1, positions - layout(fields.family).position_offset)


def _positions(fields: _Fields) -> int:
    return fields.integer("max_position_embeddings", most=MOST_TOKENS)


def _tied(fields: _Fields, config: Mapping[str, Any]) -> bool:
    outer = _Fields(config, fields.where, fields.family).flag("tie_word_embeddings", fields.family in TIED)
    return fields.flag("tie_word_embeddings", outer)


def _extras(fields: _Fields, architecture: str) -> Layout:
    usual = layout(architecture)
    return usual._replace(
        qkv_bias=fields.flag("attention_bias", usual.qkv_bias),
        o_bias=fields.flag("attention_bias", usual.o_bias),
        mlp_bias=fields.flag("mlp_bias", usual.mlp_bias),
    )


def _experts(fields: _Fields, layers: int) -> dict[str, int]:
    """The fields of a mixture of experts; none for a dense model."""
    if fields.get("num_experts") in (None, 0):
        return {}
    if fields.integer("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel(
            f"{fields.where}: `decoder_sparse_step` is not 1: experts in some of the layers"
        )
    experts = fields.integer("num_experts")
    narrow = fields.get("moe_intermediate_size") is not None
    width = fields.integer("moe_intermediate_size" if narrow else "intermediate_size")
    shared = fields.integer("n_shared_experts", 0, least=0) * width
    return {
        "experts": experts,
        "experts_per_token": fields.integer("num_experts_per_tok", most=experts),
        "expert_intermediate": width,
        "shared_intermediate": fields.integer("shared_expert_intermediate_size", shared, least=0),
        "dense_layers": _dense_layers(fields, layers),
    }


def _dense_layers(fields: _Fields, layers: int) -> int:
    listed = fields.get("mlp_only_layers") or []
    if not isinstance(listed, list) or listed != list(range(len(listed))):
        raise UnsupportedModel(f"{fields.where}: `mlp_only_layers` is {listed!r}, not the first layers")
    return fields.integer("first_k_dense_replace", len(listed), most=layers, least=0)


def _sliding(fields: _Fields, layers: int) -> tuple[int, int]:
    """(window in tokens, layers that see no more); (0, 0) where every layer sees everything."""
    listed = _layer_types(fields, layers)
    if fields.get("sliding_window") in (None, 0) or not _slides(fields, listed):
        return 0, 0
    window = fields.integer("sliding_window", most=MOST_TOKENS)
    count = listed.count("sliding_attention") if listed else _sliding_layers(fields, layers)
    return (window, count) if count and window < _context(fields) else (0, 0)


def _layer_types(fields: _Fields, layers: int) -> tuple[str, ...]:
    """One kind of attention a layer; empty where the config does not list them."""
    listed = fields.get("layer_types")
    if listed is None:
        return ()
    if not isinstance(listed, list) or len(listed) != layers:
        raise UnsupportedModel(f"{fields.where}: `layer_types` does not list {layers} layers")
    for kind in listed:
        if kind not in ATTENTION:
            raise UnsupportedModel(f"{fields.where}: `layer_types` has {kind!r}, which cannot be planned for")
    return tuple(listed)


def _slides(fields: _Fields, listed: Sequence[str]) -> bool:
    """Qwen's configs name a window that is not used without `use_sliding_window`."""
    alone = bool(listed) or fields.family in SLIDING_EVERYWHERE or fields.family in SLIDING_PATTERNS
    return fields.flag("use_sliding_window", alone)


def _sliding_layers(fields: _Fields, layers: int) -> int:
    if fields.family in SLIDING_EVERYWHERE:
        return layers
    if fields.family in SLIDING_PATTERNS:
        return layers - layers // fields.integer("sliding_window_pattern", SLIDING_PATTERNS[fields.family])
    return max(0, layers - fields.integer("max_window_layers", QWEN_FULL_LAYERS, least=0))


def _dtype(config: Mapping[str, Any], fields: _Fields) -> str:
    """What the file says; bfloat16, which nearly all are, where it says nothing."""
    named = (source.get(key) for source in (config, fields.values) for key in ("dtype", "torch_dtype"))
    return next((name for name in named if name in ("float32", "bfloat16", "float16")), "bfloat16")
