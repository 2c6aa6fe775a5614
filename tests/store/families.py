"""Tiny models of every family, in the layout of their original and as a GGUF made from it.

Names come from the `gguf` library's own table, metadata from what llama.cpp's converter writes
(https://github.com/ggml-org/llama.cpp, `conversion/`): neither is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, GGMLQuantizationType

from tests.store.tiny import keys, write_gguf

Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
LONG, SHORT = [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
VOCABULARY = 300

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_GEMMA = {
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SMALL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "llama-3": _SMALL
    | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "mistral": _SMALL
    | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8},
    "mistral-nemo": _SMALL
    | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 32, "rope_theta": 1e6},
    "qwen2": _SMALL
    | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen2-long": _SMALL
    | {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3": _SMALL
    | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "rope_theta": 1e6},
    "gemma2": _SMALL
    | _GEMMA
    | {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": _SMALL
    | _GEMMA
    | {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 7,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": _SMALL | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "sliding_window": 8},
    "phi3-long": _SMALL
    | {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "sliding_window": 128,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT},
    },
    "phi4-mini": _SMALL
    | {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
        "head_dim": 16,
        "sliding_window": None,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "longrope", "long_factor": LONG[:6], "short_factor": SHORT[:6]},
    },
    "bert": {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
}
"""config.json of each, as its authors would write it."""
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "phi3": MODEL_ARCH.PHI3,
    "bert": MODEL_ARCH.BERT,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names of the original → row-major shapes."""
    return _bert_shapes(config) if config["model_type"] == "bert" else _decoder_shapes(config)


def _decoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in _layer(config).items()}
    found["model.norm.weight"] = (hidden,)
    return found | (
        {} if config["tie_word_embeddings"] else {"lm_head.weight": (config["vocab_size"], hidden)}
    )


def _layer(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads, keys = (config[f"num_{name}_heads"] * config["head_dim"] for name in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, heads),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if kind == "phi3":
        return layer | {
            "self_attn.qkv_proj.weight": (heads + 2 * keys, hidden),
            "mlp.gate_up_proj.weight": (2 * inner, hidden),
        }
    rows = {"q": heads, "k": keys, "v": keys}
    layer |= {f"self_attn.{name}_proj.weight": (count, hidden) for name, count in rows.items()}
    layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    if kind == "qwen2":
        layer |= {f"self_attn.{name}_proj.bias": (count,) for name, count in rows.items()}
    if kind in ("qwen3", "gemma3_text"):
        layer |= {f"self_attn.{name}_norm.weight": (config["head_dim"],) for name in "qk"}
    if kind.startswith("gemma"):
        layer |= {f"{name}_feedforward_layernorm.weight": (hidden,) for name in ("pre", "post")}
    return layer


def _bert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    layer: dict[str, tuple[int, ...]] = {
        **{f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")},
        "attention.output.dense": (hidden, hidden),
        "attention.output.LayerNorm": (hidden,),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
        "output.LayerNorm": (hidden,),
    }
    for number in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            found[f"encoder.layer.{number}.{name}.weight"] = shape
            found[f"encoder.layer.{number}.{name}.bias"] = shape[:1]
    return found


def random_tensors(config: dict[str, Any], seed: int = 7) -> Tensors:
    """In the original's layout; norms around one, or around zero where one is added while running. Multiples
    of 2^-10, so that one can be added and taken away without loss."""
    dice = np.random.default_rng(seed)
    centre = 0.0 if config["model_type"].startswith("gemma") else 1.0
    return {
        name: (
            np.round(dice.standard_normal(shape) * 200) / 1024 + (centre if len(shape) == 1 else 0)
        ).astype(np.float32)
        for name, shape in shapes(config).items()
    }


def to_gguf(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """The original's tensors → names, order of rows and offsets of GGUF, and the factors of RoPE."""
    kind = config["model_type"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], config["num_hidden_layers"])
    found = {}
    for name, values in tensors.items():
        if kind in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
            values = neighbours(values, config["head_dim"])
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, name
        found[new] = values.astype(np.float32)
    return found | _factors(config)


def neighbours(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Row j of the first half of a head and row j of the second become neighbours."""
    half = head_dim // 2
    order = [
        head + offset + j
        for head in range(0, len(rows), head_dim)
        for j in range(half)
        for offset in (0, half)
    ]
    return rows[order]


def _factors(config: dict[str, Any]) -> Tensors:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if scaling.get("rope_type") != "llama3":
        return {}
    # as convert_hf_to_gguf.py and `_compute_llama3_parameters` of transformers have it
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
    factors = []
    for i in range(0, config["head_dim"], 2):
        wave = 2 * np.pi * config["rope_theta"] ** (i / config["head_dim"])
        smooth = (scaling["original_max_position_embeddings"] / wave - scaling["low_freq_factor"]) / span
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1.0 if wave < high else scaling["factor"] if wave > low else between)
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that describe the model, without the tokenizer's."""
    kind = config["model_type"]
    prefix = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[kind]]
    fields = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
    }
    more: Callable[[dict[str, Any]], dict[str, Any]] = _bert_keys if kind == "bert" else _decoder_keys
    return {"general.license": "mit"} | {f"{prefix}.{name}": v for name, v in (fields | more(config)).items()}


def _bert_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention.layer_norm_epsilon": config["layer_norm_eps"],
        "attention.causal": False,
        "pooling_type": 1,
    }


def _decoder_keys(config: dict[str, Any]) -> dict[str, Any]:
    kind, head = config["model_type"], config["head_dim"]
    fields = {
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    if kind != "phi3":
        fields |= {"attention.key_length": head, "attention.value_length": head}
    if kind != "gemma2":
        fields["rope.freq_base"] = config["rope_theta"]
    if kind in ("llama", "mistral", "phi3"):
        fields["rope.dimension_count"] = int(head * config.get("partial_rotary_factor", 1.0))
    if kind.startswith("gemma") or kind in ("phi3", "mistral"):
        fields["attention.sliding_window"] = config["sliding_window"] or 0
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            fields[name] = config[name]
    return fields | _scaling_keys(config)


def _scaling_keys(config: dict[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    kind, original = scaling.get("rope_type"), int(config.get("original_max_position_embeddings") or 0)
    if kind == "longrope":
        scale = config["max_position_embeddings"] / original
        return {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(scale) / np.log(original))),
        }
    if config["model_type"] == "phi3":
        return {"rope.scaling.original_context_length": original or config["max_position_embeddings"]}
    if kind not in ("linear", "yarn"):
        return {}
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return keys


def byte_tokenizer(pre: str = "qwen2") -> dict[str, Any]:
    return {name: value for name, value in keys().items() if name.startswith("tokenizer.")} | {
        "tokenizer.ggml.pre": pre
    }


def piece_tokenizer(*, prefix: bool = True) -> dict[str, Any]:
    """Like Llama 2's: three special tokens, a byte each, some pieces."""
    pieces = ["▁", "e", "t", "a", "h", "l", "o", "▁t", "he", "ll", "▁a", "▁the", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<|end|>", "  "]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(pieces))] + [-1000.0] * 2,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3, 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def word_tokenizer() -> dict[str, Any]:
    words = ["hello", "world", "the", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in words), "ing", *"abcxyz"]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }


def tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """What models of that family have."""
    kind = config["model_type"]
    if kind == "bert":
        return word_tokenizer()
    if kind in ("llama", "qwen2", "qwen3"):
        return byte_tokenizer()
    return piece_tokenizer(prefix=not kind.startswith("gemma"))


def write_family(
    path: Path,
    name: str,
    tensors: Tensors | None = None,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **changes: Any,
) -> Path:
    """A GGUF of CONFIGS[name]. A change to None leaves a key out; `__` in a name stands for a dot."""
    config = CONFIGS[name]
    fields = metadata(config) | tokenizer(config) | {key.replace("__", "."): v for key, v in changes.items()}
    return write_gguf(
        path,
        to_gguf(config, random_tensors(config) if tensors is None else tensors),
        {key: value for key, value in fields.items() if value is not None},
        kind=kind,
        architecture=gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]],
    )
