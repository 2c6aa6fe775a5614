"""SafeTensors files: headers read with every offset checked, and files written tensor by tensor.

Format by https://github.com/huggingface/safetensors#format: eight bytes of header length, a JSON header,
the tensors one after the other without holes. The library's own writer needs all tensors in memory at
once, hence the writer here; what it writes is opened with the library before it is trusted.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from safetensors import SafetensorError, safe_open

from sovereign_ai.console import Progress
from sovereign_ai.errors import BadModelFile, UnsupportedModel

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""
ALIGNMENT = 8
"""The header is padded with spaces so that the data begins at a multiple of this, as the library does it."""

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""The format's names → the names engines use, and bytes an element."""


class TensorHeader(NamedTuple):
    """One tensor of a file. `dtype` by the engines' names, `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> tuple[TensorHeader, ...]:
    """The tensors of a file in the order of their data.

    Raises BadModelFile unless they fill the file exactly: no hole, no overlap, nothing beyond the end.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BadModelFile(
                f"{path}: not a SafeTensors file, or cut off: {size} bytes, header of {length}"
            )
        raw = file.read(length)
    entries = sorted(_entries(path, raw).items(), key=lambda item: item[1].data_offsets)
    position = 0
    headers = []
    for name, entry in entries:
        headers.append(_tensor_header(path, name, entry, position))
        position += headers[-1].size
    if position != size - 8 - length:
        raise BadModelFile(
            f"{path}: the tensors need {position} bytes, the file has {size - 8 - length}",
            "the file is incomplete or damaged: get it again",
        )
    return tuple(headers)


def _entries(path: Path, raw: bytes) -> dict[str, _Entry]:
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        fields.pop("__metadata__", None)
        return {name: msgspec.json.decode(field, type=_Entry) for name, field in fields.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadModelFile(f"{path}: damaged SafeTensors header: {error}") from error


def _tensor_header(path: Path, name: str, entry: _Entry, position: int) -> TensorHeader:
    known = DTYPES.get(entry.dtype)
    if known is None:
        raise UnsupportedModel(f"{path}: tensor `{name}` is of the unknown type {entry.dtype}")
    size = math.prod(entry.shape) * known[1]
    if min(entry.shape, default=0) < 0 or entry.data_offsets != (position, position + size):
        raise BadModelFile(
            f"{path}: tensor `{name}` of {size} bytes is said to lie at {list(entry.data_offsets)}, "
            f"expected at {position}"
        )
    return TensorHeader(name, known[0], entry.shape, size)


def write_weights(
    path: Path, tensors: Sequence[TensorHeader], blocks: Iterable[bytes | memoryview], progress: Progress
) -> None:
    """Write the header of `tensors`, then `blocks`, which together are their data in that order.

    Progress in bytes written. Raises BadModelFile if the library then finds other tensors than these.
    """
    done = 0
    with path.open("xb") as file:
        file.write(_header(tensors))
        for block in blocks:
            done += file.write(block)
            progress.update(done)
    _check_written(path, tensors)


def _header(tensors: Sequence[TensorHeader]) -> bytes:
    codes = {dtype: code for code, (dtype, _) in DTYPES.items()}
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    position = 0
    for tensor in tensors:
        end = position + tensor.size
        fields[tensor.name] = {
            "dtype": codes[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (position, end),
        }
        position = end
    raw = msgspec.json.encode(fields)
    raw += b" " * (-len(raw) % ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw


def _check_written(path: Path, tensors: Sequence[TensorHeader]) -> None:
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BadModelFile(f"{path}: what was written cannot be read back: {error}") from error
    if found != {tensor.name: tensor.shape for tensor in tensors}:
        raise BadModelFile(f"{path}: what was written holds other tensors than it should")
