"""GGUF → a model folder that vLLM and transformers read: SafeTensors, config, tokenizer.

Weights are dequantised and written a block of rows at a time, so memory stays at a few blocks whatever the
size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import gguf
import msgspec
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sovereign_ai.console import Progress
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, TensorInfo, read_gguf
from sovereign_ai.store.llama import ROPE_FACTORS, Target, config, read_llama, targets, token_ids, unpermute
from sovereign_ai.store.tokenizer import TokenizerFiles, convert_tokenizer
from sovereign_ai.store.weights import TensorHeader, write_weights

WEIGHTS_NAME = "model.safetensors"
BLOCK_BYTES = 16 << 20
"""Of dequantised float32 values at a time: large against the cost of a step, small against any memory."""

Dtype = Literal["float32", "bfloat16", "float16"]
_SIZES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class Conversion(NamedTuple):
    """A GGUF that has been checked as far as it can be without reading the weights."""

    file: GgufFile
    dtype: Dtype
    targets: tuple[Target, ...]
    config: dict[str, Any]
    tokenizer: TokenizerFiles

    @property
    def weights_bytes(self) -> int:
        return sum(header.size for header in self.headers)

    @property
    def headers(self) -> tuple[TensorHeader, ...]:
        size = _SIZES[self.dtype]
        return tuple(
            TensorHeader(target.name, self.dtype, target.shape, math.prod(target.shape) * size)
            for target in self.targets
        )

    @property
    def license(self) -> str | None:
        return self.file.text("general.license", "") or None

    def write(self, folder: Path, progress: Progress) -> None:
        """Write everything into `folder`, which must not exist. Progress in bytes of weights written."""
        folder.mkdir()
        with self.file.path.open("rb") as source:
            write_weights(folder / WEIGHTS_NAME, self.headers, self._blocks(source), progress)
        generation = {"_from_model_config": True, **token_ids(self.file)}
        _write_json(folder / "config.json", self.config)
        _write_json(folder / "generation_config.json", generation)
        _write_json(folder / "tokenizer_config.json", self.tokenizer.config)
        _write_json(folder / "special_tokens_map.json", self.tokenizer.special_tokens)
        (folder / "tokenizer.json").write_text(self.tokenizer.tokenizer, encoding="utf-8")

    def _blocks(self, source: BinaryIO) -> Iterator[memoryview]:
        for target in self.targets:
            for values in _dequantised(self.file.path, source, target.info, target.head_dim):
                rows = unpermute(values, target.head_dim) if target.head_dim else values
                yield _encoded(self.file.path, target, rows, self.dtype)


def read_conversion(path: Path, dtype: Dtype = "float32") -> Conversion:
    """Check a GGUF and work out what it becomes.

    With float32 every dequantised value is kept exactly; bfloat16 and float16 round to nearest and halve
    the weights. Raises BadModelFile or UnsupportedModel.
    """
    file = read_gguf(path)
    sizes = read_llama(file)
    found = targets(file, sizes)
    for kind in {target.info.type for target in found}:
        _check_readable(path, kind)
    fields = config(file, sizes, dtype, _rope_factors(file))
    tokenizer = convert_tokenizer(file, sizes.vocabulary, fields["max_position_embeddings"])
    return Conversion(file, dtype, found, fields, tokenizer)


def _check_readable(path: Path, kind: GGMLQuantizationType) -> None:
    """The library says only by failing that it cannot read a type: try on one block of zeros."""
    try:
        _dequantise(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError as error:
        raise UnsupportedModel(f"{path}: weights of type {kind.name} cannot be converted") from error


def _dequantise(
    rows: np.ndarray[Any, Any], kind: GGMLQuantizationType
) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found, and named, in _encoded
        values: np.ndarray[Any, np.dtype[np.float32]] = gguf.dequantize(rows, kind)
    return values


def _rope_factors(file: GgufFile) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    for info in file.tensors:
        if info.name == ROPE_FACTORS:
            _check_readable(file.path, info.type)
            with file.path.open("rb") as source:
                return next(_dequantised(file.path, source, info, None)).reshape(-1)
    return None


def _dequantised(
    path: Path, source: BinaryIO, info: TensorInfo, head_dim: int | None
) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """A tensor as float32 blocks of (rows, columns), each of whole heads where `head_dim` is set."""
    unit = head_dim or 1
    row_bytes = info.size // info.rows
    step = max(1, BLOCK_BYTES // (info.shape[-1] * 4 * unit)) * unit
    source.seek(info.offset)
    for start in range(0, info.rows, step):
        count = min(step, info.rows - start)
        raw = source.read(count * row_bytes)
        if len(raw) != count * row_bytes:
            raise BadModelFile(f"{path}: changed while it was read: tensor `{info.name}` ends early")
        yield _dequantise(np.frombuffer(raw, np.uint8).reshape(count, row_bytes), info.type)


def _encoded(
    path: Path, target: Target, rows: np.ndarray[Any, np.dtype[np.float32]], dtype: Dtype
) -> memoryview:
    with np.errstate(over="ignore"):
        encoded = rows.astype(np.float16) if dtype == "float16" else rows
    if not np.isfinite(encoded).all():
        raise BadModelFile(
            f"{path}: tensor `{target.info.name}` has values that {dtype} cannot hold, or are no numbers"
        )
    if dtype == "bfloat16":
        encoded = gguf.quantize(rows, GGMLQuantizationType.BF16)
    return np.ascontiguousarray(encoded).data.cast("B")


def _write_json(path: Path, value: object) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
