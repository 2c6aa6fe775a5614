"""Shapes of well-known models by whatever name a person gives them. Pure; data and sources in shapes.toml."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources

import msgspec

from sovereign_ai.spec import Noun, Shape, Task

TUNED = "base chat hf instruct it"
PACKED = (
    "4bit 8bit awq bf16 bfloat16 bnb dynamic float16 fp16 fp8 gguf gptq int4 int8 marlin nf4 quantized static"
)
NOISE = frozenset(f"{TUNED} {PACKED} unsloth w4a16 w8a16 w8a8".split())
"""Words of a name that say how a model was tuned or packed, not what shape it has."""


class KnownShape(Noun, frozen=True, kw_only=True):
    """One model. `checked` says what its count of parameters was compared with; `positions` are the rows of
    a learned table of positions, where they are more than the context."""

    name: str
    hub: str
    task: Task
    license: str
    dtype: str
    checked: str
    shape: Shape
    aliases: tuple[str, ...] = ()
    positions: int | None = None
    note: str = ""

    @property
    def source(self) -> str:
        return f"https://huggingface.co/{self.hub}/blob/main/config.json"

    @property
    def context_max(self) -> int:
        return self.shape.context_max


@cache
def known_shapes() -> tuple[KnownShape, ...]:
    """All entries of shapes.toml, in its order."""
    text = resources.files(__package__).joinpath("shapes.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["models"], tuple[KnownShape, ...])


def find_shape(name: str) -> KnownShape | None:
    """The model called `name`: a slug, an alias or a hub id, with or without organization, tuning and
    quantization. A word that is not understood makes another model of it: None."""
    return next((_index()[key] for key in _keys(name) if key in _index()), None)


def nearest_shapes(name: str, count: int = 3) -> tuple[str, ...]:
    """Names of the entries that `name` resembles most, best first; for error messages."""
    near = difflib.get_close_matches(_plain(name), list(_index()), n=4 * count, cutoff=0.5)
    return tuple(dict.fromkeys(_index()[key].name for key in near))[:count]


@cache
def _index() -> dict[str, KnownShape]:
    """What an entry says of its names goes before what follows from its hub id."""
    said = ((key, known) for known in known_shapes() for key in (known.name, *known.aliases))
    found = dict(said)
    for known in known_shapes():
        for key in (*_keys(known.hub), *map(_plain, (known.name, *known.aliases))):
            found.setdefault(key, known)
    return found


def _keys(name: str) -> Iterator[str]:
    """From the most to the least literal reading."""
    written = re.sub(r"[\s_]+", "-", name.strip().lower())
    last = written.rpartition("/")[2]
    yield written
    yield last
    yield re.sub(r"\(.*?\)", "", last)
    yield _plain(name)


def _plain(name: str) -> str:
    """`meta-llama/Meta-Llama-3.1-8B-Instruct-AWQ-INT4` → `llama-3.1-8b`."""
    last = re.sub(r"[\s_]+", "-", name.strip().lower()).rpartition("/")[2]
    last = re.sub(r"\(.*?\)", "", last).removeprefix("meta-")
    last = re.sub(r"^llama(?=\d)", "llama-", last)
    return "-".join(word for word in last.split("-") if word and word not in NOISE)
