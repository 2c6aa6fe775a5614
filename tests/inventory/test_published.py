"""What stands in a node's object: read back as it was written, and nobody's cards counted twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.published import (
    MAX_BYTES,
    can_be_token,
    conflicts,
    decode_node,
    decode_time,
    encode_node,
    encode_time,
    quantity,
    token,
    tokens_of,
)
from sovereign_ai.render.kubernetes import labels
from tests.inventory.fakes import gpu, node, six_card_rig


def test_a_node_is_read_as_it_was_written() -> None:
    (rig,) = six_card_rig().nodes
    assert decode_node(encode_node(rig)) == rig
    assert encode_node(rig) == encode_node(decode_node(encode_node(rig)))


def test_sixteen_cards_are_far_below_the_limit() -> None:
    text = encode_node(node(*(gpu(index, "NVIDIA H100 80GB HBM3", 81559) for index in range(16))))
    assert len(text) < MAX_BYTES / 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "a"}', '{"name": "a", "new": 1}', "[" * 5000])
def test_what_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(InventoryError, match="annotation cannot be read") as caught:
        decode_node(text)
    assert "same version" in caught.value.hint


@given(st.integers(0, 4_000_000_000))
def test_moments_to_the_second(moment: int) -> None:
    assert decode_time(encode_time(moment + 0.3)) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-25T10:00:00"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"is|no|Invalid"):
        decode_time(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("64", 64),
        ("3920m", 3.92),
        ("16Gi", 16 << 30),
        ("1.5Gi", 3 << 29),
        ("263842116Ki", 263842116 << 10),
        ("2k", 2000),
        ("2M", 2_000_000),
        ("1e3", 1000),
        ("1E", 1e18),
        ("5E-1", 0.5),
        ("100n", 1e-7),
        (".5", 0.5),
        ("-1", -1),
    ],
)
def test_quantities(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@given(st.text(max_size=8))
def test_a_text_is_a_quantity_or_refused(text: str) -> None:
    try:
        assert isinstance(quantity(text), float)
    except ValueError as error:
        assert str(error).endswith("is no quantity") or text.isdigit()


@given(st.integers(0, 1 << 50), st.sampled_from(["Ki", "Mi", "Gi"]))
def test_binary_quantities_are_exact(number: int, suffix: str) -> None:
    assert quantity(f"{number}{suffix}") == number << {"Ki": 10, "Mi": 20, "Gi": 30}[suffix]


def test_names_that_can_be_tokens() -> None:
    uuid = "GPU-9799af58-9d81-5bf3-b28b-190b237f56e3"
    assert can_be_token(uuid)
    assert token(uuid) == f"gpu.sovereign.ai/{uuid}"
    assert not any(map(can_be_token, ["lost-1", "", "a b", "-a", "a-", "a" * 64, "ä"]))
    assert tokens_of({"cpu": "1", token(uuid): 1, "nvidia.com/gpu": "2"}) == {token(uuid): "1"}


def test_render_has_the_same_names() -> None:
    assert labels.token is token
    assert labels.INVENTORY == "sovereign.ai/inventory"
    assert labels.GPU_DOMAIN == "gpu.sovereign.ai"


def described(name: str, **capacity: str) -> dict[str, Any]:
    named = {"plugin": "nvidia.com/gpu", "ours": token("GPU-1")}
    return {
        "metadata": {"name": name},
        "status": {"capacity": {named[key]: value for key, value in capacity.items()}},
    }


def test_cards_that_two_would_hand_out() -> None:
    nodes = [
        described("a", plugin="2", ours="1"),
        described("b", plugin="0", ours="1"),
        described("c", plugin="2"),
        described("d", plugin="2", ours="0"),
        described("e", ours="1"),
        described("f", plugin="many", ours="1"),
        {},
    ]
    (found,) = conflicts(nodes)
    assert found.startswith("node a: the device plugin hands out 2 cards (nvidia.com/gpu), and our tokens")
    assert [line.split()[1] for line in conflicts(nodes, ["a", "e"])] == ["a:", "e:"]
    assert "a DRA driver hands out its cards" in conflicts(nodes, ["e"])[1]
