"""Triton releases, the vLLM inside them, and which engine arguments it knows. Pure; data in releases.toml.

An argument that vLLM does not know fails the load of the model, hence `supported_arguments`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from sovereign_ai.catalog.gpus import capability
from sovereign_ai.errors import ConfigError
from sovereign_ai.spec import Noun

DEFAULT_RELEASE = "24.12"
IMAGE = "nvcr.io/nvidia/tritonserver:{}-vllm-python-py3"

V1_SINCE = (0, 8)
"""V1 became the default engine (https://github.com/vllm-project/vllm/releases/tag/v0.8.0)."""
V0_GONE = (0, 11)
"""V0 was removed (https://github.com/vllm-project/vllm/releases/tag/v0.11.0)."""
V1_CAPABILITY = (8, 0)
"""While both existed, older cards fell back to V0 (`_is_v1_supported_oracle` in vllm/engine/arg_utils.py of
0.10.1.1)."""

LAST = 99
"""Stands for the `x` of `0.6.x`."""
LENGTH = 4
"""Numbers of the longest version, 0.10.1.1; shorter ones are filled with zeros, so that 0.28 is 0.28.0."""

_NUMBER = re.compile(r"\d+(?:\.\d+)+(?:\.x)?|\d+\.x", re.IGNORECASE)
_ENGINE = re.compile(r"\bV([01])\b(?!\.\d)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class VllmVersion:
    """A version of vLLM; 0.5.5 < 0.10.1.1. `engine` is what the text says of V0 and V1, and not compared."""

    numbers: tuple[int, ...]
    engine: Literal["", "V0", "V1"] = field(default="", compare=False)

    @classmethod
    @cache
    def parse(cls, text: str) -> VllmVersion:
        """The first version-like number of a text such as `0.5.5`, `0.7.x V0`, `0.29dev` or `0.6.6-0.7`.

        An `x` is the last of its kind: `0.6.x` comes after 0.6.6. A text with an engine alone (`V1 2026-09`)
        means the newest known release with that engine as its default. Raises ConfigError where there is
        neither.
        """
        engine = _engine(text)
        found = _NUMBER.search(text)
        if found is not None:
            parts = [LAST if part == "x" else int(part) for part in found[0].lower().split(".")]
            return cls((*parts, *[0] * (LENGTH - len(parts))), engine)
        if engine:
            versions = [known.version for known in releases()]
            with_it = [version for version in versions if version.v1 == (engine == "V1")]
            return cls(max(with_it).numbers, engine)
        raise ConfigError(f"`{text}` is not a version of vLLM", "write it like 0.5.5")

    @property
    def v1(self) -> bool:
        """Whether the V1 engine runs, on cards that it can run on."""
        return self.engine == "V1" or (self.engine == "" and self.numbers >= V1_SINCE)

    def runs_v1(self, compute_capability: str | None) -> bool:
        """Whether the V1 engine runs on such a card."""
        able = capability(compute_capability) >= V1_CAPABILITY or self.numbers >= V0_GONE
        return self.v1 and (able or self.engine == "V1")

    def __str__(self) -> str:
        parts = ["x" if number == LAST else str(number) for number in self.numbers]
        while len(parts) > 3 and parts[-1] == "0":
            parts.pop()
        return ".".join(parts) + (f" {self.engine}" if self.engine else "")


def _engine(text: str) -> Literal["", "V0", "V1"]:
    found = _ENGINE.search(text)
    if found is None:
        return ""
    return "V1" if found[1] == "1" else "V0"


class Release(Noun, frozen=True, kw_only=True):
    """One Triton release. `driver`: least branch of the NVIDIA driver; None where nobody was asked.

    `datacenter_drivers` are older branches that serve on data-centre cards too. Compute capabilities from
    `capability_min` on, below `capability_below`; "" where the notes do not say.
    """

    name: str
    vllm: str
    driver: int | None = None
    datacenter_drivers: tuple[int, ...] = ()
    capability_min: str = ""
    capability_below: str = ""
    source: str = ""

    @property
    def version(self) -> VllmVersion:
        return VllmVersion.parse(self.vllm)

    @property
    def image(self) -> str:
        return IMAGE.format(self.name)

    def refuses_card(self, compute_capability: str | None) -> str:
        """Empty where the image runs on cards of this compute capability, else the reason why not."""
        card = capability(compute_capability)
        if self.capability_min and card < capability(self.capability_min):
            return f"release {self.name} needs compute capability {self.capability_min}"
        if self.capability_below and card >= capability(self.capability_below):
            return f"release {self.name} has no kernels for compute capability {compute_capability}"
        return ""

    def refuses_driver(self, driver_version: str | None, *, datacenter: bool = False) -> str:
        """Empty where the driver (`560.35.03`) is new enough or unknown, else the reason why not.

        `datacenter`: all cards are data-centre cards, where CUDA's compatibility package helps out.
        """
        found = re.match(r"\d+", driver_version or "")
        if found is None or self.driver is None or int(found[0]) >= self.driver:
            return ""
        if datacenter and int(found[0]) in self.datacenter_drivers:
            return ""
        return f"release {self.name} needs driver {self.driver} or later, {driver_version} is installed"


class _Arguments(Noun, frozen=True, kw_only=True):
    always: frozenset[str]
    since: dict[str, str]
    until: dict[str, str]


class _File(Noun, frozen=True, kw_only=True):
    releases: tuple[Release, ...]
    arguments: _Arguments


@cache
def _file() -> _File:
    text = resources.files(__package__).joinpath("releases.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), _File)


def releases() -> tuple[Release, ...]:
    """All known releases, oldest first."""
    return _file().releases


def release(name: str) -> Release:
    """The release called `YY.MM`. Raises ConfigError, naming the nearest known one."""
    for known in releases():
        if known.name == name:
            return known
    nearest = min(releases(), key=lambda known: abs(_months(known.name) - _months(name)))
    raise ConfigError(f"Triton release `{name}` is not known", f"the nearest known one is {nearest.name}")


def _months(name: str) -> int:
    """Months since 2000; far away for what is not `YY.MM`, so that the newest is the nearest."""
    found = re.fullmatch(r"(\d\d)\.(\d\d)", name)
    return int(found[1]) * 12 + int(found[2]) if found else 100 * 12


def supported_arguments(version: VllmVersion | str) -> frozenset[str]:
    """The engine arguments, of those that we may set, that this vLLM accepts."""
    wanted = VllmVersion.parse(version) if isinstance(version, str) else version
    known = _file().arguments
    since = {name for name, first in known.since.items() if wanted >= VllmVersion.parse(first)}
    until = {name for name, last in known.until.items() if wanted < VllmVersion.parse(last)}
    return known.always | since | until
