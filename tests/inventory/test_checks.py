from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sovereign_ai.inventory.checks import Problem, problems
from sovereign_ai.inventory.places import spell
from sovereign_ai.spec import Device, Inventory, Link, Pcie
from tests.inventory.fakes import GIB, cpu, gpu, inventory, node, six_card_rig

A, B = gpu(0, "A", 8192), gpu(1, "A", 8192)


def only(there: Inventory) -> Problem:
    return next(iter(problems(there)))


def changed(**facts: Any) -> Inventory:
    return inventory(A, msgspec.structs.replace(B, **facts))


def test_nothing_is_wrong_with_a_rig() -> None:
    assert list(problems(six_card_rig())) == []
    assert list(problems(inventory(cpu()))) == []


def pcie(**facts: int) -> Pcie:
    return Pcie(**{"generation": 4, "generation_max": 4, "width": 16, "width_max": 16, **facts})


@pytest.mark.parametrize(
    ("facts", "where", "what"),
    [
        ({"id": ""}, "id", "`` is no device id"),
        ({"id": "GPU 1"}, "id", "`GPU 1` is no device id"),
        ({"id": "cpu"}, "id", "a gpu cannot have the id `cpu`"),
        ({"kind": "cpu"}, "id", "a cpu cannot have the id `GPU-00000001`"),
        ({"index": -1}, "index", "-1 index: not between 0 and"),
        ({"cores": -1}, "cores", "-1 cores"),
        ({"memory_bytes": -1}, "memory_bytes", "-1 bytes of memory: not between"),
        ({"memory_bytes": 0, "memory_free_bytes": 0}, "memory_bytes", "0 bytes of memory"),
        ({"memory_bytes": 10240}, "memory_bytes", "10240 bytes of memory"),
        ({"memory_bytes": 1025 * GIB}, "memory_bytes", "bytes of memory: not between"),
        ({"memory_free_bytes": 9 * GIB}, "memory_free_bytes", "are free of 8589934592 in total"),
        ({"memory_free_bytes": -1}, "memory_free_bytes", "-1 bytes of free memory"),
        ({"memory_reserved_bytes": -1}, "memory_reserved_bytes", "-1 bytes reserved"),
        ({"memory_reserved_bytes": GIB}, "memory_reserved_bytes", "1073741824 bytes reserved and"),
        ({"compute_capability": "86"}, "compute_capability", "`86` is not of the form N.N"),
        ({"compute_capability": "8.6.1"}, "compute_capability", "is not of the form N.N"),
        ({"compute_capability": ""}, "compute_capability", "is not of the form N.N"),
        ({"bandwidth_bytes_per_s": 0.0}, "bandwidth_bytes_per_s", "a bandwidth of 0 bytes/s"),
        ({"bandwidth_bytes_per_s": -1.0}, "bandwidth_bytes_per_s", "a bandwidth of -1 bytes/s"),
        ({"bandwidth_bytes_per_s": 760.0}, "bandwidth_bytes_per_s", "a bandwidth of 760 bytes/s"),
        ({"bandwidth_bytes_per_s": 1.1e14}, "bandwidth_bytes_per_s", "a bandwidth of 1.1e+14 bytes/s"),
        ({"power_limit_w": -5.0}, "power_limit_w", "-5 W: not between 0 and"),
        ({"power_limit_max_w": 3e5}, "power_limit_max_w", "300000 W"),
        ({"pcie": pcie(generation=0)}, "pcie.generation", "PCIe generation 0 does not exist"),
        ({"pcie": pcie(generation_max=9)}, "pcie.generation_max", "PCIe generation 9 does not exist"),
        ({"pcie": pcie(width=3)}, "pcie.width", "PCIe width 3 does not exist"),
        ({"pcie": pcie(width_max=64)}, "pcie.width_max", "PCIe width 64 does not exist"),
        ({"pcie": pcie(width_max=8)}, "pcie.width", "PCIe width 16 is above its maximum 8"),
        ({"pcie": pcie(generation_max=3)}, "pcie.generation", "PCIe generation 4 is above its maximum 3"),
    ],
)
def test_a_device_that_cannot_be(facts: dict[str, Any], where: str, what: str) -> None:
    problem = only(changed(**facts))
    assert spell(problem.steps) == f"nodes[0].devices[1].{where}"
    assert what in problem.what
    assert problem.hint


def test_a_card_at_fault_may_have_no_memory() -> None:
    facts = {"memory_bytes": 0, "memory_free_bytes": 0, "fault": "does not answer"}
    assert list(problems(changed(**facts))) == []


def test_a_host_may_have_more_memory_than_any_card() -> None:
    large = msgspec.structs.replace(cpu(), memory_bytes=2048 * GIB)
    assert list(problems(inventory(large))) == []


@pytest.mark.parametrize(
    ("facts", "where", "what"),
    [
        ({"name": " "}, "name", "a node needs a name"),
        ({"devices": ()}, "devices", "node `box` has no devices"),
        ({"cores": 0}, "cores", "0 cores: not between 1"),
        ({"memory_bytes": 0}, "memory_bytes", "0 bytes of memory"),
        ({"memory_free_bytes": 17 * GIB}, "memory_free_bytes", "are free of"),
        (
            {"links": (Link(a=A.id, b="GPU-9", kind="p2p"),)},
            "links[0].b",
            "the link names `GPU-9`, which its",
        ),
        ({"links": (Link(a=A.id, b=A.id, kind="p2p"),)}, "links[0]", "with itself"),
        (
            {"links": (Link(a=A.id, b=B.id, kind="p2p"), Link(a=B.id, b=A.id, kind="nvlink"))},
            "links[1]",
            "is there twice",
        ),
    ],
)
def test_a_node_that_cannot_be(facts: dict[str, Any], where: str, what: str) -> None:
    problem = only(Inventory(nodes=(msgspec.structs.replace(node(A, B), **facts),)))
    assert spell(problem.steps) == f"nodes[0].{where}"
    assert what in problem.what


def test_no_node() -> None:
    assert only(Inventory(nodes=())).what == "there is no node"


def nodes(*groups: tuple[Device, ...], names: str = "abc") -> Inventory:
    return Inventory(nodes=tuple(node(*group, name=name) for group, name in zip(groups, names, strict=False)))


@pytest.mark.parametrize(
    ("there", "where", "other", "what"),
    [
        (nodes((A,), (B,), names="aa"), "nodes[1].name", "nodes[0].name", "node `a` is there twice"),
        (nodes((A,), (A,)), "nodes[1].devices[0].id", "nodes[0].devices[0].id", "device GPU-00000000 is"),
        (nodes((cpu(), cpu())), "nodes[0].devices[1].id", "nodes[0].devices[0].id", "device `cpu` of node"),
        (
            nodes((A, msgspec.structs.replace(B, index=0))),
            "nodes[0].devices[1].index",
            "nodes[0].devices[0].index",
            "GPU index 0 of node `a`",
        ),
    ],
)  # fmt: skip
def test_a_clash_names_both_places(there: Inventory, where: str, other: str, what: str) -> None:
    problem = only(there)
    assert problem.other is not None
    assert (spell(problem.steps), spell(problem.other)) == (where, other)
    assert problem.what.startswith(what)


def test_ids_that_are_no_uuids_repeat_across_nodes() -> None:
    lost = msgspec.structs.replace(A, id="lost-0", fault="does not answer")
    assert list(problems(nodes((cpu(),), (cpu(), A)))) == []
    assert list(problems(nodes((lost,), (lost,)))) == []
    assert [problem.what for problem in problems(nodes((lost, lost)))] == [
        "device `lost-0` of node `a` is there twice"
    ]
