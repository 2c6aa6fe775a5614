"""What engines cost beside bytes and operations. Pure; the numbers, and what they were fitted on, are in
speed.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.spec import Noun

MemoryKind = Literal["gddr", "hbm", "cpu"]


class Constants(Noun, frozen=True, kw_only=True):
    """What an engine costs; planner/performance.py says how they combine. Seconds.

    `read` maps `gddr-16`, `hbm-4`, … to how many times longer reading takes than the memory's peak
    bandwidth says. `compute` is the part of the card's peak that prompts reach. `since`: from this version
    of the engine on."""

    engine: str
    layer_s: float
    read: dict[str, float]
    since: str = ""
    attention_s: float = 0.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    split_layer_s: float = 0.0
    hop_s: float = 50e-6
    compute: float = 0.45
    source: str = ""


@cache
def known_constants() -> tuple[Constants, ...]:
    """All entries of speed.toml, in its order: of one engine, older versions first."""
    text = resources.files(__package__).joinpath("speed.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["engines"], tuple[Constants, ...])


def constants_for(engine: str, version: VllmVersion | None = None) -> Constants:
    """Constants of an engine, of the newest entry that `version` has reached (None: of the newest).

    An engine that nobody measured gets those of vLLM: it reads the same bytes.
    """
    named = [entry for entry in known_constants() if entry.engine == engine]
    reached = [entry for entry in named if _reached(entry, version)]
    return (reached or named or [constants_for("vllm", version)])[-1]


def _reached(entry: Constants, version: VllmVersion | None) -> bool:
    return version is None or not entry.since or version >= VllmVersion.parse(entry.since)
