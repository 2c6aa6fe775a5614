"""A model in one GGUF or in several: parts are found by their names and read as one file.

Names and keys by `gguf-split` of https://github.com/ggml-org/llama.cpp (`NAME-00001-of-00003.gguf`,
`split.no`, `split.count`, `split.tensors.count`). The metadata stands in the first part.
"""

from __future__ import annotations

import re
from pathlib import Path

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, read_gguf

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def read_parts(path: Path) -> GgufFile:
    """The file, with the tensors of every other part where it is the first of several.

    Raises BadModelFile for parts that are missing or contradict each other, UnsupportedModel for a part that
    is not the first or cannot be told from its name.
    """
    first = read_gguf(path)
    count = first.integer("split.count", 1)
    if count <= 1:
        return first
    tensors = list(first.tensors)
    for number, part in enumerate(_others(first, count), start=1):
        tensors += _part(part, number).tensors
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadModelFile(f"{path}: two of the {count} parts hold the same tensor")
    if len(tensors) != first.integer("split.tensors.count", len(tensors)):
        raise BadModelFile(f"{path}: the {count} parts hold {len(tensors)} tensors, another number than said")
    return first._replace(tensors=tuple(tensors))


def _others(first: GgufFile, count: int) -> list[Path]:
    """The names of the second part and all after it."""
    named = _NAME.fullmatch(first.path.name)
    if not named or int(named[3]) != count:
        raise UnsupportedModel(
            f"{first.path}: one of {count} parts, which is not named as such",
            f"name the parts …-00001-of-{count:05}.gguf and so on, in one folder",
        )
    if first.integer("split.no", 0) != 0:
        raise UnsupportedModel(
            f"{first.path}: not the first of {count} parts", f"give {named[1]}-00001-of-{count:05}.gguf"
        )
    return [first.path.with_name(f"{named[1]}-{n:05}-of-{named[3]}.gguf") for n in range(2, count + 1)]


def _part(path: Path, number: int) -> GgufFile:
    if not path.is_file():
        raise BadModelFile(f"{path}: missing, the first part names it", "get all parts into one folder")
    part = read_gguf(path)
    if part.integer("split.no") != number:
        raise BadModelFile(f"{path}: says that it is another part")
    return part
