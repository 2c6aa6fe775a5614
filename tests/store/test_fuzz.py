"""Ten thousand damaged files: each is read or refused in words, nothing is written where it should not be.

Sound files of every family are damaged in their bytes, in their metadata and in their headers. The seeds are
fixed: a failure comes back.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import save_file

from sovereign_ai.console import Silent
from sovereign_ai.errors import StoreError
from sovereign_ai.store.convert import read_conversion
from sovereign_ai.store.families import read_blueprint
from sovereign_ai.store.gguf_file import GgufFile, read_gguf
from sovereign_ai.store.tokenizer import convert_tokenizer
from sovereign_ai.store.weights import read_header
from tests.store.families import ARCHITECTURES, CONFIGS, metadata, tokenizer, write_family
from tests.store.tiny import write_gguf

pytestmark = pytest.mark.engine

BYTES, VALUES, SHAPES, HEADERS, WHOLE = 3000, 2500, 1000, 3400, 100
assert BYTES + VALUES + SHAPES + HEADERS + WHOLE == 10_000
STRANGE: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 255, 1 << 31, (1 << 32) - 1, 1 << 62, -(1 << 62)),
    *(0.0, -0.0, 1.5, 1e-45, 1e38, float("inf"), float("nan"), True, False),
    *("", "llama", "gpt2", "bert", "none", "yarn", "linear", "qwen2", "$A", "\0", "ä" * 1000, "../../x"),
    *([], ["a"], ["a", "a"], ["a b"], [""] * 300, ["x" * 5000]),
]
ARRAYS = [
    np.array(values)
    for values in ([], [0], [-1, 5], [3] * 300, [4] * 300, [1.5] * 300, [float("nan")] * 300, [True, False])
]


def outcome(read: Callable[[], object], where: str) -> str:
    """What becomes of it. Anything but the store's own errors goes through."""
    try:
        read()
    except StoreError as error:
        assert where in error.message
        assert len(error.message) < 20_000
        return type(error).__name__
    return "read"


def damaged(raw: bytes, dice: random.Random, reach: int) -> bytes:
    """Bytes changed, cut out, doubled or put in among the first `reach`, or the end cut off."""
    whole = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(reach, len(whole)) or 1)
        kind = dice.randrange(7)
        if kind < 3:
            whole[at : at + 1] = bytes([dice.choice((0, 1, 2, 8, 9, 127, 128, 255, dice.randrange(256)))])
        elif kind == 3:
            whole[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, 1 << 31, 1 << 40, 1 << 63, 2**64 - 1)))
        elif kind == 4:
            del whole[at : at + dice.randint(1, 16)]
        elif kind == 5:
            whole[at:at] = whole[at : at + dice.randint(1, 16)]
        else:
            del whole[max(1, at) :]
    return bytes(whole)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GGUF of every family."""
    folder = tmp_path_factory.mktemp("sound")
    return {name: write_family(folder / f"{name}.gguf", name) for name in CONFIGS}


def test_damaged_bytes(sound: dict[str, Path], tmp_path: Path) -> None:
    """The vocabulary is most of a header: half of the damage goes into what comes before it."""
    dice = random.Random(11)
    heads = {name: head(path) for name, path in sound.items()}
    seen = set()
    path = tmp_path / "damaged.gguf"
    for number in range(BYTES):
        raw, size = heads[dice.choice(list(heads))]
        changed = damaged(raw, dice, len(raw) if number % 2 else 900)
        path.write_bytes(changed)
        os.truncate(path, max(0, size + len(changed) - len(raw)))
        seen.add(outcome(lambda: read_gguf(path), "damaged.gguf"))
    assert {"read", "BadModelFile", "UnsupportedModel"} <= seen


def head(path: Path) -> tuple[bytes, int]:
    """All before the data, and the bytes of the whole file: the data itself is not looked at."""
    return path.read_bytes()[: read_gguf(path).tensors[0].offset], path.stat().st_size


def everything(file: GgufFile) -> None:
    blueprint = read_blueprint(file)
    msgspec.json.encode(blueprint.config)
    convert_tokenizer(file, blueprint.vocabulary, blueprint.context)


def test_damaged_metadata(sound: dict[str, Path]) -> None:
    """Keys left out, and values that their keys do not expect, of every type that GGUF has."""
    dice = random.Random(12)
    files = {name: read_gguf(path) for name, path in sound.items()}
    seen = set()
    for _ in range(VALUES):
        file = files[dice.choice(list(files))]
        changed = dict(file.metadata)
        for key in dice.sample(sorted(changed), dice.randint(1, 2)):
            if dice.random() < 0.2:
                del changed[key]
            else:
                changed[key] = strange(dice)
        seen.add(outcome(lambda: everything(file._replace(metadata=changed)), "gguf"))  # noqa: B023
    assert {"read", "BadModelFile", "UnsupportedModel"} <= seen


def strange(dice: random.Random) -> Any:
    value = dice.choice([*STRANGE, *ARRAYS])
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    return np.int64(value) if isinstance(value, int) else value


def test_damaged_descriptions_of_tensors(sound: dict[str, Path]) -> None:
    dice = random.Random(13)
    files = {name: read_gguf(path) for name, path in sound.items()}
    seen = set()
    for _ in range(SHAPES):
        file = files[dice.choice(list(files))]
        tensors = list(file.tensors)
        at = dice.randrange(len(tensors))
        shape = tuple(dice.choice((1, 2, 16, 64, 96, 1 << 40)) for _ in range(dice.randint(1, 4)))
        changes: list[dict[str, Any]] = [
            {"shape": shape},
            {"name": dice.choice(tensors).name},
            {"name": "x"},
        ]
        tensors[at] = tensors[at]._replace(**dice.choice(changes))
        if dice.random() < 0.2:
            del tensors[dice.randrange(len(tensors))]
        changed = file._replace(tensors=tuple(tensors))
        seen.add(outcome(lambda: everything(changed), "gguf"))  # noqa: B023
    assert {"read", "BadModelFile", "UnsupportedModel"} <= seen


def test_damaged_safetensors(tmp_path: Path) -> None:
    dice = random.Random(14)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": np.ones((3, 5), np.float32),
        "b.weight": np.ones((2, 2, 2), np.float16),
        "c": np.arange(7),
    }
    save_file(weights, tmp_path / "sound", metadata={"format": "pt"})
    raw = (tmp_path / "sound").read_bytes()
    fields = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    path = tmp_path / "damaged.safetensors"
    seen = set()
    for number in range(HEADERS):
        path.write_bytes(damaged(raw, dice, len(raw)) if number % 2 else rewritten(fields, dice))
        seen.add(outcome(lambda: read_header(path), "damaged.safetensors"))
    assert {"read", "BadModelFile", "UnsupportedModel"} <= seen


def rewritten(fields: dict[str, Any], dice: random.Random) -> bytes:
    """The same tensors, described wrongly."""
    changed = json.loads(json.dumps(fields))
    entry = changed[dice.choice([name for name in changed if name != "__metadata__"])]
    key = dice.choice(("dtype", "shape", "data_offsets"))
    values: list[Any] = [
        None,
        -1,
        1 << 63,
        1 << 70,
        "F8",
        "F32",
        "",
        [],
        [0],
        [-1, 5],
        [0, 0],
        [3, 5, 0],
        [1.5],
    ]
    entry[key] = dice.choice([*values, [1 << 62, 1 << 62], {"x": 1}, [[1]], entry[key]])
    if dice.random() < 0.2:
        del entry[dice.choice(list(entry))]
    raw = json.dumps(changed).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(60 + 16 + 56)


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    """Whole conversions of files with strange names in them: tensors, tokens, keys, template."""
    dice = random.Random(15)
    place = tmp_path / "place"
    place.mkdir()
    outside = tmp_path / "escaped"
    names = ["../escaped", str(outside), "a/../../escaped", "\0", "."]
    path = tmp_path / "m.gguf"
    for number in range(WHOLE):
        name = dice.choice(list(CONFIGS))
        fields = metadata(CONFIGS[name]) | tokenizer(CONFIGS[name])
        changed = {key: dice.choice(names) for key in dice.sample(sorted(fields), 2)}
        weights = {dice.choice([*names, "token_embd.weight"]): np.ones((4, 4), np.float32)}
        if number % 2:
            renamed: dict[str, Any] = {key.replace(".", "__"): value for key, value in changed.items()}
            write_family(path, name, None, **renamed)
        else:
            write_gguf(
                path, weights, fields | changed, kind=GGMLQuantizationType.F32, architecture=family(name)
            )
        outcome(lambda: read_conversion(path).write(place / "out", Silent()), "m.gguf")
        assert {entry.name for entry in tmp_path.iterdir()} == {"place", "m.gguf"}
        assert {entry.name for entry in place.iterdir()} <= {"out"}
        for file in sorted((place / "out").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        if (place / "out").exists():
            (place / "out").rmdir()
        path.unlink()


def family(name: str) -> str:
    return str(gguf.MODEL_ARCH_NAMES[ARCHITECTURES[CONFIGS[name]["model_type"]]])
