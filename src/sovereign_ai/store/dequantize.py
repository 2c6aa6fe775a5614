"""Quantised blocks of GGUF → float32, and float32 → the type that is written.

Every value is bit for bit that of ggml's reference in the `gguf` library. The library works on small groups
of rows; for the types that most files are made of the same arithmetic is done here on whole blocks of
memory, which is two to three times as fast. Layouts by
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (`block_q4_0`, `block_q4_K`, …).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint32]]
Dtype = Literal["float32", "bfloat16", "float16"]

SIZES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a value."""
FIRST_TOO_LARGE: dict[Dtype, int] = {"float32": 0x7F800000, "bfloat16": 0x7F7F8000, "float16": 0x477FF000}
"""The float32, as bits, from which on a value rounds to infinity: infinity itself, and half a step above the
largest bfloat16 and float16 (65,520). Numbers that are none (NaN) lie above all three."""
LIBRARY_VALUES = 1 << 17
"""At a time: the library's temporaries, several times as large, then stay in the cache."""
ROUNDED_VALUES = 1 << 18
"""At a time, for the same reason."""


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


@cache
def _float16s() -> Floats:
    """All 65,536 by their bits: looking a number up takes half the time of numpy's conversion."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return _float16s().take(blocks.view(np.uint16), mode="clip")


def _bf16(blocks: Bytes) -> Floats:
    bits = blocks.view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _field(blocks: Bytes, at: int, width: int) -> Bytes:
    """Some bytes of every block, side by side: moved as items of that width, not byte by byte."""
    items = np.ndarray(len(blocks), f"V{width}", blocks, at, blocks.strides[:1])
    return items.copy().view(np.uint8)


def _scale(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte of every block, as a column."""
    halves = np.ndarray((len(blocks), 1), np.float16, blocks, at, (*blocks.strides[:1], 2))
    return halves.astype(np.float32)


def _in_turn(parts: Sequence[Bytes], width: int) -> Bytes:
    """`width` bytes of the first, as many of the second, …, the next of the first, …"""
    merged = np.empty((parts[0].size // width, len(parts)), f"V{width}")
    for number, part in enumerate(parts):
        merged[:, number] = part.view(merged.dtype)
    return merged.view(np.uint8).reshape(-1)


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """Of every `width` bytes the low halves, then the high halves."""
    return _in_turn((packed & np.uint8(15), packed >> np.uint8(4)), width)


def _bits(packed: Bytes, at: int, mask: int) -> Bytes:
    """One or two bits of every byte, where they stand above a nibble."""
    return (packed >> np.uint8(at) & np.uint8(mask)) << np.uint8(4)


def _scaled(quants: Bytes | np.ndarray[Any, np.dtype[np.int8]], scales: Floats, width: int) -> Floats:
    """Every `width` quants times their scale."""
    values: Floats = quants.reshape(-1, width) * scales.reshape(-1, 1)
    return values


def _q4_0(blocks: Bytes) -> Floats:
    quants = _nibbles(_field(blocks, 2, 16), 16).view(np.int8)
    quants -= 8
    return _scaled(quants, _scale(blocks, 0), 32)


def _q4_1(blocks: Bytes) -> Floats:
    values = _scaled(_nibbles(_field(blocks, 4, 16), 16), _scale(blocks, 0), 32)
    values += _scale(blocks, 2)
    return values


def _q8_0(blocks: Bytes) -> Floats:
    return _scaled(_field(blocks, 2, 32).view(np.int8), _scale(blocks, 0), 32)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight of Q4_K and Q5_K: 6 bits each in 12 bytes, times the two float16 before them.

    Bytes 0-3 and 4-7 hold the first four scales and minima in their lower six bits; their upper two bits are
    those of the last four, whose lower four bits share bytes 8-11. Four at a time, as one integer.
    """
    scale, minimum, low = _field(blocks, 4, 12).view("<u4").reshape(-1, 3).T
    packed = np.empty((len(blocks), 2, 2), "<u4")
    packed[:, 0, 0] = scale & 0x3F3F3F3F
    packed[:, 0, 1] = low & 0x0F0F0F0F | scale >> 2 & 0x30303030
    packed[:, 1, 0] = minimum & 0x3F3F3F3F
    packed[:, 1, 1] = low >> 4 & 0x0F0F0F0F | minimum >> 2 & 0x30303030
    whole = packed.view(np.uint8).reshape(-1, 2, 8).astype(np.float32)
    return whole[:, 0] * _scale(blocks, 0), whole[:, 1] * _scale(blocks, 2)


def _q4_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    values = _scaled(_nibbles(_field(blocks, 16, 128), 32), scales, 32)
    values -= minima.reshape(-1, 1)
    return values


def _q5_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    quants = _nibbles(_field(blocks, 48, 128), 32)
    high = _field(blocks, 16, 32)
    quants |= _in_turn([_bits(high, bit, 1) for bit in range(8)], 32)
    values = _scaled(quants, scales, 32)
    values -= minima.reshape(-1, 1)
    return values


def _q6_k(blocks: Bytes) -> Floats:
    """Four bits in 128 bytes, two more in 64, sixteen signed scales, one float16."""
    quants = _nibbles(_field(blocks, 0, 128), 64)
    high = _field(blocks, 128, 64)
    quants |= _in_turn([_bits(high, bit, 3) for bit in (0, 2, 4, 6)], 32)
    signed = quants.view(np.int8)
    signed -= 32
    factors = _field(blocks, 192, 16).view(np.int8).reshape(-1, 16).astype(np.float32)
    return _scaled(signed, factors * _scale(blocks, 208), 16)


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


_SIXTEEN_BITS: dict[GGMLQuantizationType, Dtype] = {_Q.F16: "float16", _Q.BF16: "bfloat16"}
"""What they are outside GGUF."""


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
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1)
    rounded = np.empty(bits.size, np.uint16)
    for start in range(0, bits.size, ROUNDED_VALUES):
        piece = slice(start, start + ROUNDED_VALUES)
        rounded[piece] = _to_bfloat16(bits[piece]) if dtype == "bfloat16" else _to_float16(bits[piece])
    return (rounded if dtype == "bfloat16" else rounded.view(np.float16)).reshape(values.shape)


def recoded(raw: Bytes, kind: GGMLQuantizationType, dtype: Dtype) -> np.ndarray[Any, Any] | None:
    """16-bit numbers of a file → what is written, without the way over float32: the bytes themselves where
    the type stays, else from a table of all 65,536. None for other kinds, and where a number does not fit."""
    if kind not in _SIXTEEN_BITS:
        return None
    bits = raw.view(np.uint16)
    table, first_too_large = _table(kind, dtype)
    if (bits & np.uint16(0x7FFF)).max(initial=0) >= first_too_large:
        return None
    return bits if dtype == _SIXTEEN_BITS[kind] else table.take(bits, mode="clip")


@cache
def _table(kind: GGMLQuantizationType, dtype: Dtype) -> tuple[np.ndarray[Any, Any], int]:
    """What each 16-bit number becomes, and the first above zero that does not fit."""
    values = dequantise(np.arange(1 << 16, dtype=np.uint16).view(np.uint8), kind)
    above_zero = values[: 1 << 15].view(np.uint32)
    with np.errstate(invalid="ignore"):  # what comes of infinities and of no numbers is not looked up
        return encoded(values, dtype), int(np.searchsorted(above_zero, FIRST_TOO_LARGE[dtype]))


def _to_bfloat16(bits: Words) -> Words:
    """bfloat16 is the upper half of float32: just under half a step is added, and the rest of the half to odd
    ones."""
    rounded: Words = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded


def _to_float16(bits: Words) -> Words:
    """As numpy rounds, in a third of its time, and without a branch for what is small.

    Let 2^e be a number's own power of two, but at least 2^-14, below which the steps of float16 stay the
    same. Just above 2^(e + 13) the steps of float32 are those that the number shall have: adding that rounds
    it, and leaves the count of steps in the lower bits. The exponent goes above the count, and 2048 more,
    added on the way, set right what its offsets of 127 and 13 are too much, modulo 2^16: of the result only
    the lower half counts.
    """
    magnitudes = bits & np.uint32(0x7FFFFFFF)
    powers = magnitudes & np.uint32(0x7F800000)
    floats, counts = powers.view(np.float32), magnitudes.view(np.float32)
    np.clip(floats, np.float32(2**-14), np.float32(2**16), out=floats)
    powers += np.uint32((13 << 23) + 2048)
    counts += floats
    powers >>= np.uint32(13)
    magnitudes += powers
    signs = np.right_shift(bits, np.uint32(16), out=powers)
    signs &= np.uint32(0x8000)
    magnitudes |= signs
    return magnitudes
