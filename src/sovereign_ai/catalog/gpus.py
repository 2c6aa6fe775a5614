"""What cards can do: memory, bandwidth, arithmetic. Pure; the numbers and their sources are in gpus.csv.

Names are matched word by word: a word that the catalog's name does not have (`Laptop`, `D`, `SFF`, `MIG`)
makes another card of it, so that no card is taken for a stronger relative.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from statistics import median
from typing import NamedTuple

from sovereign_ai.spec import Device, Noun

MIB = 1 << 20
GIB = 1 << 30
GIGA = 1e9
TERA = 1e12

RESERVE_SMALL_BYTES = 380 * MIB
RESERVE_LARGE_BYTES = 460 * MIB
"""What the driver keeps: CUDA's total is this much below NVML's (cards up to 12 GB; larger ones). From
start-up logs that print CUDA's total of known cards (column `cuda_gib` of gpus.csv)."""

MEMORY_TOLERANCE = 0.10
"""Relative. ECC and the driver take up to 7 % of what is printed on the box; the closest two variants of one
card (RTX 3080 10 and 12 GB) lie 17 % apart."""

ARCHITECTURES = (
    ("6.0", "Pascal"),
    ("7.0", "Volta"),
    ("7.5", "Turing"),
    ("8.0", "Ampere"),
    ("8.9", "Ada"),
    ("9.0", "Hopper"),
    ("10.0", "Blackwell"),
)
"""The compute capability each begins with, by https://developer.nvidia.com/cuda-gpus."""

HBM_CAPABILITIES = frozenset({"6.0", "7.0", "8.0", "9.0", "10.0"})
BUILT_IN_GIB = (2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
"""Sizes that cards are built with."""

MAKERS = "nvidia geforce tesla"
TRIMMINGS = "generation workstation server edition graphics gpu card hbm2 hbm2e hbm3e"
NOISE = frozenset(f"{MAKERS} {TRIMMINGS}".upper().split())
BRANDS = frozenset({"RTX", "GTX"})
FORMS = ("PCIE", "SXM", "NVL")

_MEMORY = re.compile(r"\b(\d{1,3}) ?(?:GB|GIB|G)\b")
_GLUED = re.compile(r"(?<=\b[RG]TX)(?=A?\d)|(?<=\d)(?=(?:TI|SUPER)\b)")


class GpuFacts(Noun, frozen=True, kw_only=True):
    """One kind of card. Peaks: bytes/s and dense operations/s; None where the card cannot or nobody says.

    `memory_bytes` is NVML's total, `cuda_memory_bytes` what CUDA calls total. `fp16_flops_*` are FP16 with
    FP32 or FP16 accumulation; bfloat16 runs at the former where `bfloat16` says it exists. `measured` is
    False where the facts are derived from a card's relatives.
    """

    name: str
    architecture: str
    compute_capability: str
    memory_bytes: int
    cuda_memory_bytes: int
    bandwidth_bytes_per_s: float
    bfloat16: bool
    fp8: bool
    sm_count: int | None = None
    clock_hz: float | None = None
    fp16_flops_fp32_accumulate: float | None = None
    fp16_flops_fp16_accumulate: float | None = None
    int8_ops: float | None = None
    fp32_flops: float | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlink: bool = False
    power_w: float | None = None
    source: str = ""
    measured: bool = True

    @property
    def hbm(self) -> bool:
        """Whether the memory is stacked on the chip (HBM) and not GDDR."""
        return self.compute_capability in HBM_CAPABILITIES

    @property
    def inline_ecc(self) -> bool:
        """Whether ECC bits take their place, and their bandwidth, in the card's own GDDR memory: it then
        shows 15/16 of what is built in. HBM has memory of its own for them."""
        built_in = min((size * GIB for size in BUILT_IN_GIB if size * GIB >= self.memory_bytes), default=0)
        return not self.hbm and self.memory_bytes < 0.95 * built_in

    @property
    def capability(self) -> tuple[int, int]:
        """(8, 6) of `8.6`, which compares as it should: 10.0 is above 9.0."""
        return capability(self.compute_capability)


def capability(text: str | None) -> tuple[int, int]:
    """(8, 6) of `8.6`; (0, 0) of what is not a compute capability, so that nothing is promised for it."""
    found = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", text or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architecture(text: str | None) -> str:
    """The architecture of a compute capability; "unknown" below Pascal."""
    names = [name for least, name in ARCHITECTURES if capability(least) <= capability(text)]
    return names[-1] if names else "unknown"


def cuda_total_bytes(nvml_total_bytes: int) -> int:
    """What CUDA calls a card's total memory, from what NVML does; at least 1."""
    small = nvml_total_bytes <= 12 * GIB
    return max(1, nvml_total_bytes - (RESERVE_SMALL_BYTES if small else RESERVE_LARGE_BYTES))


@cache
def known_gpus() -> tuple[GpuFacts, ...]:
    """All cards of gpus.csv, in its order."""
    text = resources.files(__package__).joinpath("gpus.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(_facts(row) for row in csv.DictReader(lines))


def _facts(row: dict[str, str]) -> GpuFacts:
    memory = int(row["memory_mib"]) * MIB
    generation, width = row["pcie"].split("x")
    return GpuFacts(
        name=row["name"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        sm_count=int(row["sm_count"]),
        clock_hz=float(row["boost_mhz"]) * 1e6,
        memory_bytes=memory,
        cuda_memory_bytes=int(float(row["cuda_gib"]) * GIB) if row["cuda_gib"] else cuda_total_bytes(memory),
        bandwidth_bytes_per_s=float(row["bandwidth_gb_s"]) * GIGA,
        fp16_flops_fp32_accumulate=_tera(row["fp16_fp32acc_tflops"]),
        fp16_flops_fp16_accumulate=_tera(row["fp16_fp16acc_tflops"]),
        int8_ops=_tera(row["int8_tops"]),
        fp32_flops=_tera(row["fp32_tflops"]),
        bfloat16=row["bfloat16"] == "y",
        fp8=row["fp8"] == "y",
        pcie_generation=int(float(generation)),
        pcie_width=int(width),
        nvlink=row["nvlink"] == "y",
        power_w=float(row["power_w"]),
        source=row["source"],
    )


def _tera(text: str) -> float | None:
    return float(text) * TERA if text else None


class _Name(NamedTuple):
    """A card's name taken apart. `memory` in bytes, as the name says it."""

    words: frozenset[str]
    brand: str
    form: str
    memory: int | None


def _parse(name: str) -> _Name:
    text = re.sub(r"\((?:TM|R)\)|[^A-Z0-9 ]", " ", name.upper())
    text = _GLUED.sub(" ", text)
    memory = _MEMORY.search(text)
    words = _MEMORY.sub(" ", text).split()
    form = next((form for word in words if (form := _form(word, words))), "")
    core = frozenset(word for word in words if word not in NOISE | BRANDS and not _form(word, words))
    brand = next((word for word in words if word in BRANDS), "")
    return _Name(core, brand, form, int(memory[1]) * GIB if memory else None)


def _form(word: str, words: list[str]) -> str:
    """The driver calls the SXM card `H100 80GB HBM3`; the others carry their form in the name."""
    if word == "HBM3":
        return "" if set(words) & {"PCIE", "NVL"} else "SXM"
    return next((form for form in FORMS if re.fullmatch(rf"{form}\d?", word)), "")


@cache
def _parsed() -> tuple[tuple[_Name, GpuFacts], ...]:
    return tuple((_parse(facts.name), facts) for facts in known_gpus())


def find_gpu(name: str, memory_bytes: int | None = None) -> GpuFacts | None:
    """The card that the driver (or a person) calls `name`; None for one that is not known.

    `memory_bytes` (NVML's total, or near it) tells variants of one name apart, as a size in the name does;
    of several that remain, the commonest. A memory that no variant has is another card: None.
    """
    wanted = _parse(name)
    found = [(parsed, facts) for parsed, facts in _parsed() if _same_card(wanted, parsed)]
    for memory in (memory_bytes, wanted.memory):
        if memory is not None:
            found = [pair for pair in found if _near(memory, pair[1].memory_bytes)]
    best = min(found, key=lambda pair: _distance(memory_bytes, pair[1]), default=None)
    return best[1] if best else None


def _same_card(wanted: _Name, known: _Name) -> bool:
    return (
        wanted.words == known.words
        and wanted.brand in ("", known.brand)
        and (wanted.form == known.form or not wanted.form or not known.form)
    )


def _near(memory: int, known: int) -> bool:
    return abs(memory - known) <= MEMORY_TOLERANCE * known


def _distance(memory: int | None, facts: GpuFacts) -> int:
    """Bytes; 0 for all without a memory, which leaves the order of the file."""
    return 0 if memory is None else abs(memory - facts.memory_bytes)


def gpu_facts(device: Device) -> tuple[GpuFacts, str]:
    """Facts of a GPU, and a warning ("" for a known card).

    An unknown card gets its bandwidth from the driver, and peaks by the median ratio of operations to bytes
    among the known cards of its compute capability (else of its architecture): an estimate.
    """
    known = find_gpu(device.name, device.memory_bytes)
    return (known, "") if known else _derived(device)


def _derived(device: Device) -> tuple[GpuFacts, str]:
    kind = architecture(device.compute_capability)
    relatives = _relatives(device.compute_capability, kind)
    bandwidth, origin = _bandwidth(device, relatives)
    generation, width = (device.pcie.generation_max, device.pcie.width_max) if device.pcie else (None, None)
    facts = GpuFacts(
        name=device.name,
        architecture=kind,
        compute_capability=device.compute_capability or "0.0",
        memory_bytes=device.memory_bytes,
        cuda_memory_bytes=cuda_total_bytes(device.memory_bytes),
        bandwidth_bytes_per_s=bandwidth,
        fp16_flops_fp32_accumulate=_scaled(bandwidth, relatives, "fp16_flops_fp32_accumulate"),
        fp16_flops_fp16_accumulate=_scaled(bandwidth, relatives, "fp16_flops_fp16_accumulate"),
        int8_ops=_scaled(bandwidth, relatives, "int8_ops"),
        fp32_flops=_scaled(bandwidth, relatives, "fp32_flops"),
        bfloat16=capability(device.compute_capability) >= (8, 0),
        fp8=capability(device.compute_capability) >= (8, 9),
        pcie_generation=generation,
        pcie_width=width,
        power_w=device.power_limit_max_w or device.power_limit_w,
        source=f"estimated from the driver's figures and {len(relatives)} cards of its kind",
        measured=False,
    )
    return facts, (
        f"`{device.name}` is not in the catalog: its speed is estimated from "
        f"{origin} and other {kind} cards; measure it before you rely on it"
    )


def _relatives(compute_capability: str | None, kind: str) -> tuple[GpuFacts, ...]:
    same = [card for card in known_gpus() if card.capability == capability(compute_capability)]
    return tuple(same or [card for card in known_gpus() if card.architecture == kind])


def _bandwidth(device: Device, relatives: Iterable[GpuFacts]) -> tuple[float, str]:
    """Bytes/s and where they come from: of a card that does not tell, the least among its relatives."""
    if device.bandwidth_bytes_per_s:
        return device.bandwidth_bytes_per_s, "the bandwidth that the driver reports"
    all_known = [card.bandwidth_bytes_per_s for card in relatives or known_gpus()]
    return min(all_known), "the slowest memory of its kind (the driver tells no bandwidth)"


def _scaled(bandwidth: float, relatives: Iterable[GpuFacts], field: str) -> float | None:
    ratios = [
        value / card.bandwidth_bytes_per_s
        for card in relatives
        if (value := getattr(card, field)) is not None
    ]
    return bandwidth * median(ratios) if ratios else None
