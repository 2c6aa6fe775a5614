"""What a model folder says of itself: task, shape, number of parameters, bytes of weights.

Nothing of the model is run, and no tensor is read: config files and the headers of the weights.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.catalog.config_json import ModelFacts, read_config
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.spec import Format, Shape, Task
from sovereign_ai.store.weights import TensorHeader, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
EMBED_MARKS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""Files that only sentence-transformers models have."""
PACKED = {".qweight": 8, ".weight_packed": 8}
"""Endings of tensors that hold so many 4-bit weights in each 32-bit number (AWQ and GPTQ,
compressed-tensors)."""
PLAIN = ("float32", "bfloat16", "float16")


class Facts(NamedTuple):
    """`weights_bytes` counts tensors, not headers; `dtype` is the one most of the weights have that are not
    quantized; `format` is None where none are."""

    task: Task
    dtype: str
    weights_bytes: int
    shape: Shape
    format: Format | None = None


def inspect(folder: Path, *, code: bool = False) -> Facts:
    """Read a model folder. Raises BadModelFile for damaged files, UnsupportedModel for models that are of no
    kind that can be served, or need their own code without `code` allowing it."""
    said = _said(folder, code=code)
    headers = [header for path in weight_files(folder) for header in read_header(path)]
    parameters = sum(_weights(header, said) for header in headers)
    if not parameters:
        raise BadModelFile(f"{folder}: the weights hold no numbers")
    return Facts(
        task=said.task,
        dtype=_main_dtype(headers, said),
        weights_bytes=sum(header.size for header in headers),
        shape=msgspec.structs.replace(said.shape, parameters=parameters),
        format=said.format,
    )


def describe(folder: Path, *, code: bool = False) -> Facts:
    """As `inspect`, but a folder with nothing but a config.json is enough: sizes are then computed from it.

    Raises BadModelFile and UnsupportedModel.
    """
    if any(folder.glob("*.safetensors")) or (folder / INDEX_NAME).exists():
        return inspect(folder, code=code)
    said = _said(folder, code=code)
    width = 4 if said.dtype == "float32" else 2
    return Facts(
        task=said.task,
        dtype=said.dtype,
        weights_bytes=width * said.shape.parameters,
        shape=said.shape,
        format=said.format,
    )


def _said(folder: Path, *, code: bool) -> ModelFacts:
    """What the files beside the weights say."""
    config = _object(folder / "config.json")
    if not code:
        _refuse_code(folder, config)
    embeds = any((folder / mark).exists() for mark in EMBED_MARKS)
    said = read_config(config, str(folder / "config.json"), embeds=embeds)
    shape = msgspec.structs.replace(said.shape, context_max=_context(folder, said.shape, said.task))
    return said._replace(shape=shape)


def _weights(header: TensorHeader, said: ModelFacts) -> int:
    """Parameters in a tensor: of a quantized checkpoint packed ones count, scales and zero points do not."""
    if said.shape.tied_head and header.name.endswith("lm_head.weight"):
        return 0  # a copy of the embedding that engines do not load
    if said.format is None:
        return header.elements if "float" in header.dtype else 0
    for ending, count in PACKED.items():
        if header.name.endswith(ending):
            return header.elements * count
    if not header.name.endswith((".weight", ".bias")):
        return 0
    return header.elements * (2 if header.dtype == "uint8" else 1)


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
                f"{path}: the model needs code of its own (`auto_map`), which is never run unasked",
                "if you trust it, name the model in factory.yaml with `remote_code: true`",
            )


def _main_dtype(headers: list[TensorHeader], said: ModelFacts) -> str:
    """What the config says, where everything is quantized."""
    sizes: Counter[str] = Counter()
    for header in headers:
        if "float" in header.dtype and (said.format is None or header.dtype in PLAIN):
            sizes[header.dtype] += header.size
    return sizes.most_common(1)[0][0] if sizes else said.dtype


def _context(folder: Path, shape: Shape, task: Task) -> int:
    """Tokens. An embedding model's own limit, shorter than its position table, is what it was trained for."""
    path = folder / "sentence_bert_config.json"
    if task == "embed" and path.exists():
        return min(shape.context_max, _limit(path, shape.context_max))
    return shape.context_max


def _limit(path: Path, default: int) -> int:
    value = _object(path).get("max_seq_length")
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise UnsupportedModel(f"{path}: `max_seq_length` is {value!r}, not a positive number")
