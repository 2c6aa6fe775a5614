from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovereign_ai.errors import BadModelFile, StoreError, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, read_gguf
from tests.store.tiny import write_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, offset: int, *, shape: tuple[int, ...] = (8,), kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def key(name: str, kind: int, raw: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + raw


def made(path: Path, keys: list[bytes], tensors: list[bytes], data: int = 64, *, version: int = 3) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    path.write_bytes(head + bytes(-len(head) % 32 + data))
    return path


def test_it_reads_what_the_library_reads(tiny_gguf: Path) -> None:
    ours, theirs = read_gguf(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.offset, mine.size, mine.type) == (other.data_offset, other.n_bytes, other.tensor_type)
        assert mine.shape == tuple(reversed([int(number) for number in other.shape]))
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {name: np.asarray(value).tolist() for name, value in ours.metadata.items()} == {
        name: np.asarray(value).tolist() for name, value in fields.items()
    }


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_off_anywhere_it_is_a_bad_file(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    whole = tiny_gguf.read_bytes()
    header = read_gguf(tiny_gguf).tensors[0].offset
    cut = tmp_path / "cut.gguf"
    for length in (int(share * header), int(share * len(whole))):
        cut.write_bytes(whole[:length])
        with pytest.raises(BadModelFile, match=r"cut\.gguf: (ends|claims) .* bytes are missing"):
            read_gguf(cut)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_in_the_header_is_never_another_error(
    tiny_gguf: Path, tmp_path: Path, data: st.DataObject
) -> None:
    whole = bytearray(tiny_gguf.read_bytes())
    header = read_gguf(tiny_gguf).tensors[0].offset
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(whole)
    try:
        assert isinstance(read_gguf(damaged), GgufFile)
    except StoreError as error:
        assert "damaged.gguf" in error.message


def test_the_number_of_missing_bytes_is_exact(tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes())
    last = max(read_gguf(tiny_gguf).tensors, key=lambda tensor: tensor.offset)
    with cut.open("r+b") as file:
        file.truncate(last.offset + last.size - 10)
    with pytest.raises(BadModelFile, match=f"tensor `{last.name}` goes to byte .*: 10 bytes are missing"):
        read_gguf(cut)


@pytest.mark.parametrize(
    ("keys", "tensors", "problem"),
    [
        ([key("a", 99, b"")], [], "key `a` is of the unknown type 99"),
        ([key("a", 7, b"\1"), key("a", 7, b"\1")], [], "key `a` occurs twice"),
        ([key("a", 8, struct.pack("<Q", 1 << 60))], [], "ends inside key `a`: 1152921504606846"),
        ([key("a", 9, struct.pack("<IQ", 8, 1 << 60))], [], "claims 1152921504606846976 items in `a`"),
        ([key("a", 9, struct.pack("<IQ", 10, 1 << 60))], [], "ends inside key `a`"),
        ([key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")], [], "key `a` is not UTF-8 text"),
        ([key("general.alignment", 4, struct.pack("<I", 12))], [], "alignment 12 is not a power of two"),
        ([key("general.alignment", 7, b"\1")], [], "`general.alignment` is not an integer"),
        ([], [entry("t", 0, shape=())], "tensor `t` has 0 dimensions"),
        ([], [entry("t", 0, shape=(1, 1, 1, 1, 1))], "tensor `t` has 5 dimensions"),
        ([], [entry("t", 0, shape=(0,))], r"tensor `t` has shape \[0\]"),
        ([], [entry("t", 0, shape=(33,), kind=8)], r"tensor `t` has shape \[33\], not blocks of 32"),
        ([], [entry("t", 0, shape=(1 << 63, 1 << 63))], "tensor `t` goes to byte"),
        ([], [entry("t", 0), entry("t", 32)], "two tensors have the same name"),
        ([], [entry("t", 4)], "tensor `t` does not begin at a multiple of 32"),
        ([], [entry("a", 0, shape=(9,)), entry("b", 32, shape=(1,))], "tensors `a` and `b` overlap"),
        ([], [entry("a", 0), entry("b", 32, shape=(9,))], "4 bytes are missing"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, keys: list[bytes], tensors: list[bytes], problem: str) -> None:
    with pytest.raises(BadModelFile, match=problem):
        read_gguf(made(tmp_path / "m.gguf", keys, tensors))


@pytest.mark.parametrize(
    ("keys", "tensors", "problem"),
    [
        ([key("a", 9, struct.pack("<IQ", 9, 1))], [], "key `a` is an array of arrays"),
        ([], [entry("t", 0, kind=99)], "tensor `t` is of the unknown type 99"),
    ],
)
def test_the_unknown_is_unsupported(
    tmp_path: Path, keys: list[bytes], tensors: list[bytes], problem: str
) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_gguf(made(tmp_path / "m.gguf", keys, tensors))


@pytest.mark.parametrize(("version", "kind"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions_are_unsupported(tmp_path: Path, version: int, kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"a {kind} GGUF"):
        read_gguf(made(tmp_path / "m.gguf", [], [], version=version))


def test_another_format_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4 and more")
    with pytest.raises(BadModelFile, match=r"not a GGUF file: begins with b'PK"):
        read_gguf(tmp_path / "m.gguf")


def test_a_header_of_hundreds_of_megabytes_is_absurd(tmp_path: Path) -> None:
    path = made(tmp_path / "m.gguf", [key("a", 9, struct.pack("<IQ", 0, 300 << 20))], [])
    with path.open("r+b") as file:
        file.truncate(400 << 20)  # sparse
    with pytest.raises(BadModelFile, match="claims 314572800 bytes, which is absurd"):
        read_gguf(path)


def test_values_by_type(tmp_path: Path) -> None:
    array = struct.pack("<IQ2i", GGUFValueType.INT32, 2, -1, 5)
    keys = [
        key("float", GGUFValueType.FLOAT32, struct.pack("<f", 1e-5)),
        key("int", GGUFValueType.INT64, struct.pack("<q", -7)),
        key("flag", GGUFValueType.BOOL, b"\1"),
        key("text", GGUFValueType.STRING, text("ß")),
        key("numbers", GGUFValueType.ARRAY, array),
        key("texts", GGUFValueType.ARRAY, struct.pack("<IQ", GGUFValueType.STRING, 1) + text("x")),
    ]
    file = read_gguf(made(tmp_path / "m.gguf", keys, []))
    assert file.number("float") == 1e-5
    assert file.integer("int") == -7
    assert file.flag("flag") is True
    assert file.text("text") == "ß"
    assert file.integers("numbers") == [-1, 5]
    assert file.texts("texts") == ["x"]
    assert file.integer("absent", 3) == 3
    for read in (file.number, file.integer, file.flag, file.integers, file.texts):
        with pytest.raises(BadModelFile, match="`text` is not"):
            read("text")
    with pytest.raises(BadModelFile, match="`int` is not text"):
        file.text("int")
    with pytest.raises(BadModelFile, match="`flag` is not an integer"):
        file.integer("flag")
    with pytest.raises(BadModelFile, match="`absent` is missing"):
        file.integer("absent")


def test_rows_are_what_can_be_dequantised_alone(tmp_path: Path) -> None:
    weights = {"m": np.ones((5, 64), np.float32), "v": np.ones(7, np.float32)}
    file = read_gguf(write_gguf(tmp_path / "m.gguf", weights, {}, kind=GGMLQuantizationType.Q4_0))
    assert {tensor.name: tensor.rows for tensor in file.tensors} == {"m": 5, "v": 1}
