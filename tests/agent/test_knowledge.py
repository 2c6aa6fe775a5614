"""What two measurements in a row mean: names of lost cards, tokens, news, and when to write."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.agent.announcing import REFRESH_S, announced, announcement
from sovereign_ai.agent.knowledge import Change, changes, differing, lasting, remembered, wanted_tokens
from sovereign_ai.agent.measuring import Reading
from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.checks import problems
from sovereign_ai.inventory.published import INVENTORY, MEASURED, can_be_token, token
from sovereign_ai.spec import Device, Inventory, Link, Node, Pcie
from tests.inventory.fakes import cpu, gpu, node

A, B = gpu(0, "RTX 3080", 10240), gpu(1, "RTX 3060", 12288)


def lost(index: int) -> Device:
    return Device(
        id=f"lost-{index}",
        kind="gpu",
        name=f"GPU {index}",
        index=index,
        memory_bytes=0,
        memory_free_bytes=0,
        fault="does not answer",
    )


def sick(device: Device, fault: str = "does not answer") -> Device:
    return msgspec.structs.replace(device, fault=fault)


def test_a_lost_card_keeps_its_name() -> None:
    seen = remembered(node(A, B), Reading(node(A, lost(1))))
    assert seen.devices == (A, sick(B))
    assert remembered(seen, Reading(node(A, lost(1)))) == seen
    assert remembered(seen, Reading(node(A, B))).devices == (A, B)


def test_a_card_whose_name_nobody_knows_has_none() -> None:
    assert remembered(None, Reading(node(A, lost(1)))).devices == (A, lost(1))
    assert remembered(node(A), Reading(node(A, lost(1)))).devices == (A, lost(1))


def test_a_card_that_answers_elsewhere_is_not_the_lost_one() -> None:
    moved = msgspec.structs.replace(B, index=0)
    assert remembered(node(A, B), Reading(node(moved, lost(1)))).devices == (moved, lost(1))


def test_a_silent_driver_puts_every_known_card_at_fault() -> None:
    reading = Reading(node(cpu()), (), "the NVIDIA driver does not answer")
    seen = remembered(node(A, B), reading)
    assert seen.devices == (sick(A, reading.trouble), sick(B, reading.trouble))
    assert remembered(None, reading).devices == (cpu(),)
    assert remembered(node(cpu()), reading).devices == (cpu(),)


devices = st.lists(st.integers(0, 5), unique=True, max_size=6).flatmap(
    lambda indexes: st.tuples(
        *(
            st.sampled_from(
                [gpu(index, "A", 8192), sick(gpu(index, "A", 8192)), lost(index)],
            )
            for index in sorted(indexes)
        )
    )
)
nodes = devices.map(lambda found: node(*found) if found else node(cpu()))


@given(nodes, nodes, st.sampled_from(["", "the driver is silent"]))
def test_what_is_remembered_is_an_inventory_and_names_no_healthy_card_wrongly(
    before: Node, now: Node, trouble: str
) -> None:
    seen = remembered(before, Reading(node(cpu()) if trouble else now, (), trouble))
    assert not list(problems(Inventory(nodes=(seen,))))
    if not trouble:
        healthy = [one for one in seen.devices if not one.fault]
        assert healthy == [one for one in now.devices if not one.fault]


@given(nodes, st.lists(st.sampled_from([token(f"GPU-{index:08x}") for index in range(8)])), st.booleans())
def test_a_token_is_one_exactly_for_a_card_in_health(seen: Node, known: list[str], hand_out: bool) -> None:
    wanted = wanted_tokens(seen, known, hand_out=hand_out)
    free = {token(one.id) for one in seen.devices if one.kind == "gpu" and not one.fault and hand_out}
    assert {name for name, value in wanted.items() if value == "1"} == free
    assert set(wanted.values()) <= {"0", "1"}
    assert set(known) <= set(wanted)
    assert all(can_be_token(name.partition("/")[2]) for name in wanted)
    assert differing(wanted, wanted) == {}
    assert wanted | differing({}, wanted) == wanted


@given(nodes, nodes)
def test_news_are_told_once(before: Node, now: Node) -> None:
    assert list(changes(now, now)) == []
    told = list(changes(before, now))
    assert len(told) == len({change.message for change in told})
    assert all(change.warning == (change.reason in ("GpuFault", "GpuGone")) for change in told)


def test_the_words_of_news() -> None:
    assert list(changes(node(A), node(A, B))) == [Change("GpuFound", f"{B.id} (RTX 3060)", False)]
    assert list(changes(None, node(A, sick(B)))) == [
        Change("GpuFault", f"{B.id} (RTX 3060): does not answer", True)
    ]
    assert list(changes(None, node(cpu()), "no driver")) == [Change("GpuDriverFault", "no driver", True)]
    worse = list(changes(node(sick(A)), node(sick(A, "MIG is on"))))
    assert [change.message for change in worse] == [f"{A.id} (RTX 3080): MIG is on"]
    back = list(changes(node(sick(A)), node(A)))
    assert back == [Change("GpuRecovered", f"{A.id} (RTX 3080) answers again, after: does not answer", False)]


NOW = 1_764_000_000.0


def test_the_inventory_is_written_when_it_changed_or_is_old() -> None:
    seen = node(msgspec.structs.replace(A, pcie=Pcie(generation=1, generation_max=4, width=16, width_max=16)))
    written = announcement(seen, {}, NOW)
    assert announced(written) == seen
    assert announcement(seen, written, NOW + REFRESH_S - 1) == {}
    assert announcement(seen, written, NOW + REFRESH_S)[MEASURED] != written[MEASURED]
    assert announcement(seen, written, NOW - 1) != {}, "a moment to come is no moment of ours"
    assert announcement(seen, {INVENTORY: written[INVENTORY]}, NOW) != {}
    assert announcement(seen, written | {MEASURED: "soon"}, NOW) != {}
    assert announcement(seen, written | {INVENTORY: "{}"}, NOW) != {}
    assert announcement(node(sick(A)), written, NOW) != {}


def test_what_changes_all_the_time_is_not_written_all_the_time() -> None:
    rest = Pcie(generation=1, generation_max=4, width=16, width_max=16)
    work = Pcie(generation=4, generation_max=4, width=16, width_max=16)
    idle = node(msgspec.structs.replace(A, pcie=rest))
    busy = node(msgspec.structs.replace(A, pcie=work, memory_free_bytes=0))
    busy = msgspec.structs.replace(busy, memory_free_bytes=0)
    assert lasting(idle) == lasting(busy)
    assert announcement(busy, announcement(idle, {}, NOW), NOW + 1) == {}


def test_links_give_way_where_the_annotation_would_be_too_large() -> None:
    many = tuple(Link(a=A.id, b=f"GPU-{at:060d}", kind="p2p") for at in range(3000))
    large = msgspec.structs.replace(node(A, B), links=many)
    assert announced(announcement(large, {}, NOW)) == node(A, B)
    with pytest.raises(InventoryError, match="more than the 196608 bytes"):
        announcement(msgspec.structs.replace(node(A), cpu="x" * 200_000), {}, NOW)
