"""GGUF, read defensively: every length is checked against the file before it is believed.

Layout by https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` library has a reader too,
but it maps the file and trusts its counts: a truncated file ends in any of a dozen exceptions, and an absurd
count in a full memory. So the header is read here, and the library is used for what it knows best, the
quantisation formats.
"""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from sovereign_ai.errors import BadModelFile, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 had 32-bit lengths and was replaced after two months in 2023."""
MAX_HEADER_BYTES = 256 << 20
"""Bounds the memory that a header can ask for. The largest vocabularies in use make headers of 30 MB."""
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

_NUMBERS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


class TensorInfo(NamedTuple):
    """Where one tensor lies. `shape` is row-major (GGUF itself lists the fastest dimension first), `offset`
    and `size` are in bytes from the beginning of `path`."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int
    path: Path

    @property
    def rows(self) -> int:
        """Rows that can be dequantised one by one; a vector is one row."""
        return math.prod(self.shape[:-1])


class GgufFile(NamedTuple):
    """A GGUF whose header is sound. Arrays of numbers are numpy arrays, arrays of text are lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def tensor(self, name: str) -> TensorInfo | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def integer(self, key: str, default: int | None = None) -> int:
        """Raises BadModelFile if the key is missing (without a default) or holds something else."""
        value = self._value(key, default)
        if isinstance(value, np.integer | int) and not isinstance(value, bool):
            return int(value)
        raise BadModelFile(f"{self.path}: `{key}` is not an integer")

    def number(self, key: str, default: float | None = None) -> float:
        """A float32 becomes the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
        value = self._value(key, default)
        if isinstance(value, np.floating | float | np.integer) and np.isfinite(value):
            return float(str(value))
        raise BadModelFile(f"{self.path}: `{key}` is not a number")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if isinstance(value, str):
            return value
        raise BadModelFile(f"{self.path}: `{key}` is not text")

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if isinstance(value, np.bool_ | bool):
            return bool(value)
        raise BadModelFile(f"{self.path}: `{key}` is not true or false")

    def texts(self, key: str) -> list[str]:
        value = self._value(key, None)
        if isinstance(value, list):
            return value
        raise BadModelFile(f"{self.path}: `{key}` is not a list of texts")

    def integers(self, key: str) -> list[int]:
        value = self._value(key, None)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            numbers: list[int] = value.tolist()
            return numbers
        raise BadModelFile(f"{self.path}: `{key}` is not a list of integers")

    def numbers(self, key: str) -> np.ndarray[Any, Any]:
        value = self._value(key, None)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and np.isfinite(value).all():
            return value
        raise BadModelFile(f"{self.path}: `{key}` is not a list of numbers")

    def _value(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise BadModelFile(f"{self.path}: `{key}` is missing")
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header: magic, version, every length, and that every tensor lies within the file.

    Raises BadModelFile naming what is wrong and how many bytes are missing, UnsupportedModel for a sound
    file of a kind that cannot be read.
    """
    with path.open("rb") as file:
        cursor = _Cursor(path, file)
        _check_start(cursor)
        tensor_count, key_count = cursor.unpack("<QQ", "the counts")
        metadata = _metadata(cursor, key_count)
        alignment = _alignment(path, metadata)
        infos = [_tensor_info(cursor) for _ in range(cursor.count(tensor_count, 32, "tensors"))]
    start = -(-cursor.position // alignment) * alignment
    tensors = tuple(info._replace(offset=start + info.offset) for info in infos)
    _check_tensors(path, cursor.size, alignment, tensors)
    return GgufFile(path, metadata, tensors)


class _Cursor:
    """Reads forward, never further than the file and MAX_HEADER_BYTES go."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.size = path.stat().st_size
        self.position, self._limit = 0, min(self.size, MAX_HEADER_BYTES)

    def take(self, count: int, what: str) -> bytes:
        end = self.position + count
        if end > self._limit:
            raise self._too_far(count, what)
        self.position = end
        return self._file.read(count)

    def _too_far(self, count: int, what: str) -> BadModelFile:
        missing = self.position + count - self.size
        if missing > 0:
            return BadModelFile(
                f"{self.path}: ends inside {what}: {missing} bytes are missing after byte {self.size}",
                _INCOMPLETE,
            )
        return BadModelFile(
            f"{self.path}: {what} at byte {self.position} claims {count} bytes, which is absurd"
        )

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def count(self, claimed: int, least_bytes: int, what: str) -> int:
        """A number of items, believed only if the rest of the file can hold that many."""
        missing = self.position + claimed * least_bytes - self.size
        if missing > 0:
            raise BadModelFile(
                f"{self.path}: claims {claimed} {what}, for which at least {missing} bytes are missing",
                _INCOMPLETE,
            )
        return claimed

    def text(self, what: str) -> str:
        raw = self.take(int.from_bytes(self.take(8, what), "little"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadModelFile(f"{self.path}: {what} is not UTF-8 text") from error


_INCOMPLETE = "the file is incomplete or damaged: get it again"


def _check_start(cursor: _Cursor) -> None:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        raise BadModelFile(f"{cursor.path}: not a GGUF file: begins with {magic!r}")
    (version,) = cursor.unpack("<I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        kind = "big-endian" if swapped else f"version {version}"
        raise UnsupportedModel(
            f"{cursor.path}: a {kind} GGUF; versions 2 and 3, little-endian, are supported"
        )


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(count, 13, "keys")):
        key = cursor.text("the name of a key")
        if key in metadata:
            raise BadModelFile(f"{cursor.path}: key `{key}` occurs twice")
        (kind,) = cursor.unpack("<I", f"key `{key}`")
        metadata[key] = _array(cursor, key) if kind == GGUFValueType.ARRAY else _scalar(cursor, key, kind)
    return metadata


def _scalar(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == GGUFValueType.STRING:
        return cursor.text(f"key `{key}`")
    return _numbers(cursor, key, kind, 1)[0]


def _array(cursor: _Cursor, key: str) -> Any:
    kind, claimed = cursor.unpack("<IQ", f"key `{key}`")
    if kind == GGUFValueType.STRING:
        count = cursor.count(claimed, 8, f"items in `{key}`")
        what = f"key `{key}`"
        return [cursor.text(what) for _ in range(count)]
    if kind == GGUFValueType.ARRAY:
        raise UnsupportedModel(f"{cursor.path}: key `{key}` is an array of arrays")
    return _numbers(cursor, key, kind, claimed)


def _numbers(cursor: _Cursor, key: str, kind: int, count: int) -> np.ndarray[Any, Any]:
    dtype = _NUMBERS.get(kind)
    if dtype is None:
        raise BadModelFile(f"{cursor.path}: key `{key}` is of the unknown type {kind}")
    return np.frombuffer(cursor.take(count * dtype.itemsize, f"key `{key}`"), dtype)


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    alignment = int(GgufFile(path, metadata, ()).integer("general.alignment", GGUF_DEFAULT_ALIGNMENT))
    if alignment < 8 or alignment & (alignment - 1):
        raise BadModelFile(f"{path}: alignment {alignment} is not a power of two of at least 8")
    return alignment


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """One entry of the tensor list; `offset` still counts from the beginning of the data."""
    name = cursor.text("the name of a tensor")
    what = f"the description of tensor `{name}`"
    (dimensions,) = cursor.unpack("<I", what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadModelFile(f"{cursor.path}: tensor `{name}` has {dimensions} dimensions")
    shape = tuple(reversed(cursor.unpack(f"<{dimensions}Q", what)))
    kind, offset = cursor.unpack("<IQ", what)
    if kind not in GGML_QUANT_SIZES:
        raise UnsupportedModel(f"{cursor.path}: tensor `{name}` is of the unknown type {kind}")
    tensor_type = GGMLQuantizationType(kind)
    per_block, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if 0 in shape or shape[-1] % per_block:
        raise BadModelFile(
            f"{cursor.path}: tensor `{name}` has shape {list(shape)}, not blocks of {per_block}"
        )
    size = math.prod(shape) // per_block * block_bytes
    return TensorInfo(name, shape, tensor_type, offset, size, cursor.path)


def _check_tensors(path: Path, size: int, alignment: int, tensors: tuple[TensorInfo, ...]) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadModelFile(f"{path}: two tensors have the same name")
    by_offset = sorted(tensors, key=lambda tensor: tensor.offset)
    for tensor in by_offset:
        if tensor.offset % alignment:
            raise BadModelFile(f"{path}: tensor `{tensor.name}` does not begin at a multiple of {alignment}")
    for before, after in pairwise(by_offset):
        if before.offset + before.size > after.offset:
            raise BadModelFile(f"{path}: tensors `{before.name}` and `{after.name}` overlap")
    if by_offset and (end := by_offset[-1].offset + by_offset[-1].size) > size:
        raise BadModelFile(
            f"{path}: ends at byte {size}, but tensor `{by_offset[-1].name}` goes to byte {end}: "
            f"{end - size} bytes are missing",
            _INCOMPLETE,
        )
