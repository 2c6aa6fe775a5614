"""A cluster's objects → one inventory: which nodes count, what is at fault, and what is said of it."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.gathered import Gathered, gather
from sovereign_ai.inventory.published import INVENTORY, MEASURED, encode_node, encode_time, token
from sovereign_ai.inventory.slices import read_slices
from sovereign_ai.spec import Device
from tests.inventory.fakes import GIB, cpu, gpu, node

NOW = 1_764_000_000.0
MESSAGE = "Kubelet stopped posting node status."


def kubernetes_node(
    name: str, *devices: Device, age_s: float | None = 10.0, ready: str = "True", **status: Any
) -> dict[str, Any]:
    annotations = {}
    if age_s is not None:
        annotations = {INVENTORY: encode_node(node(*devices, name=name)), MEASURED: encode_time(NOW - age_s)}
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]
    if ready != "True":
        conditions[1]["message"] = MESSAGE
    return {
        "metadata": {"name": name, "annotations": annotations},
        "status": {"capacity": {}, "allocatable": {}, "conditions": conditions} | status,
    }


def gathered(*nodes: dict[str, Any], slices: list[dict[str, Any]] | None = None) -> Gathered:
    return gather(nodes, slices or [], NOW)


def faults(found: Gathered) -> list[str]:
    return [device.fault for device in found.inventory.devices]


def test_nodes_by_name_with_the_age_of_their_measurement() -> None:
    found = gathered(
        kubernetes_node("b", gpu(1, "A", 8192)), kubernetes_node("a", gpu(0, "A", 8192), age_s=70)
    )
    assert [one.name for one in found.inventory.nodes] == ["a", "b"]
    assert found.ages == {"a": 70, "b": 10}
    assert (found.warnings, faults(found)) == ((), ["", ""])


def test_a_stale_measurement_is_warned_of_and_a_silent_agents_cards_are_at_fault() -> None:
    found = gathered(
        kubernetes_node("a", gpu(0, "A", 8192), age_s=301),
        kubernetes_node("b", gpu(1, "A", 8192), age_s=901),
        kubernetes_node("c", gpu(2, "A", 8192), age_s=300),
    )
    assert found.warnings == (
        "node a: its agent measured last 5 minutes ago",
        "node b: its agent measured last 15 minutes ago",
    )
    assert faults(found) == ["", "its agent measured last 15 minutes ago: it is silent", ""]


def test_clocks_that_differ_make_no_negative_age() -> None:
    assert gathered(kubernetes_node("a", cpu(), age_s=-30)).ages == {"a": 0}


def test_devices_of_a_node_that_is_not_ready_are_at_fault() -> None:
    broken = gpu(0, "A", 8192, fault="lost")
    found = gathered(
        kubernetes_node("a", broken, gpu(1, "A", 8192), ready="Unknown"),
        kubernetes_node("b", cpu(), conditions=[]),
    )
    why = f"the node is not ready: {MESSAGE}"
    never = "the node is not ready: no kubelet has reported"
    assert faults(found) == [f"lost; {why}", why, never]
    assert found.warnings == (f"node a: {why}", f"node b: {never}")


def test_a_cordoned_node_is_told() -> None:
    (warning,) = gathered(kubernetes_node("a", cpu()) | {"spec": {"unschedulable": True}}).warnings
    assert warning.startswith("node a: it is cordoned")


def test_a_node_has_what_is_allocatable_and_its_name_in_the_cluster() -> None:
    made = kubernetes_node("a", cpu(), allocatable={"cpu": "1500m", "memory": "8Gi"})
    made["metadata"]["annotations"][INVENTORY] = encode_node(node(cpu(), name="pod-x"))
    (one,) = gathered(made).inventory.nodes
    assert (one.name, one.cores, one.memory_bytes, one.memory_free_bytes) == ("a", 1, 8 * GIB, 8 * GIB)
    assert (one.devices[0].cores, one.devices[0].memory_bytes) == (1, 8 * GIB)


def test_annotations_that_cannot_be_read() -> None:
    good, bad, timeless = (kubernetes_node(name, gpu(at, "A", 8192)) for at, name in enumerate("abc"))
    bad["metadata"]["annotations"][INVENTORY] = "{}"
    del timeless["metadata"]["annotations"][MEASURED]
    found = gathered(good, bad, timeless)
    assert [one.name for one in found.inventory.nodes] == ["a", "c"]
    assert faults(found) == ["", "its agent does not tell when it measured"]
    assert found.warnings[0].startswith("node b: not counted: its inventory annotation cannot be read")


def plain_node(name: str = "box", **status: Any) -> dict[str, Any]:
    """Of a cluster without cards, so without agents: what a kubelet tells of any node."""
    made = kubernetes_node(name, age_s=None, allocatable={"cpu": "3920m", "memory": "8000000Ki"}, **status)
    made["status"]["nodeInfo"] = {"architecture": "arm64"}
    return made


def test_where_there_are_no_cards_nodes_count_with_their_cpu() -> None:
    away = plain_node("b", ready="Unknown")
    away["spec"] = {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]}
    found = gathered(plain_node("a"), away)
    first = found.inventory.nodes[0]
    assert (first.name, first.cores, first.memory_bytes) == ("a", 3, 8_000_000 * 1024)
    device = first.devices[0]
    assert (device.id, device.kind, device.name, device.cores) == ("cpu", "cpu", "arm64", 3)
    assert faults(found) == ["", f"the node is not ready: {MESSAGE}"]
    assert found.warnings[0].startswith("node a: no agent: counted with its CPU alone")
    assert f"node b: the node is not ready: {MESSAGE}" in found.warnings


def test_beside_nodes_with_agents_others_do_not_count() -> None:
    found = gathered(plain_node("a"), kubernetes_node("b", gpu(0, "A", 8192)))
    assert [one.name for one in found.inventory.nodes] == ["b"]


@pytest.mark.parametrize(
    "sign",
    [
        {"status": {"capacity": {"nvidia.com/gpu": "2"}}},
        {"status": {"capacity": {token("GPU-00000000"): "1"}}},
        {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}},
        {"metadata": {"labels": {"feature.node.kubernetes.io/pci-10de.present": "true"}}},
        {"spec": {"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]}},
    ],
    ids=["device plugin", "our tokens", "NVIDIA's label", "feature discovery", "control plane"],
)
def test_a_node_that_shows_cards_or_takes_no_pods_does_not_count_with_its_cpu(
    sign: dict[str, dict[str, Any]],
) -> None:
    made = plain_node()
    for part, fields in sign.items():
        made.setdefault(part, {}).update(fields)
    with pytest.raises(InventoryError, match="no agent has measured it"):
        gathered(made)


def test_a_cluster_that_tells_nothing_is_refused() -> None:
    with pytest.raises(InventoryError, match="no node of the cluster tells its devices") as caught:
        gathered(kubernetes_node("a", age_s=None))
    assert "node a: not counted: no agent has measured it" in caught.value.message
    with pytest.raises(InventoryError):
        gathered()


def test_one_card_on_two_nodes_is_refused() -> None:
    with pytest.raises(InventoryError, match=r"^cluster \(nodes\[1\]\.devices\[0\]\.id\)"):
        gathered(kubernetes_node("a", gpu(0, "A", 8192)), kubernetes_node("b", gpu(0, "A", 8192)))


def test_a_card_that_was_moved_counts_where_it_is_in_health() -> None:
    card, other = gpu(0, "A", 8192), gpu(1, "A", 8192)
    found = gathered(
        kubernetes_node("a", card, other, ready="Unknown"),
        kubernetes_node("b", card),
        kubernetes_node("c", card, age_s=5000),
    )
    assert [(one.name, [device.id for device in one.devices]) for one in found.inventory.nodes] == [
        ("a", [other.id]),
        ("b", [card.id]),
    ]
    assert f"node a: not counted: {card.id}, which is in health on node b" in found.warnings
    assert f"node c: not counted: {card.id}, which is in health on node b" in found.warnings


def test_cards_handed_out_twice_are_warned_of() -> None:
    capacity = {"nvidia.com/gpu": "1", token("GPU-00000000"): "1"}
    found = gathered(kubernetes_node("a", gpu(0, "A", 8192), capacity=capacity))
    assert "two pods could get one card" in found.warnings[0]


def sliced_card(index: int, **more: Any) -> dict[str, Any]:
    attributes = {
        "type": {"string": "gpu"},
        "uuid": {"string": f"GPU-{index:08x}"},
        "productName": {"string": "NVIDIA GeForce RTX 3080"},
        "cudaComputeCapability": {"version": "8.6.0"},
        "driverVersion": {"version": "580.95.5"},
        "resource.kubernetes.io/pciBusID": {"string": f"0000:{9 - index:02x}:00.0"},
    }
    attributes |= more.pop("attributes", {})
    return {
        "name": f"gpu-{index}",
        "attributes": attributes,
        "capacity": {"memory": {"value": "10Gi"}},
    } | more


def slice_of(
    *devices: dict[str, Any], name: str = "a", generation: int = 1, count: int = 1, driver: str = ""
) -> dict[str, Any]:
    pool = {"name": name, "generation": generation, "resourceSliceCount": count}
    return {
        "spec": {
            "driver": driver or "gpu.nvidia.com",
            "nodeName": name,
            "pool": pool,
            "devices": list(devices),
        }
    }


def test_cards_from_slices_in_pci_order() -> None:
    made = kubernetes_node("a", age_s=None, allocatable={"cpu": "15900m", "memory": "60Gi"})
    found = gathered(made, slices=[slice_of(sliced_card(0), sliced_card(1))])
    (one,) = found.inventory.nodes
    assert (one.cores, one.memory_bytes, one.driver_version) == (15, 60 * GIB, "580.95.5")
    assert [(device.id, device.index) for device in one.devices] == [("GPU-00000001", 0), ("GPU-00000000", 1)]
    card = one.devices[0]
    assert (card.name, card.memory_bytes, card.compute_capability) == (
        "NVIDIA GeForce RTX 3080",
        10 * GIB,
        "8.6",
    )
    assert (card.bandwidth_bytes_per_s, card.pcie, card.fault) == (None, None, "")
    assert found.ages == {}
    assert found.warnings[0].startswith("node a: no agent: from ResourceSlices")


def test_an_agents_word_counts_more_than_slices() -> None:
    found = gathered(kubernetes_node("a", gpu(7, "A", 8192)), slices=[slice_of(sliced_card(0))])
    assert [device.id for device in found.inventory.devices] == ["GPU-00000007"]


def test_v1beta1_has_them_one_level_deeper() -> None:
    flat = sliced_card(0)
    deep = {"name": flat.pop("name"), "basic": flat}
    assert read_slices([slice_of(deep)]) == read_slices([slice_of(sliced_card(0))])


def test_only_the_newest_generation_counts_and_only_whole() -> None:
    old, new = slice_of(sliced_card(0)), slice_of(sliced_card(1), generation=2, count=2)
    assert read_slices([old, new])["a"].refusal == "pool `a`: 1 of 2 slices of generation 2"
    other = slice_of(sliced_card(2), generation=2, count=2)
    assert [one.id for one in read_slices([new, other, old])["a"].devices] == ["GPU-00000002", "GPU-00000001"]
    refused = kubernetes_node("a", age_s=None)
    with pytest.raises(InventoryError, match="1 of 2 slices of generation 2"):
        gathered(refused, slices=[new])


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), unique=True), st.randoms(), st.integers(1, 4)
)
def test_slices_in_any_order_are_all_of_the_newest_generation_or_refused(
    given_: list[tuple[int, int]], random: Random, count: int
) -> None:
    slices = [slice_of(sliced_card(card), generation=at, count=count) for at, card in given_]
    in_order = read_slices(slices)
    random.shuffle(slices)
    assert read_slices(slices) == in_order
    if given_:
        newest = [card for at, card in given_ if at == max(at for at, _ in given_)]
        found = in_order["a"]
        assert bool(found.refusal) == (len(newest) != count)
        assert {one.index for one in found.devices} == set(range(0 if found.refusal else count))


def test_what_a_slice_has_to_tell() -> None:
    silent = sliced_card(0, attributes={"uuid": {}})
    small = sliced_card(1, capacity={})
    odd = sliced_card(2, capacity={"memory": {"value": "much"}})
    refusal = read_slices([slice_of(silent, small, odd)])["a"].refusal
    lacking = [
        "device `gpu-0` tells no UUID",
        "device `gpu-1` tells no memory",
        "device `gpu-2` tells no memory",
    ]
    assert refusal == f"pool `a`: {'; '.join(lacking)}"


def test_other_drivers_parts_of_cards_and_pools_of_no_node_are_left_out() -> None:
    part = sliced_card(1, attributes={"type": {"string": "mig"}})
    homeless = slice_of(sliced_card(2), name="")
    found = read_slices([slice_of(sliced_card(0), part), slice_of(sliced_card(3), driver="x"), homeless, {}])
    assert [one.id for one in found["a"].devices] == ["GPU-00000000"]


def test_a_tainted_card_is_at_fault_and_spellings_with_the_domain_are_read() -> None:
    taints = [{"key": "gpu.nvidia.com/xid", "value": "79", "effect": "NoSchedule"}, {"effect": "None"}]
    card = sliced_card(0, taints=taints, capacity={"gpu.nvidia.com/memory": "8Gi"})
    card["attributes"] = {f"gpu.nvidia.com/{key}": value for key, value in card["attributes"].items()}
    card["attributes"]["gpu.nvidia.com/cudaComputeCapability"] = {"version": "8"}
    (device,) = read_slices([slice_of(card)])["a"].devices
    assert device.fault == "tainted: gpu.nvidia.com/xid=79"
    assert (device.memory_bytes, device.compute_capability) == (8 * GIB, None)


def test_an_inventory_from_a_cluster_can_be_saved_as_one() -> None:
    found = gathered(kubernetes_node("a", gpu(0, "A", 8192)), kubernetes_node("b", cpu()))
    assert msgspec.json.decode(msgspec.json.encode(found.inventory), type=type(found.inventory))
