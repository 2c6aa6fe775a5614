"""Pins, splits and tiers, with the reference rig's inventory and without."""

from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.errors import ConfigError
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.migrate import View
from sovereign_ai.spec import Inventory
from tests.migrate.conftest import EXAMPLES, Move, service

VLLM = "image: vllm/vllm-openai\ncommand: a/B --max-model-len 4096\n"
LLAMA = "image: llama.cpp\nvolumes: ['./m:/m']\n"
FAST = "GPU-1f2a7333-0e1f-5061-8f3a-77193c18758a"
LARGE = "GPU-3f0e08af-846b-5ca9-9d30-73129d26e92b"
"""Cards 0 and 2 of the rig."""


def view(name: str = "reference-rig") -> View:
    found = load_inventory(EXAMPLES / name / "inventory.json")
    return View(found, form_tiers(found, (), catalog_bandwidths(found)))


@pytest.mark.parametrize(
    "text",
    [
        f"environment: {{NVIDIA_VISIBLE_DEVICES: {LARGE}}}",
        f"environment: {{CUDA_VISIBLE_DEVICES: {LARGE}, NVIDIA_VISIBLE_DEVICES: all}}",
        f"gpus: [{{device_ids: [{LARGE}], capabilities: [gpu]}}]",
        f"gpus: [{{device_ids: ['nvidia.com/gpu={LARGE}'], capabilities: [gpu]}}]",
    ],
)
@pytest.mark.parametrize("rig", [None, view()])
def test_a_uuid_is_carried_over(move: Move, text: str, rig: View | None) -> None:
    assert move(service(VLLM + text), rig).model.devices == (LARGE,)


def test_several_uuids_are_taken_for_alike_without_an_inventory(move: Move) -> None:
    text = service(VLLM + f"environment: {{NVIDIA_VISIBLE_DEVICES: 'GPU-1,{LARGE}'}}")
    moved = move(text)
    assert moved.model.devices == ("GPU-1", LARGE)
    assert "the 2 cards that it is pinned to are alike" in moved.told("assumed")


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (f"{FAST},{LARGE}", "pinned to 2 cards of the tiers primary, context"),
        ("GPU-dead", "pinned to GPU-dead, which the inventory does not have"),
        ("GPU-", "pinned to GPU-, which the inventory does not have"),
        ("MIG-1", "a part of a card (MIG)"),
        ("first", "`first` names no card"),
        ("0", "pinned to GPU 0 (0 is RTX 3080 (GPU-1f2a7333, tier primary))"),
        ("0,9", "pinned to GPU 0, 9: an index is not carried over"),
        (f"{FAST},1", "pinned to GPU 1 (1 is RTX 3060 Ti"),
    ],
)
def test_other_pins_are_told(move: Move, ids: str, told: str) -> None:
    moved = move(service(VLLM + f"environment: {{NVIDIA_VISIBLE_DEVICES: '{ids}'}}"), view())
    assert moved.model.devices == ()
    assert told in "\n".join(moved.told("not_carried"))


def test_cudas_order_is_told_where_cards_differ(move: Move) -> None:
    text = VLLM + "environment: {CUDA_VISIBLE_DEVICES: 2%s}"
    told = "CUDA counts the fastest card first"
    assert told in move(service(text % ""), view()).text
    assert told not in move(service(text % ", CUDA_DEVICE_ORDER: PCI_BUS_ID"), view()).text
    assert told not in move(service(text % ""), view("eight-a100")).text
    assert told not in move(service(text % "")).text


def test_indexes_of_two_nodes_are_not_told(move: Move) -> None:
    moved = move(service(VLLM + "environment: {CUDA_VISIBLE_DEVICES: 0}"), view("two-nodes"))
    assert "pinned to GPU 0: an index" in moved.text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpus: all", "all GPUs are asked for"),
        ("gpus: 1", "1 GPU is asked for"),
        ("gpus: 3", "3 GPUs are asked for"),
        ("restart: always", "it asks for no GPU"),
        ("environment: {NVIDIA_VISIBLE_DEVICES: none}", "it asks for no GPU"),
    ],
)
def test_what_is_asked_for(move: Move, text: str, told: str) -> None:
    assert told in move(service(VLLM + text)).text


def test_a_split_is_told_card_by_card(move: Move) -> None:
    moved = move(service(LLAMA + "command: -m /m/a.gguf -ts 10,8,12,8,8,10\ngpus: all"), view())
    assert "8 on RTX 3070 (GPU-d41f3755, tier utility)" in moved.text
    assert "6 cards as one GPU become 3 tiers" in moved.text
    other = move(service(LLAMA + "command: -m /m/a.gguf -ts 1/1"), view())
    assert "the split has 2 shares, the inventory 6 GPUs" in other.text


def test_alike_cards_are_one_tier(move: Move) -> None:
    moved = move(service(LLAMA + "command: -m /m/a.gguf\ngpus: all"), view("eight-a100"))
    assert "8 cards as one GPU are one tier (primary: 8× NVIDIA A100" in moved.text


def test_a_rig_without_gpus(move: Move) -> None:
    empty = View(Inventory(nodes=()), ())
    assert "all GPUs" in move(service(LLAMA + "command: -m /m/a.gguf -ts 1,2\ngpus: all"), empty).text
    cpu = view("cpu-only")
    assert "pinned to GPU 0:" in move(service(VLLM + "environment: {CUDA_VISIBLE_DEVICES: 0}"), cpu).text


@pytest.mark.parametrize("split", ["a,b", "1,-2", "0,0", "1e9", "nan"])
def test_a_split_that_is_none(move: Move, split: str) -> None:
    with pytest.raises(ConfigError, match=r":5: .*(tensor split)"):
        move(service(LLAMA + f"command: -m /m/a.gguf -ts {split}"))


def test_a_card_that_two_models_name_is_left_out(move: Move) -> None:
    pin = f"environment: {{NVIDIA_VISIBLE_DEVICES: {LARGE}}}"
    text = (
        service(VLLM + pin)
        + service("image: vllm/vllm-openai\ncommand: c/D\n" + pin, "two").partition("\n")[2]
    )
    moved = move(text, view())
    assert [model.devices for model in moved.models] == [(), ()]
    assert "is named by several models" in moved.text


def test_copies_are_not_pinned(move: Move) -> None:
    pin = "environment: {NVIDIA_VISIBLE_DEVICES: GPU-%d}"
    text = service(VLLM + pin % 1) + service(VLLM + pin % 2, "two").partition("\n")[2]
    moved = move(text)
    assert (moved.model.replicas, moved.model.devices) == (2, ())
    assert "copies of one entry cannot be pinned" in moved.text
    scaled = move(service(VLLM + pin % 1 + "\nscale: 2"))
    assert (scaled.model.replicas, scaled.model.devices) == (2, ())


def test_views_are_not_changed(move: Move) -> None:
    rig = view()
    before = msgspec.json.encode(rig.inventory)
    move(service(VLLM + "gpus: all"), rig)
    assert msgspec.json.encode(rig.inventory) == before
