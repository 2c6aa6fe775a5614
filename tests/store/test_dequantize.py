from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.store import dequantize
from sovereign_ai.store.dequantize import Dtype, dequantise, encoded, fits, readable, recoded

Q = GGMLQuantizationType
LARGEST: dict[Dtype, float] = {"float32": 3.4028235e38, "bfloat16": 3.3895314e38, "float16": 65504.0}


def as_bits(values: Any) -> Any:
    return np.asarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("kind", [kind for kind in Q if readable(kind)])
@pytest.mark.parametrize("blocks", [1, 7, 600])
def test_any_bytes_become_what_the_library_makes_of_them(kind: Q, blocks: int) -> None:
    """Infinities and what is no number included: bit for bit."""
    raw = np.random.default_rng(blocks).integers(0, 256, blocks * GGML_QUANT_SIZES[kind][1], dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw.reshape(blocks, -1), kind)
    assert np.array_equal(as_bits(dequantise(raw, kind)), as_bits(expected).reshape(-1))


def test_the_library_is_asked_for_a_few_values_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(1).integers(0, 60, 5 * GGML_QUANT_SIZES[Q.Q3_K][1], dtype=np.uint8)
    whole = dequantise(raw, Q.Q3_K)
    monkeypatch.setattr(dequantize, "LIBRARY_VALUES", 512)
    assert np.array_equal(dequantise(raw, Q.Q3_K), whole)


def test_types_that_the_library_cannot_read() -> None:
    assert not readable(Q.I32)
    assert not readable(Q.Q8_K)


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=64))
def test_bfloat16_rounds_as_the_library_does(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(1.5))
    expected = gguf.quantize(values, Q.BF16).view(np.uint16)
    assert np.array_equal(encoded(values, "bfloat16"), expected)


@given(st.lists(st.integers(0, 0x477FEFFF), min_size=1, max_size=64), st.sampled_from([0, 1 << 31]))
def test_float16_rounds_as_numpy_does_whatever_the_bits(magnitudes: list[int], sign: int) -> None:
    values = (np.array(magnitudes, np.uint32) | np.uint32(sign)).view(np.float32)
    assert np.array_equal(
        encoded(values, "float16").view(np.uint16), values.astype(np.float16).view(np.uint16)
    )


@given(st.lists(st.floats(-65519.0, 65519.0, width=32), min_size=1, max_size=64))
def test_float16_rounds_as_numpy_does(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    assert np.array_equal(
        encoded(values, "float16").view(np.uint16), values.astype(np.float16).view(np.uint16)
    )


def test_float16_rounds_as_numpy_does_at_every_step() -> None:
    """Every float16, half way to the next, and a little beside both; above and below zero."""
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate([halves, middle, np.nextafter(halves, np.float32(1e9)), np.nextafter(middle, 0)])
    for signed in (values, -values):
        expected = signed.astype(np.float16).view(np.uint16)
        assert np.array_equal(encoded(signed, "float16").view(np.uint16), expected)


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_of_16_bits_become_what_they_become_over_float32(kind: Q, dtype: Dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = dequantise(bits.view(np.uint8), kind)
    held = np.array([fits(values[n : n + 1], dtype) for n in range(1 << 16)])
    made = recoded(bits[held].view(np.uint8), kind, dtype)
    assert made is not None
    assert np.array_equal(made.view(np.uint8), encoded(values[held], dtype).view(np.uint8))
    for bad in bits[~held]:
        assert recoded(np.array([1, bad], np.uint16).view(np.uint8), kind, dtype) is None


def test_others_are_not_looked_up() -> None:
    assert recoded(np.zeros(34, np.uint8), Q.Q8_0, "float16") is None
    assert recoded(np.zeros(4, np.uint8), Q.F32, "float32") is None


@pytest.mark.parametrize(("kind", "dtype"), [(Q.F16, "float16"), (Q.BF16, "bfloat16")])
def test_numbers_of_the_type_that_is_wanted_stay_as_they_are(kind: Q, dtype: Dtype) -> None:
    bits = np.arange(0x7BFF, dtype=np.uint16)
    same = recoded(bits.view(np.uint8), kind, dtype)
    assert same is not None
    assert np.shares_memory(same, bits)


def test_of_two_equally_near_the_even_one() -> None:
    values = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F808001], np.uint32).view(np.float32)
    assert encoded(values, "bfloat16").tolist() == [0x3F80, 0x3F82, 0xBF80, 0x3F81]
    halves = np.array([2049.0, 2051.0, -2049.0], np.float32)
    assert encoded(halves, "float16").tolist() == [2048.0, 2052.0, -2048.0]


def test_rows_that_are_not_side_by_side() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert encoded(values, "float32").flags.c_contiguous
    assert encoded(values, "float16").tolist() == values.tolist()
    assert (encoded(values, "bfloat16").astype(np.uint32) << 16).view(np.float32).tolist() == values.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_type_can_hold(dtype: Dtype, sign: int) -> None:
    def held(value: float) -> bool:
        return fits(np.array([1.0, sign * value, -1.0, 0.0], np.float32), dtype)

    assert held(LARGEST[dtype])
    assert not held(np.inf)
    assert not held(np.nan)
    if dtype != "float32":
        assert not held(LARGEST[dtype] * 1.003)
    assert fits(np.array([], np.float32), dtype)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_what_fits_comes_out_finite(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        assert fits(values, "float16") == bool(np.isfinite(values.astype(np.float16)).all())
    assert fits(values, "float32") == bool(np.isfinite(values).all())
    rounded = (gguf.quantize(values, Q.BF16).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert fits(values, "bfloat16") == bool(np.isfinite(rounded).all())
