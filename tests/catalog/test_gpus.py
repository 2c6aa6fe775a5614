from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.catalog.gpus import (
    GIB,
    MIB,
    architecture,
    capability,
    cuda_total_bytes,
    find_gpu,
    gpu_facts,
    known_gpus,
)
from sovereign_ai.spec import Device, Pcie


def device(name: str, mib: int, **fields: object) -> Device:
    known = Device(id="GPU-0", kind="gpu", name=name, memory_bytes=mib * MIB, memory_free_bytes=mib * MIB)
    return msgspec.structs.replace(known, **fields)


def test_every_card_is_found_by_its_own_name_and_memory() -> None:
    assert len(known_gpus()) >= 77
    for card in known_gpus():
        for memory in (None, card.memory_bytes):
            found = find_gpu(card.name, memory)
            assert found is not None
            assert found.name == card.name


def test_every_card_has_plausible_facts_and_a_source() -> None:
    for card in known_gpus():
        assert card.measured
        assert card.source.startswith("https://")
        assert card.architecture == architecture(card.compute_capability)
        assert 0 < card.cuda_memory_bytes < card.memory_bytes
        assert card.bfloat16 == (card.capability >= (8, 0))
        assert card.fp8 == (card.capability >= (8, 9))
        assert 1e11 < card.bandwidth_bytes_per_s < 1e13
        half, quick = card.fp16_flops_fp32_accumulate, card.fp16_flops_fp16_accumulate
        assert (half is None) == (quick is None)
        assert half is None or quick is None or quick >= half > 1e12
        assert card.fp32_flops is not None


@pytest.mark.parametrize(
    ("name", "mib", "found"),
    [
        ("NVIDIA GeForce RTX 3080", 10240, "GeForce RTX 3080 10GB"),
        ("NVIDIA GeForce RTX 3080", 12288, "GeForce RTX 3080 12GB"),
        ("NVIDIA GeForce RTX 3080", None, "GeForce RTX 3080 10GB"),
        ("NVIDIA GeForce RTX 3060", 12288, "GeForce RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 3060", 8192, "GeForce RTX 3060 8GB"),
        ("NVIDIA GeForce RTX 3060 Ti", 8192, "GeForce RTX 3060 Ti"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "GeForce RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "GeForce RTX 4060 Ti 8GB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16376, "GeForce RTX 4070 Ti Super"),
        ("NVIDIA GeForce RTX 2060", 6144, "GeForce RTX 2060"),
        ("NVIDIA GeForce RTX 2060", 12288, "GeForce RTX 2060 12GB"),
        ("NVIDIA GeForce GTX 1060 6GB", 6144, "GeForce GTX 1060 6GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100 SXM 80GB"),
        ("NVIDIA A100-SXM4-40GB", 40960, "A100 SXM 40GB"),
        ("NVIDIA A100-PCIE-40GB", 40960, "A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100 PCIe 80GB"),
        ("Tesla V100-SXM2-16GB", 16160, "Tesla V100 SXM2 16GB"),
        ("Tesla V100-PCIE-32GB", 32768, "Tesla V100 PCIe 32GB"),
        ("Tesla T4", 15360, "T4"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA A10", 23028, "A10"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100 SXM"),
        ("NVIDIA H100 PCIe", 81559, "H100 PCIe"),
        ("NVIDIA H100 NVL", 95830, "H100 NVL"),
        ("NVIDIA H200", 143771, "H200 SXM"),
        ("NVIDIA H200 NVL", 143771, "H200 NVL"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX 6000 Ada"),
        ("Quadro RTX 6000", 24576, "Quadro RTX 6000"),
        ("NVIDIA RTX A6000", 49140, "RTX A6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "RTX PRO 6000 Blackwell"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            97887,
            "RTX PRO 6000 Blackwell Max-Q",
        ),
        ("NVIDIA TITAN RTX", 24576, "TITAN RTX"),
        ("RTX 4090 24GB", None, "GeForce RTX 4090"),
        ("GeForce RTX™ 3060Ti", None, "GeForce RTX 3060 Ti"),
        ("rtx3090", None, "GeForce RTX 3090"),
        ("A6000", None, "RTX A6000"),
        ("H100 80GB", None, "H100 SXM"),
        ("A100 80GB", None, "A100 SXM 80GB"),
    ],
)
def test_names_that_drivers_and_people_use(name: str, mib: int | None, found: str) -> None:
    facts = find_gpu(name, None if mib is None else mib * MIB)
    assert facts is not None
    assert facts.name == found


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 16384),
        ("NVIDIA GeForce RTX 3080", 20480),
        ("NVIDIA GeForce RTX 2080 Ti", 22528),
        ("GeForce RTX 2080 with Max-Q Design", 8192),
        ("NVIDIA GeForce GTX 1060 3GB", 3072),
        ("NVIDIA A10-8Q", 8192),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864),
        ("NVIDIA GH200 480GB", 97871),
        ("H100 96GB HBM3", None),
        ("GTX TITAN", 6144),
        ("GTX 3080", None),
        ("RTX 6000", None),
        ("", None),
    ],
)
def test_no_card_is_taken_for_a_relative(name: str, mib: int | None) -> None:
    assert find_gpu(name, None if mib is None else mib * MIB) is None


def test_a_known_card_comes_without_a_warning() -> None:
    facts, warning = gpu_facts(device("NVIDIA GeForce RTX 3060", 12288))
    assert (facts.name, warning) == ("GeForce RTX 3060 12GB", "")


def test_an_unknown_card_is_estimated_from_its_relatives() -> None:
    pcie = Pcie(generation=1, generation_max=4, width=8, width_max=16)
    laptop = device(
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        16384,
        compute_capability="8.6",
        bandwidth_bytes_per_s=448e9,
        pcie=pcie,
        power_limit_max_w=165.0,
    )
    facts, warning = gpu_facts(laptop)
    assert "is not in the catalog" in warning
    assert "the bandwidth that the driver reports and other Ampere cards" in warning
    assert (facts.measured, facts.architecture, facts.bfloat16, facts.fp8) == (False, "Ampere", True, False)
    assert (facts.pcie_generation, facts.pcie_width, facts.power_w) == (4, 16, 165.0)
    assert facts.cuda_memory_bytes == 16384 * MIB - 460 * MIB
    half = facts.fp16_flops_fp32_accumulate
    assert half is not None
    assert 20e12 < half < 80e12


def test_a_capability_without_a_card_of_its_own_takes_the_architectures() -> None:
    facts, _ = gpu_facts(device("Jetson", 30000, compute_capability="8.7", bandwidth_bytes_per_s=204e9))
    assert facts.architecture == "Ampere"
    assert facts.fp32_flops is not None


def test_a_driver_that_tells_nothing_gets_no_promises() -> None:
    facts, warning = gpu_facts(device("Mystery", 8192))
    assert "tells no bandwidth" in warning
    assert (facts.architecture, facts.capability, facts.bfloat16) == ("unknown", (0, 0), False)
    assert (facts.fp16_flops_fp32_accumulate, facts.fp32_flops, facts.pcie_width) == (None, None, None)
    assert facts.bandwidth_bytes_per_s == min(card.bandwidth_bytes_per_s for card in known_gpus())


def test_capabilities_compare_as_numbers() -> None:
    assert capability("10.0") > capability("9.0") > capability("8.6") > capability(None)
    assert capability("eight") == (0, 0)
    assert [architecture(text) for text in ("5.2", "6.1", "7.0", "7.5", "8.7", "8.9", "9.0", "12.1")] == [
        "unknown",
        "Pascal",
        "Volta",
        "Turing",
        "Ampere",
        "Ada",
        "Hopper",
        "Blackwell",
    ]


def test_cuda_sees_less_than_nvml() -> None:
    assert cuda_total_bytes(12 * GIB) == 12 * GIB - 380 * MIB
    assert cuda_total_bytes(24 * GIB) == 24 * GIB - 460 * MIB
    assert cuda_total_bytes(0) == 1


@pytest.mark.parametrize(
    ("name", "hbm", "ecc"),
    [
        ("A100 SXM 80GB", True, False),
        ("H100 SXM", True, False),
        ("A10", False, True),
        ("L4", False, True),
        ("T4", False, True),
        ("A40", False, True),
        ("RTX A6000", False, False),
        ("GeForce RTX 3080 10GB", False, False),
        ("GeForce RTX 4090", False, False),
    ],
)
def test_what_kind_of_memory_a_card_has(name: str, hbm: bool, ecc: bool) -> None:
    facts = find_gpu(name)
    assert facts is not None
    assert (facts.hbm, facts.inline_ecc) == (hbm, ecc)
