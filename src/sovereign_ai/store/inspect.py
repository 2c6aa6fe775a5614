"""What a model folder says of itself: task, shape, number of parameters, bytes of weights.

Nothing of the model is run, and no tensor is read: config files and the headers of the weights.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.spec import Shape, Task
from sovereign_ai.store.weights import TensorHeader, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
EMBED_MARKS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""Files that only sentence-transformers models have."""


class Facts(NamedTuple):
    """`weights_bytes` counts tensors, not headers; `dtype` is the one most of the weights have."""

    task: Task
    dtype: str
    weights_bytes: int
    shape: Shape


def inspect(folder: Path) -> Facts:
    """Read a model folder. Raises BadModelFile for damaged files, UnsupportedModel for models that need
    their own code or are of no kind that can be served."""
    config = _object(folder / "config.json")
    _refuse_code(folder, config)
    headers = [header for path in weight_files(folder) for header in read_header(path)]
    floats = [header for header in headers if "float" in header.dtype]
    if not floats:
        raise BadModelFile(f"{folder}: the weights hold no numbers")
    architecture = _architecture(folder, config)
    task = _task(folder, architecture)
    return Facts(
        task=task,
        dtype=_main_dtype(floats),
        weights_bytes=sum(header.size for header in headers),
        shape=_shape(folder, config, architecture, task, sum(header.elements for header in floats)),
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The SafeTensors files that make up the model: those of the index, else model.safetensors, else all."""
    if (folder / INDEX_NAME).exists():
        return _indexed(folder)
    if (folder / SINGLE_NAME).exists():
        return (folder / SINGLE_NAME,)
    found = tuple(sorted(folder.glob("*.safetensors")))
    if not found:
        raise BadModelFile(f"{folder}: holds no *.safetensors file")
    return found


def _indexed(folder: Path) -> tuple[Path, ...]:
    names = _object(folder / INDEX_NAME).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BadModelFile(f"{folder / INDEX_NAME}: `weight_map` is missing or damaged")
    paths = tuple(folder / name for name in sorted(set(names.values())))
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise BadModelFile(
                f"{path}: missing, {INDEX_NAME} names it", "the model is incomplete: get it again"
            )
    return paths


def _object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError as error:
        raise BadModelFile(f"{path}: missing") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadModelFile(f"{path}: not a JSON object: {error}") from error


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    """Models that bring their own Python are refused: serving must not mean running a stranger's program."""
    tokenizer = folder / "tokenizer_config.json"
    for path, fields in (
        (folder / "config.json", config),
        (tokenizer, _object(tokenizer) if tokenizer.exists() else {}),
    ):
        if "auto_map" in fields:
            raise UnsupportedModel(
                f"{path}: the model needs code of its own (`auto_map`), which is never run"
            )


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise UnsupportedModel(f"{folder / 'config.json'}: does not name its architecture")


def _task(folder: Path, architecture: str) -> Task:
    if architecture == "BertModel" or any((folder / mark).exists() for mark in EMBED_MARKS):
        return "embed"
    if architecture.endswith("ForCausalLM"):
        return "chat"
    raise UnsupportedModel(f"{folder}: {architecture} is neither a language model nor an embedding model")


def _main_dtype(headers: list[TensorHeader]) -> str:
    sizes: Counter[str] = Counter()
    for header in headers:
        sizes[header.dtype] += header.size
    return sizes.most_common(1)[0][0]


def _shape(folder: Path, config: dict[str, Any], architecture: str, task: Task, parameters: int) -> Shape:
    heads = _integer(folder, config, "num_attention_heads")
    hidden = _integer(folder, config, "hidden_size")
    return Shape(
        architecture=architecture,
        parameters=parameters,
        layers=_integer(folder, config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(folder, config, "num_key_value_heads", heads),
        head_dim=_integer(folder, config, "head_dim", hidden // heads),
        intermediate=_integer(folder, config, "intermediate_size"),
        vocabulary=_integer(folder, config, "vocab_size"),
        context_max=_context(folder, config, task),
    )


def _integer(folder: Path, fields: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if fields.get(key) is None else fields[key]
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    said = "missing" if value is None else f"{value!r}, not a positive number"
    raise UnsupportedModel(f"{folder / 'config.json'}: `{key}` is {said}")


def _context(folder: Path, config: dict[str, Any], task: Task) -> int:
    """Tokens. An embedding model's own limit, shorter than its position table, is what it was trained for."""
    positions = _integer(folder, config, "max_position_embeddings")
    path = folder / "sentence_bert_config.json"
    if task == "embed" and path.exists():
        return min(positions, _integer(folder, _object(path), "max_seq_length", positions))
    return positions
