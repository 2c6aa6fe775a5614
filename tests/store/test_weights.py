from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, StoreError, UnsupportedModel
from sovereign_ai.store import weights
from sovereign_ai.store.weights import TensorHeader, read_header, write_weights


def made(path: Path, fields: Any, data: int = 0) -> Path:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return path


def field(begin: int, end: int, *, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.float32)}
    headers = [TensorHeader(name, "float32", array.shape, array.nbytes) for name, array in arrays.items()]
    first, second = arrays["b"][:1].tobytes(), arrays["b"][1:].tobytes()
    blocks: list[bytes | memoryview] = [first, second, memoryview(arrays["a"].tobytes())]
    write_weights(tmp_path / "w", headers, blocks, Silent())
    found = load_file(tmp_path / "w")
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert read_header(tmp_path / "w") == tuple(headers)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(
        {"x": np.ones((2, 3), np.float16), "n": np.arange(5)}, tmp_path / "w", metadata={"format": "pt"}
    )
    assert {header.name: header for header in read_header(tmp_path / "w")} == {
        "x": TensorHeader("x", "float16", (2, 3), 12),
        "n": TensorHeader("n", "int64", (5,), 40),
    }


def test_too_little_data_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="cannot be read back"):
        write_weights(tmp_path / "w", [TensorHeader("a", "float32", (2,), 8)], [b"1234"], Silent())


@pytest.mark.parametrize(
    ("fields", "data", "problem"),
    [
        (b"[]", 0, "damaged SafeTensors header"),
        (b'{"a": 1}', 0, "damaged SafeTensors header"),
        (b'{"\xff": 1}', 0, "damaged SafeTensors header"),
        ({"a": field(0, 8)}, 7, "the tensors need 8 bytes, the file has 7"),
        ({"a": field(0, 8)}, 9, "the tensors need 8 bytes, the file has 9"),
        ({"a": field(0, 4)}, 4, "tensor `a` of 8 bytes is said to lie at"),
        ({"a": field(0, 8), "b": field(4, 12)}, 12, "tensor `b` of 8 bytes"),
        ({"a": field(0, 8), "b": field(16, 24)}, 24, "tensor `b` of 8 bytes"),
        ({"a": field(0, 8, shape=(-1, -2))}, 8, "tensor `a` of 8 bytes"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, fields: Any, data: int, problem: str) -> None:
    with pytest.raises(BadModelFile, match=problem):
        read_header(made(tmp_path / "w", fields, data))


@pytest.mark.parametrize("raw", [b"", b"1234567", struct.pack("<Q", 1 << 50) + b"{}", struct.pack("<Q", 0)])
def test_no_header_at_all(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "w").write_bytes(raw)
    with pytest.raises(BadModelFile, match="not a SafeTensors file, or cut off"):
        read_header(tmp_path / "w")


def test_an_unknown_type_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="tensor `a` is of the unknown type F3"):
        read_header(made(tmp_path / "w", {"a": field(0, 8, dtype="F3")}, 8))


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_never_another_error(tmp_path: Path, data: st.DataObject) -> None:
    save_file({"x": np.ones((2, 3), np.float32), "n": np.arange(5)}, tmp_path / "w")
    raw = bytearray((tmp_path / "w").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "w").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        read_header(tmp_path / "w")
    except StoreError as error:
        assert str(tmp_path) in error.message


def test_what_was_written_is_compared_with_what_should_be(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "w")
    weights._check_written(tmp_path / "w", [TensorHeader("a", "float32", (2,), 8)])
    with pytest.raises(BadModelFile, match="holds other tensors than it should"):
        weights._check_written(tmp_path / "w", [TensorHeader("b", "float32", (2,), 8)])
