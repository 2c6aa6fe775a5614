from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.errors import UsageError
from sovereign_ai.inventory import form_tiers
from sovereign_ai.planner.rooms import sites
from sovereign_ai.planner.whatif import MOST_ADDED, changed
from sovereign_ai.spec import Inventory, Link
from tests.inventory.fakes import cpu, inventory, node
from tests.planner.models import card, rig

THERE = rig("RTX 3090", "RTX 3060 12GB")
TWO = Inventory(nodes=(node(cpu(), name="a"), node(card(0, "RTX 3090"), name="b")))


def names(there: Inventory) -> list[str]:
    return [device.name for device in there.devices]


def refused(there: Inventory, *what_if: str, without: tuple[str, ...] = ()) -> tuple[str, str]:
    with pytest.raises(UsageError) as caught:
        changed(there, what_if, without)
    return caught.value.message, caught.value.hint


def test_nothing_changes() -> None:
    assert changed(THERE) == THERE


@pytest.mark.parametrize(
    "text", ["add 2x RTX 3070", "ADD 2 × RTX 3070", "add 2×rtx3070 to box", "add 2 x RTX 3070 to box"]
)
def test_two_cards_more(text: str) -> None:
    after = changed(THERE, [text])
    assert names(after)[2:] == ["NVIDIA GeForce RTX 3070"] * 2
    assert [device.index for device in after.devices] == [0, 1, 2, 3]
    assert [device.id for device in after.devices][2:] == ["GPU-new-1", "GPU-new-2"]


def test_an_added_card_is_as_the_catalog_has_it() -> None:
    facts = find_gpu("RTX 3060 12GB")
    assert facts is not None
    device = changed(THERE, ["add RTX 3060 12GB"]).devices[2]
    assert (device.memory_bytes, device.compute_capability) == (facts.memory_bytes, "8.6")
    assert device.bandwidth_bytes_per_s == facts.bandwidth_bytes_per_s
    assert device.pcie is not None and (device.pcie.generation, device.pcie.width) == (4, 16)
    assert device.memory_others_bytes == 0
    (room,) = sites(inventory(device), form_tiers(inventory(device)))[0][0].pools[0].rooms
    assert room.usable_bytes == room.cuda_bytes == facts.cuda_memory_bytes


def test_names_that_are_taken_are_not_given_twice() -> None:
    once = changed(THERE, ["add RTX 3070"])
    twice = changed(once, ["add RTX 3070"])
    assert len({device.id for device in twice.devices}) == 4


def test_several_changes_in_order() -> None:
    after = changed(THERE, ["add RTX 3070, remove GPU-00000001", "add RTX 4090 to other"], ["GPU-00000000"])
    assert names(after) == ["NVIDIA GeForce RTX 3070", "NVIDIA GeForce RTX 4090"]
    assert [one.name for one in after.nodes] == ["box", "other"]


def test_a_new_node() -> None:
    there = changed(THERE, ["add 2x RTX 3090 to garage"]).nodes[1]
    assert (there.name, len(there.devices), there.cores) == ("garage", 2, 8)


def test_the_first_gpu_of_a_machine_takes_over_from_its_cpu() -> None:
    after = changed(TWO, ["add RTX 3070 to a"])
    assert [[device.kind for device in one.devices] for one in after.nodes] == [["gpu"], ["gpu"]]


def test_a_card_less() -> None:
    assert names(changed(THERE, without=["GPU-00000000"])) == ["NVIDIA GeForce RTX 3060 12GB"]
    assert changed(THERE, ["remove GPU-00000000"]) == changed(THERE, without=["GPU-00000000"])


def test_links_go_with_their_card() -> None:
    links = (
        Link(a="GPU-00000000", b="GPU-00000001", kind="nvlink"),
        Link(a="GPU-00000001", b="GPU-00000002", kind="p2p"),
    )
    three = msgspec.structs.replace(rig(*["RTX 3090"] * 3).nodes[0], links=links)
    (left,) = changed(Inventory(nodes=(three,)), without=["GPU-00000000"]).nodes
    assert left.links == links[1:]


def test_a_node_goes_with_its_last_card() -> None:
    assert [one.name for one in changed(TWO, without=["GPU-00000000"]).nodes] == ["a"]


def test_a_name_in_full_or_its_beginning() -> None:
    longer = msgspec.structs.replace(card(1, "RTX 3070"), id="GPU-000000001")
    assert names(changed(inventory(*THERE.devices[:1], longer), without=["GPU-00000000"])) == [longer.name]
    assert refused(THERE, without=("GPU-",)) == (
        "2 devices begin with `GPU-`",
        "sovereign inventory lists the devices",
    )
    assert refused(THERE, without=("GPU-9",))[0] == "there is no device `GPU-9`"


def test_what_cannot_be_understood() -> None:
    message, hint = refused(THERE, "two more please")
    assert message == "`two more please` is not a change of an inventory"
    assert hint.startswith('write "add 1x')


@pytest.mark.parametrize("count", [0, MOST_ADDED + 1])
def test_a_number_that_nobody_adds(count: int) -> None:
    assert refused(THERE, f"add {count}x RTX 3070")[0].endswith("between 1 and 64 cards can be added")
    assert len(changed(THERE, [f"add {MOST_ADDED}x RTX 3070"]).devices) == 66


def test_cards_that_are_not_known() -> None:
    message, hint = refused(THERE, "add RTX 3099")
    assert message == "no card `RTX 3099` in the catalog"
    assert hint.startswith("did you mean ") and "RTX" in hint
    assert refused(THERE, "add §§§§")[1].startswith("write ")


def test_which_node() -> None:
    assert refused(TWO, "add RTX 3070") == (
        "`add RTX 3070` does not say to which node",
        "add `to NODE`, one of: a, b",
    )
