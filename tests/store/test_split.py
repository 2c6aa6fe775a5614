from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.convert import read_conversion
from sovereign_ai.store.split import read_parts
from tests.store.tiny import keys, tensors, write_gguf


def parts(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    """A tiny Llama whose tensors are spread over files; the metadata stands in the first, as llama.cpp
    has it."""
    weights = list(tensors().items())
    paths = [folder / f"tiny-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    for number, path in enumerate(paths):
        said = {"split.no": number, "split.count": count, "split.tensors.count": len(weights)}
        fields = (keys(**changes) if number == 0 else {}) | said
        write_gguf(path, dict(weights[number::count]), fields)
    return paths


def test_a_model_in_parts_is_the_model_in_one(tmp_path: Path, tiny_gguf: Path) -> None:
    read_conversion(tiny_gguf).write(tmp_path / "whole", Silent())
    paths = parts(tmp_path)
    conversion = read_conversion(paths[0])
    assert conversion.sources == tuple(paths)
    conversion.write(tmp_path / "parts", Silent())
    whole, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == found.keys()
    assert all(np.array_equal(found[name], values) for name, values in whole.items())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_another_part_than_the_first(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not the first of 3 parts") as caught:
        read_parts(parts(tmp_path)[1])
    assert caught.value.hint == "give tiny-00001-of-00003.gguf"


def test_a_part_under_another_name(tmp_path: Path) -> None:
    path = parts(tmp_path)[0].rename(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel, match="one of 3 parts, which is not named as such"):
        read_parts(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second, _ = parts(tmp_path)
    second.unlink()
    with pytest.raises(BadModelFile, match=r"tiny-00002-of-00003.gguf: missing"):
        read_parts(first)


def test_parts_of_another_model(tmp_path: Path) -> None:
    first, second, third = parts(tmp_path)
    third.write_bytes(second.read_bytes())
    with pytest.raises(BadModelFile, match=r"tiny-00003-of-00003.gguf: says that it is another part"):
        read_parts(first)
    write_gguf(third, {"token_embd.weight": np.ones(2, np.float32)}, {"split.no": 2})
    with pytest.raises(BadModelFile, match="two of the 3 parts hold the same tensor"):
        read_parts(first)
    write_gguf(third, {"more.weight": np.ones(2, np.float32)}, {"split.no": 2})
    with pytest.raises(BadModelFile, match="another number than said"):
        read_parts(first)
