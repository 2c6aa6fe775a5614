"""What each weight format costs and where it works. Pure; numbers and sources are in formats.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from sovereign_ai.catalog.gpus import capability
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.spec import Format, Noun

CAPABILITY_MIN = "7.0"
"""Of vLLM itself: https://docs.vllm.ai/en/latest/getting_started/installation/gpu.html."""

Kernel = Literal["native", "weight-only"]


class Support(Noun, frozen=True, kw_only=True, rename={"least": "from"}):
    """Compute capabilities from `least`, below `below`, on vLLM `since`, before `until` ("": no bound)."""

    least: str
    kernel: Kernel
    below: str = ""
    since: str = ""
    until: str = ""

    def has(self, compute_capability: str | None) -> bool:
        card = capability(compute_capability)
        return card >= capability(self.least) and (not self.below or card < capability(self.below))

    def known_to(self, version: VllmVersion) -> bool:
        early = self.since and version < VllmVersion.parse(self.since)
        late = self.until and version >= VllmVersion.parse(self.until)
        return not early and not late


class FormatFacts(Noun, frozen=True, kw_only=True):
    """`bytes_per_parameter` of the linear layers, with scales and zero points. `activations` are quantized
    too. `quantization` and `load_format` are engine arguments it needs (None: vLLM finds it in the
    checkpoint). `rank` of fidelity: 0 as given, 1 for 8 bit, 2 for 4 bit. `tensor_parallel`: can be split
    over cards."""

    format: Format
    bytes_per_parameter: float
    rank: int
    support: tuple[Support, ...]
    activations: bool = False
    quantization: str | None = None
    load_format: str | None = None
    tensor_parallel: bool = True


@cache
def _formats() -> dict[Format, FormatFacts]:
    text = resources.files(__package__).joinpath("formats.toml").read_text(encoding="utf-8")
    found = msgspec.convert(tomllib.loads(text)["formats"], tuple[FormatFacts, ...])
    return {facts.format: facts for facts in found}


def format_facts(format: Format) -> FormatFacts:
    """The facts of a format; every format of spec.Format has them."""
    return _formats()[format]


def kernel(format: Format, compute_capability: str | None, version: VllmVersion) -> Kernel | None:
    """How such a card multiplies weights of this format; None where it cannot."""
    for support in format_facts(format).support:
        if support.has(compute_capability) and support.known_to(version):
            return support.kernel
    return None


def supports(format: Format, compute_capability: str | None, version: VllmVersion) -> str:
    """Empty where the format works on such a card with this vLLM, else the reason why not."""
    if capability(compute_capability) < capability(CAPABILITY_MIN):
        return f"vLLM needs compute capability {CAPABILITY_MIN}, the card has {compute_capability or 'none'}"
    if kernel(format, compute_capability, version):
        return ""
    able = [support for support in format_facts(format).support if support.has(compute_capability)]
    if not able:
        return (
            f"{format} needs compute capability {_bounds(format, version)}, the card has {compute_capability}"
        )
    last = able[-1]
    if last.until:
        return f"vLLM has no {format} since {last.until}, this is {version}"
    return f"{format} needs vLLM {last.since} on compute capability {compute_capability}"


def _bounds(format: Format, version: VllmVersion) -> str:
    every = format_facts(format).support
    known = [support for support in every if support.known_to(version)] or list(every)
    least = min(known, key=lambda support: capability(support.least))
    return f"{least.least} to below {least.below}" if least.below else f"{least.least} or higher"
