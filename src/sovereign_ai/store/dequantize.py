"""Quantised blocks of GGUF → float32, and float32 → the type that is written.

Every value is bit for bit that of ggml's reference in the `gguf` library. The library works on small groups
of rows; for the types that most files are made of the same arithmetic is done here on whole blocks of
memory, which is two to three times as fast. Layouts by
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (`block_q4_0`, `block_q4_K`, …).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Dtype = Literal["float32", "bfloat16", "float16"]

SIZES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a value."""
FIRST_TOO_LARGE: dict[Dtype, int] = {"float32": 0x7F800000, "bfloat16": 0x7F7F8000, "float16": 0x477FF000}
"""The float32, as bits, from which on a value rounds to infinity: infinity itself, and half a step above the
largest bfloat16 and float16 (65,520). Numbers that are none (NaN) lie above all three."""
LIBRARY_VALUES = 1 << 17
"""At a time: the library's temporaries, several times as large, then stay in the cache."""


def readable(kind: GGMLQuantizationType) -> bool:
    """The library says only by failing that it cannot read a type: try on one block of zeros."""
    try:
        dequantise(np.zeros(GGML_QUANT_SIZES[kind][1], dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def dequantise(raw: Bytes, kind: GGMLQuantizationType) -> Floats:
    """Whole blocks, as bytes in one row → their values in one row."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found, and named, by `fits`
        direct = _DIRECT.get(kind)
        if direct:
            return direct(raw.reshape(-1, GGML_QUANT_SIZES[kind][1])).reshape(-1)
        return _by_the_library(raw, kind)


def _by_the_library(raw: Bytes, kind: GGMLQuantizationType) -> Floats:
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    step = max(1, LIBRARY_VALUES // per_block) * block_bytes
    values = np.empty(raw.size // block_bytes * per_block, np.float32)
    for start in range(0, raw.size, step):
        part = gguf.dequantize(raw[np.newaxis, start : start + step], kind).reshape(-1)
        begin = start // block_bytes * per_block
        values[begin : begin + part.size] = part
    return values


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    bits = blocks.view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _scale(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte of every block, as a column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(…, n) bytes → (…, 2, n): low halves, then high halves."""
    halves = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=halves[..., 0, :])
    np.right_shift(packed, 4, out=halves[..., 1, :])
    return halves


def _scaled(quants: Bytes | np.ndarray[Any, np.dtype[np.int8]], scales: Floats, width: int) -> Floats:
    """Every `width` quants times their scale."""
    values: Floats = quants.reshape(-1, width).astype(np.float32)
    values *= scales.reshape(-1, 1)
    return values


def _q4_0(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 2:]).view(np.int8)
    quants -= 8
    return _scaled(quants, _scale(blocks, 0), 32)


def _q4_1(blocks: Bytes) -> Floats:
    values = _scaled(_nibbles(blocks[:, 4:]), _scale(blocks, 0), 32)
    values += _scale(blocks, 2)
    return values


def _q8_0(blocks: Bytes) -> Floats:
    return _scaled(blocks[:, 2:].view(np.int8), _scale(blocks, 0), 32)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight of Q4_K and Q5_K: 6 bits each in 12 bytes, times the two float16 before them.

    Bytes 0-3 and 4-7 hold the first four scales and minima in their lower six bits; their upper two bits are
    those of the last four, whose lower four bits share bytes 8-11.
    """
    packed = np.ascontiguousarray(blocks[:, 4:16]).reshape(-1, 3, 4)
    first, low = packed[:, :2], _nibbles(packed[:, 2])
    whole = np.concatenate([first & 63, low | (first >> 2 & 48)], axis=2).astype(np.float32)
    return whole[:, 0] * _scale(blocks, 0), whole[:, 1] * _scale(blocks, 2)


def _q4_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    values = _scaled(_nibbles(blocks[:, 16:].reshape(-1, 4, 32)), scales, 32)
    values -= minima.reshape(-1, 1)
    return values


def _q5_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    quants = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = blocks[:, np.newaxis, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth &= 1
    fifth <<= 4
    quants |= fifth
    values = _scaled(quants, scales, 32)
    values -= minima.reshape(-1, 1)
    return values


def _q6_k(blocks: Bytes) -> Floats:
    """Four bits in 128 bytes, two more in 64, sixteen signed scales, one float16."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts
    high &= 3
    high <<= 4
    low |= high
    quants = low.view(np.int8)
    quants -= 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _scale(blocks, 208)
    return _scaled(quants, scales, 16)


_Q = GGMLQuantizationType
_DIRECT: dict[GGMLQuantizationType, Callable[[Bytes], Floats]] = {
    _Q.F32: _f32,
    _Q.F16: _f16,
    _Q.BF16: _bf16,
    _Q.Q4_0: _q4_0,
    _Q.Q4_1: _q4_1,
    _Q.Q8_0: _q8_0,
    _Q.Q4_K: _q4_k,
    _Q.Q5_K: _q5_k,
    _Q.Q6_K: _q6_k,
}


def fits(values: Floats, dtype: Dtype) -> bool:
    """Whether every value is a number that `dtype` can hold.

    Told from the bits, whose order is that of the values: as signed integers the largest is the largest
    value above zero, as unsigned ones the largest is the one furthest below zero.
    """
    if not values.size:
        return True
    limit = FIRST_TOO_LARGE[dtype]
    above, below = values.view(np.int32).max(), values.view(np.uint32).max()
    return bool(above < limit and below < (1 << 31) + limit)


def encoded(values: Floats, dtype: Dtype) -> np.ndarray[Any, Any]:
    """Values that `fits` → what is written: float32 as they are, others rounded to nearest, ties to even."""
    if dtype == "float32":
        return np.ascontiguousarray(values)
    return _rounded(values) if dtype == "bfloat16" else values.astype(np.float16, order="C")


def _rounded(values: Floats) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """bfloat16 is the upper half of float32: add just under half a step, and the rest of it to odd ones."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    up = bits >> np.uint32(16)
    up &= np.uint32(1)
    up += np.uint32(0x7FFF)
    up += bits
    return np.ascontiguousarray(up.view(np.uint16)[..., 1::2])
