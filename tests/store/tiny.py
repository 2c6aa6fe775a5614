"""Models of a few thousand parameters, made the way real ones are."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER = 2, 64, 4, 2, 16, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2", "Ġ 1"]
TOKENS = SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES] + ["<think>"]
VOCABULARY = len(TOKENS)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def shapes(*, hidden: int = HIDDEN, inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """Names of GGUF → row-major shapes."""
    keys = hidden // HEADS * KV_HEADS
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, hidden)}
    for number in range(LAYERS):
        found |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"output_norm.weight": (hidden,)}


def tensors(*, tied: bool = True) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Names of GGUF → random float32 values."""
    chosen = shapes() | ({} if tied else {"output.weight": (VOCABULARY, HIDDEN)})
    random = np.random.default_rng(7)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in chosen.items()}


def keys(**changes: Any) -> dict[str, Any]:
    """The metadata of a tiny Llama; a change to None leaves the key out. `__` in a name stands for a dot."""
    fields: dict[str, Any] = {
        "general.license": "apache-2.0",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 100_000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (VOCABULARY - len(SPECIAL) - 1) + [4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in fields.items() if value is not None}


def _add_key(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    fields: dict[str, Any] | None = None,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    architecture: str = "llama",
) -> Path:
    """A GGUF file; matrices are quantised to `kind`, vectors stay float32, byte arrays go in as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (keys() if fields is None else fields).items():
        _add_key(writer, name, value)
    for name, values in (tensors() if weights is None else weights).items():
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=kind)
        elif values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BERT = {
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
    "vocab_size": 10,
    "max_position_embeddings": 64,
}


def write_folder(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A model folder as sentence-transformers leaves it."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(BERT if config is None else config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "run_me.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"never taken")
    weights: dict[str, np.ndarray[Any, Any]] = {
        "embeddings.weight": np.ones((10, 32), np.float32),
        "position_ids": np.arange(64),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts, with `files` in it."""
    distribution = name.replace("-", "_")
    path = folder / f"{distribution}-{version}-py3-none-any.whl"
    info = f"{distribution}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n\nText\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def folder_files(folder: Path, prefix: str) -> dict[str, bytes]:
    """The files of a folder, as `write_wheel` takes them."""
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
