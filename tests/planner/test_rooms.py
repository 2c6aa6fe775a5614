"""Devices as the planner sees them. The cards are made up by the catalog: no driver was asked."""

from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner import rooms as planner_rooms
from sovereign_ai.planner.rooms import GRAIN_BYTES, Site, sites, slot_bytes_per_s
from sovereign_ai.spec import Deployment, Inventory, Link, LinkKind, Memory, Node, Pcie, Plan
from tests.inventory.fakes import GIB, MIB, cpu, gpu, inventory, node
from tests.planner.models import card, rig, rooms


def site(there: Inventory, **options: object) -> Site:
    tiers = form_tiers(there, (), catalog_bandwidths(there))
    return sites(there, tiers, **options)[0][0]  # type: ignore[arg-type]


def linked(count: int, *links: tuple[int, int, LinkKind]) -> Node:
    cards = tuple(card(index, "RTX 3090") for index in range(count))
    found = tuple(Link(a=cards[a].id, b=cards[b].id, kind=kind) for a, b, kind in links)
    return msgspec.structs.replace(node(*cards), links=found)


def pooled(found: Site) -> list[list[int]]:
    return [[room.device.index for room in pool.rooms] for pool in found.pools]


def deployed(*devices: str, gib: float = 0.0, model: str = "chat", replica: int = 0) -> Deployment:
    memory = Memory(weights_bytes=int(gib * GIB), kv_cache_bytes=0, activation_bytes=0, overhead_bytes=0)
    return Deployment(
        model=model,
        version="1",
        task="chat",
        engine="triton",
        backend="vllm",
        node="box",
        tier="primary",
        devices=devices,
        context=8192,
        max_num_seqs=8,
        memories=tuple(memory for _ in devices),
        replica=replica,
    )


def plan(*deployments: Deployment) -> Plan:
    return Plan(tiers=(), deployments=deployments)


def test_a_card_that_nobody_uses() -> None:
    (room,) = rooms(rig("RTX 3080 10GB"))
    hidden = 10 * GIB - room.cuda_bytes
    assert 300 * MIB < hidden < 500 * MIB
    assert abs(room.usable_bytes - room.cuda_bytes) < MIB
    assert (room.id, room.key, room.tier.name) == ("GPU-00000000", ("box", "GPU-00000000"), "primary")
    assert room.facts is not None and room.card.name == "GeForce RTX 3080 10GB"


def test_what_others_use_is_not_there() -> None:
    free, used = rooms(rig("RTX 3060 12GB"))[0], rooms(rig("RTX 3060 12GB", used_mib=900))[0]
    assert free.usable_bytes - used.usable_bytes == 900 * MIB


def test_what_the_driver_reserves_is_not_in_use_by_others() -> None:
    (device,) = rig("RTX 3080 10GB").devices
    told = msgspec.structs.replace(
        device, memory_reserved_bytes=500 * MIB, memory_free_bytes=10 * GIB - 500 * MIB
    )
    (room,) = rooms(inventory(told))
    assert room.usable_bytes == room.cuda_bytes


def test_more_used_than_there_is() -> None:
    device = msgspec.structs.replace(card(0, "RTX 3080 10GB"), memory_free_bytes=0)
    (room,) = rooms(inventory(device))
    assert room.usable_bytes == 0


def test_the_cpu_is_its_machine() -> None:
    (room,) = rooms(inventory(cpu(free_bytes=5 * GIB)))
    assert (room.cuda_bytes, room.usable_bytes, room.facts) == (16 * GIB, 5 * GIB, None)
    assert (room.card.kind, room.card.bandwidth, room.card.flops) == ("cpu", 16e9, 192e9)


@pytest.mark.parametrize(("cores", "gb_s"), [(0, 8), (1, 8), (8, 64), (64, 64)])
def test_cores_beyond_the_memory_add_little(cores: int, gb_s: int) -> None:
    device = msgspec.structs.replace(cpu(), cores=cores)
    assert planner_rooms.cpu_card(device).bandwidth == gb_s * 1e9
    assert planner_rooms.cpu_card(device).flops == 96e9 * max(1, cores)


def test_an_unknown_card_is_told_of_once() -> None:
    there = inventory(*(gpu(index, "Some Card", 8192, gb_s=300) for index in range(2)))
    found, warnings = sites(there, form_tiers(there))
    assert len(found[0].pools) == 1
    (warning,) = warnings
    assert "`Some Card` is not in the catalog" in warning


def test_like_cards_are_one_pool_by_their_slots() -> None:
    there = rig("RTX 3060 12GB", "RTX 3080 10GB", "RTX 3060 12GB", "RTX 3080 10GB")
    assert pooled(site(there)) == [[1, 3], [0, 2]]


def test_cards_with_less_free_memory_are_another_pool() -> None:
    def of(used_mib: int) -> list[list[int]]:
        return pooled(site(inventory(card(0, "RTX 3090"), card(1, "RTX 3090", used_mib=used_mib))))

    assert of(0) == [[0, 1]]
    assert of(2 * GRAIN_BYTES // MIB) == [[0], [1]]


def test_a_pool_has_what_the_fullest_of_its_cards_has() -> None:
    (pool,) = site(inventory(card(0, "RTX 3090"), card(1, "RTX 3090", used_mib=8))).pools
    assert pool.usable_bytes == pool.rooms[1].usable_bytes < pool.first.usable_bytes


def test_sites_are_in_the_order_of_names_and_need_a_device() -> None:
    there = Inventory(nodes=(node(cpu(), name="z"), node(cpu(), name="a"), node(name="empty")))
    found, _ = sites(there, form_tiers(there))
    assert [one.node for one in found] == ["a", "z"]


def test_a_device_of_no_tier_is_left_out() -> None:
    there = inventory(
        card(0, "RTX 3090"), gpu(1, "NVIDIA GeForce RTX 3090", 24576, fault="has fallen off the bus")
    )
    assert pooled(site(there)) == [[0]]
    assert sites(there, ()) == ((), ())


def test_pinned_and_serving_cards_are_pools_of_their_own() -> None:
    there = rig(*["RTX 3090"] * 4)
    pins = {"chat": frozenset({("box", "GPU-00000002")})}
    assert pooled(site(there, pins=pins)) == [[0, 1, 3], [2]]
    current = plan(deployed("GPU-00000001", "GPU-00000003"))
    assert pooled(site(there, current=current)) == [[0, 2], [1, 3]]
    copies = plan(deployed("GPU-00000001"), deployed("GPU-00000003", replica=1))
    assert pooled(site(there, current=copies)) == [[0, 2], [1], [3]]


def test_memory_of_the_running_plan_is_not_in_use_by_others() -> None:
    """The same card in an inventory taken before the plan ran, and while it does."""
    current = plan(deployed("GPU-00000000", gib=10))
    before, while_running = rig("RTX 3090", used_mib=500), rig("RTX 3090", used_mib=500 + 10 * 1024)
    expected = rooms(before)[0].usable_bytes
    for there in (before, while_running):
        assert site(there, current=current).pools[0].usable_bytes == pytest.approx(expected, abs=MIB)
    assert rooms(while_running)[0].usable_bytes < expected - 9 * GIB


def test_what_was_measured_wins() -> None:
    own = constants_for("vllm")
    found = site(rig("RTX 3090", "RTX 3060 12GB"), measured={"GeForce RTX 3090": own})
    assert [pool.first.card.constants for pool in found.pools] == [own, None]


def test_bridged_pairs_are_pools_of_their_own() -> None:
    two = linked(4, (0, 1, "nvlink"), (2, 3, "nvlink"), (0, 2, "host"))
    assert pooled(site(Inventory(nodes=(two,)))) == [[0, 1], [2, 3]]
    chain = linked(4, (0, 1, "p2p"), (2, 3, "p2p"), (1, 2, "p2p"))
    assert pooled(site(Inventory(nodes=(chain,)))) == [[0, 1, 2, 3]]


def test_the_weakest_link_decides() -> None:
    found = site(Inventory(nodes=(linked(3, (0, 1, "nvlink"), (1, 2, "p2p"), (0, 2, "p2p")),)))
    ids = [f"GPU-{index:08x}" for index in range(3)]
    assert found.link(ids[:2]) == "nvlink"
    assert found.link(ids) == "p2p"
    assert found.link([ids[0], "another"]) == "host"
    assert found.link(ids[:1]) == found.link([]) == "host"


def test_the_memory_that_a_card_hides_is_the_catalogs() -> None:
    room = rooms(rig("RTX 3080 10GB"))[0]
    assert room.facts is not None
    larger = msgspec.structs.replace(room.device, memory_bytes=room.device.memory_bytes + GIB)
    assert planner_rooms.cuda_total_bytes(room.facts, larger) == room.cuda_bytes + GIB
    assert planner_rooms.cuda_total_bytes(room.facts, msgspec.structs.replace(larger, memory_bytes=5)) == 1


def test_a_riser_of_one_lane_is_a_narrow_link() -> None:
    def slot(width: int, generation: int) -> float | None:
        pcie = Pcie(generation=1, generation_max=generation, width=width, width_max=16)
        return slot_bytes_per_s(msgspec.structs.replace(card(0, "RTX 3090"), pcie=pcie))

    assert slot(16, 4) == pytest.approx(6.3e9, rel=0.01)
    assert slot(1, 3) == pytest.approx(0.2e9, rel=0.02)
    assert slot(16, 9) == slot(16, 6), "a generation that is not known yet is the newest known"
    assert slot_bytes_per_s(msgspec.structs.replace(card(0, "RTX 3090"), pcie=None)) is None
