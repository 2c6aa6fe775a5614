"""Pins are resolved before anything is sized: seen through whole plans."""

from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.errors import ConfigError
from sovereign_ai.planner import Wish
from sovereign_ai.spec import Inventory
from tests.inventory.fakes import inventory, node
from tests.planner.models import LLAMA_3B, MINILM, QWEN_7B, SMOL, card, model, rig
from tests.planner.test_arrange import RIG, check, plan, slots


def test_exactly_the_pinned_devices() -> None:
    there = rig(*RIG)
    wish = Wish(model=LLAMA_3B, context=8192, devices=("GPU-00000002", "GPU-00000005"))
    made = plan(there, wish, Wish(model=MINILM))
    assert slots(there, made.deployments[0]) == [2, 5]
    by_beginning = rig("RTX 3090")
    assert plan(by_beginning, Wish(model=SMOL, devices=("GPU-",))).deployments[0].devices == ("GPU-00000000",)


def test_two_models_may_insist_on_one_card_that_they_share() -> None:
    there = rig("RTX 3090", "RTX 3090")
    only = ("GPU-00000001",)
    made = plan(there, Wish(model=QWEN_7B, context=8192, devices=only), Wish(model=MINILM, devices=only))
    assert {one.devices for one in made.deployments} == {only}
    check(there, made)


@pytest.mark.parametrize(
    ("devices", "message", "hint"),
    [
        (("GPU-9",), "there is no device `GPU-9` for `chat`", "sovereign inventory lists the devices"),
        (("GPU-0",), "`GPU-0` begins the names of 6 devices", "write more of it"),
        (
            ("GPU-00000000", "GPU-b"),
            "the devices of `chat` are on different nodes",
            "one deployment runs on one node",
        ),
    ],
)
def test_pins_that_cannot_be(devices: tuple[str, ...], message: str, hint: str) -> None:
    other = msgspec.structs.replace(card(0, "RTX 3090"), id="GPU-b")
    there = Inventory(nodes=(*rig(*RIG).nodes, node(other, name="b")))
    wish = Wish(model=model("chat", LLAMA_3B.shape), devices=devices, where="factory.yaml:7")
    with pytest.raises(ConfigError) as caught:
        plan(there, wish)
    assert (caught.value.message, caught.value.hint) == (f"factory.yaml:7: {message}", hint)


def test_pins_that_contradict_each_other() -> None:
    pair = Wish(model=LLAMA_3B, devices=("GPU-00000000", "GPU-00000003"))
    single = Wish(model=SMOL, devices=("GPU-00000003",))
    for wishes in ((pair, single), (single, pair)):
        with pytest.raises(ConfigError, match="both insist on GPU-00000003") as caught:
            plan(rig(*RIG), *wishes)
        assert caught.value.hint == "give it to one of them"


def test_a_name_in_full_is_not_a_beginning() -> None:
    longer = msgspec.structs.replace(card(1, "RTX 3090"), id="GPU-000000001")
    there = inventory(card(0, "RTX 3090"), longer)
    assert plan(there, Wish(model=SMOL, devices=("GPU-00000000",))).deployments[0].devices == (
        "GPU-00000000",
    )


def test_a_pinned_device_outside_of_the_wished_tier() -> None:
    wish = Wish(model=SMOL, devices=("GPU-00000001",), tier="primary", where="factory.yaml:7")
    with pytest.raises(ConfigError, match="insists on GPU-00000001, which is in tier `context`"):
        plan(rig(*RIG), wish)
    inside = Wish(model=SMOL, devices=("GPU-00000001",), tier="context")
    assert plan(rig(*RIG), inside).deployments[0].devices == ("GPU-00000001",)
