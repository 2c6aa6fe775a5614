from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store import convert
from sovereign_ai.store.convert import Dtype, read_conversion
from sovereign_ai.store.dequantize import readable
from sovereign_ai.store.gguf_file import read_gguf
from sovereign_ai.store.llama import llama
from sovereign_ai.store.rope import llama3_factors
from sovereign_ai.store.weights import TensorHeader, read_header
from tests.store.test_llama import permute
from tests.store.tiny import HEAD_DIM, keys, shapes, tensors, write_gguf

Q = GGMLQuantizationType


READABLE = [kind for kind in Q if readable(kind)]
MADE_BY_THE_LIBRARY = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.TQ1_0, Q.TQ2_0]
LARGEST = 3.3e38  # all types of float hold less, once rounded
LARGE: dict[str, Any] = {
    "llama__embedding_length": 256,
    "llama__feed_forward_length": 256,
    "llama__rope__dimension_count": 64,
}
"""A model whose rows are whole blocks of every type."""


def as_gguf_has_it(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """New names → the library's own dequantised values, Q and K still permuted."""
    names = {target.info.name: target.name for target in llama(read_gguf(path)).targets}
    reader = gguf.GGUFReader(path)
    return {names[tensor.name]: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def back(name: str, values: np.ndarray[Any, Any], head_dim: int = HEAD_DIM) -> np.ndarray[Any, Any]:
    """In the order in which GGUF has the rows."""
    return permute(values, len(values) // head_dim) if "q_proj" in name or "k_proj" in name else values


def assert_exact(path: Path, folder: Path, head_dim: int = HEAD_DIM) -> None:
    expected = as_gguf_has_it(path)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        ours = back(name, values, head_dim)
        assert np.array_equal(ours.view(np.uint32), expected[name].reshape(ours.shape).view(np.uint32)), name


def random_blocks(path: Path, kind: Q, seed: int = 3) -> Path:
    """A model of random bytes, but for those that would be a scale too large or no number."""
    dice = np.random.default_rng(seed)
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in shapes(hidden=256, inner=256).items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
            continue
        blocks = dice.integers(0, 256, (shape[0] * 256 // per_block, block_bytes), dtype=np.uint8)
        while len(bad := np.flatnonzero(~_holdable(blocks, kind))):
            blocks[bad] = dice.integers(0, 256, (len(bad), block_bytes), dtype=np.uint8)
        weights[name] = blocks.reshape(shape[0], -1)
    return write_gguf(path, weights, keys(**LARGE), kind=kind)


def _holdable(blocks: np.ndarray[Any, Any], kind: Q) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):
        values: np.ndarray[Any, Any] = np.abs(gguf.dequantize(blocks, kind))
    return np.asarray((values < LARGEST).all(axis=-1))


def test_every_type_that_the_library_can_read_is_tested() -> None:
    assert {kind.name for kind in Q} - {kind.name for kind in READABLE} == {
        *("Q8_1", "Q8_K", "Q1_0"),
        *("I8", "I16", "I32", "I64", "F64"),
    }


@pytest.mark.parametrize("kind", MADE_BY_THE_LIBRARY)
def test_every_value_is_kept_exactly(tmp_path: Path, kind: Q) -> None:
    path = write_gguf(tmp_path / "m.gguf", tensors256(), keys(**LARGE), kind=kind)
    read_conversion(path).write(tmp_path / "out", Silent())
    assert_exact(path, tmp_path / "out", head_dim=64)


def tensors256() -> dict[str, np.ndarray[Any, Any]]:
    dice = np.random.default_rng(5)
    return {
        name: dice.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes(hidden=256, inner=256).items()
    }


@pytest.mark.parametrize("kind", READABLE)
def test_every_value_of_random_blocks_is_kept_exactly(tmp_path: Path, kind: Q) -> None:
    path = random_blocks(tmp_path / "m.gguf", kind)
    read_conversion(path).write(tmp_path / "out", Silent())
    assert_exact(path, tmp_path / "out", head_dim=64)


@pytest.mark.parametrize("kind", READABLE)
def test_bfloat16_is_the_nearest_and_of_two_the_even_one(tmp_path: Path, kind: Q) -> None:
    """The library's rounding is ggml's (`ggml_compute_fp32_to_bf16`)."""
    path = random_blocks(tmp_path / "m.gguf", kind, seed=4)
    conversion = read_conversion(path, "bfloat16")
    conversion.write(tmp_path / "out", Silent())
    expected = as_gguf_has_it(path)
    for name, bits in written_bits(tmp_path / "out", conversion.headers).items():
        ours = back(name, bits, 64)
        theirs = gguf.quantize(expected[name].reshape(ours.shape), Q.BF16).view(np.uint16)
        assert np.array_equal(ours, theirs), name


@pytest.mark.parametrize("kind", MADE_BY_THE_LIBRARY)
def test_float16_is_what_numpy_makes_of_it(tmp_path: Path, kind: Q) -> None:
    path = write_gguf(tmp_path / "m.gguf", tensors256(), keys(**LARGE), kind=kind)
    conversion = read_conversion(path, "float16")
    conversion.write(tmp_path / "out", Silent())
    expected = as_gguf_has_it(path)
    for name, bits in written_bits(tmp_path / "out", conversion.headers).items():
        ours = back(name, bits, 64)
        theirs = expected[name].reshape(ours.shape).astype(np.float16).view(np.uint16)
        assert np.array_equal(ours, theirs), name


def written_bits(folder: Path, headers: tuple[TensorHeader, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """The 16-bit numbers of every tensor, as integers."""
    data = (folder / "model.safetensors").read_bytes()[-sum(header.size for header in headers) :]
    found = {}
    for header in headers:
        found[header.name] = np.frombuffer(data[: header.size], np.uint16).reshape(header.shape)
        data = data[header.size :]
    return found


def test_blocks_of_rows_do_not_change_the_result(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "BLOCK_BYTES", 3 * 64 * 4)
    read_conversion(tiny_gguf).write(tmp_path / "out", Silent())
    assert_exact(tiny_gguf, tmp_path / "out")


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_other_types_round_to_nearest(tiny_gguf: Path, tmp_path: Path, dtype: Dtype, relative: float) -> None:
    read_conversion(tiny_gguf, dtype).write(tmp_path / "out", Silent())
    read_conversion(tiny_gguf).write(tmp_path / "exact", Silent())
    exact = load_file(tmp_path / "exact" / "model.safetensors")
    path = tmp_path / "out" / "model.safetensors"
    headers = read_header(path)
    data = path.read_bytes()[-sum(header.size for header in headers) :]
    for header in headers:
        assert header.dtype == dtype
        raw = np.frombuffer(data[: header.size], np.uint16).reshape(header.shape)
        data = data[header.size :]
        rounded = (
            (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else raw.view(np.float16)
        )
        error = np.abs(rounded.astype(np.float32) - exact[header.name])
        assert np.all(error <= np.abs(exact[header.name]) * relative + 2**-24)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_the_folder_is_complete(tiny_gguf: Path, tmp_path: Path) -> None:
    conversion = read_conversion(tiny_gguf)
    conversion.write(tmp_path / "out", Silent())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("hello").tokens == ["hello"]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert conversion.license == "apache-2.0"


def test_progress_ends_at_the_announced_bytes(tiny_gguf: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Recorded:
        def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
            seen.append(done)

    conversion = read_conversion(tiny_gguf)
    conversion.write(tmp_path / "out", Recorded())
    assert seen == sorted(seen)
    assert seen[-1] == conversion.weights_bytes == sum(header.size for header in conversion.headers)


def test_rope_factors_become_rope_scaling(tmp_path: Path) -> None:
    weights = tensors() | {"rope_freqs.weight": llama3_factors(100_000.0, HEAD_DIM, 8.0)}
    conversion = read_conversion(write_gguf(tmp_path / "m.gguf", weights))
    assert conversion.config["rope_scaling"]["factor"] == 8.0
    assert all("rope" not in header.name for header in conversion.headers)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights["blk.0.ffn_norm.weight"][3] = np.nan
    path = write_gguf(tmp_path / "m.gguf", weights)
    with pytest.raises(BadModelFile, match=r"`blk.0.ffn_norm.weight` has values that float32 cannot hold"):
        read_conversion(path).write(tmp_path / "out", Silent())


def test_values_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights["blk.0.ffn_norm.weight"][3] = 1e6
    path = write_gguf(tmp_path / "m.gguf", weights)
    with pytest.raises(BadModelFile, match="values that float16 cannot hold"):
        read_conversion(path, "float16").write(tmp_path / "out", Silent())


def test_weights_of_a_type_that_cannot_be_dequantised_are_named(tmp_path: Path) -> None:
    weights: dict[str, np.ndarray[Any, Any]] = dict(tensors())
    weights["output_norm.weight"] = np.ones(64, np.int32)
    with pytest.raises(UnsupportedModel, match="weights of type I32 cannot be converted"):
        read_conversion(write_gguf(tmp_path / "m.gguf", weights))


def test_a_file_that_shrinks_while_it_is_read(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    conversion = read_conversion(path)
    with path.open("r+b") as file:
        file.truncate(conversion.targets[-1].info.offset)
    with pytest.raises(
        BadModelFile, match=r"changed while it was read: tensor `output_norm.weight` ends early"
    ):
        conversion.write(tmp_path / "out", Silent())
