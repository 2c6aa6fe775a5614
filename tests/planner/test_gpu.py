"""Plans for fake rigs. They prove rule and arithmetic, not what cards and engines do."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import PlanError
from sovereign_ai.inventory import form_tiers
from sovereign_ai.planner import make_plan
from sovereign_ai.planner.memory import GIB
from sovereign_ai.spec import Device, Inventory, Model, Plan
from tests.inventory.fakes import gpu, inventory, node, six_card_rig
from tests.planner.models import LLAMA_3B, LLAMA_3B_SHAPE, MINILM, NEMO, SMOL, model


def plan(there: Inventory, *models: Model, **contexts: int) -> Plan:
    wishes = {name.replace("_", "-"): context for name, context in contexts.items()}
    return make_plan(there, form_tiers(there), models, contexts=wishes)


def test_twelve_billion_in_bfloat16_do_not_fit_two_ten_gigabyte_cards() -> None:
    with pytest.raises(PlanError) as caught:
        plan(six_card_rig(), NEMO, mistral_nemo=8192)
    lines = {line.partition(": ")[0].strip(): line for line in caught.value.message.splitlines()}
    two = lines["bfloat16 on 2× NVIDIA GeForce RTX 3080 at TP=2 (tier rtx-3080-10g, node box)"]
    assert "needs 11.4 GiB of weights" in two
    assert two.endswith("8.7 GiB is usable")
    assert len(lines) == 7  # the headline, four tiers with one card, two of them with TP=2
    assert "smaller context" in caught.value.hint


def test_the_same_is_told_beside_a_card_that_holds_it() -> None:
    there = inventory(*six_card_rig().devices, gpu(6, "NVIDIA RTX A6000", 49140))
    found = plan(there, NEMO, mistral_nemo=8192)
    (chat,) = found.deployments
    assert (chat.devices, chat.engine_args["tensor_parallel_size"]) == (("GPU-00000006",), 1)
    reasons = {rejected.option: rejected.reason for rejected in found.rejected}
    two = reasons["bfloat16 on 2× NVIDIA GeForce RTX 3080 at TP=2 (tier rtx-3080-10g, node box)"]
    assert two == (
        "needs 11.4 GiB of weights, 0.6 GiB of KV cache for 8192 tokens and 0.5 GiB to compute on each card; "
        "8.7 GiB is usable"
    )


def test_three_billion_on_the_rig() -> None:
    found = plan(six_card_rig(), LLAMA_3B, MINILM, llama_3b=16384)
    chat, embed = found.deployments
    assert chat.devices == ("GPU-00000000",)
    assert chat.tier == "rtx-3080-10g"
    assert chat.engine_args == {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.9,
        "tensor_parallel_size": 1,
        "max_model_len": 16384,
        "max_num_seqs": 64,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 2048,
        "disable_log_stats": False,
    }
    assert (embed.devices, embed.backend, embed.tier) == (("GPU-00000004",), "embedding", "rtx-3070-8g")
    assert embed.engine_args == {"max_tokens": 256, "max_batch": 64}
    assert "smallest card of the last tier" in embed.reason
    assert found.rejected[0].reason.startswith("fits, but bfloat16 on 1× NVIDIA GeForce RTX 3080 (tier")


def test_two_cards_where_one_is_too_small() -> None:
    (chat,) = plan(inventory(gpu(0, "A", 10240), gpu(1, "A", 10240)), LLAMA_3B, llama_3b=60_000).deployments
    assert chat.devices == ("GPU-00000000", "GPU-00000001")
    assert chat.engine_args["tensor_parallel_size"] == 2
    assert chat.engine_args["disable_custom_all_reduce"] is True
    assert chat.memory.weights_bytes < LLAMA_3B_SHAPE.parameters * 1.1


def test_three_cards_make_a_pair() -> None:
    there = inventory(*(gpu(index, "A", 10240, used_mib=used) for index, used in enumerate((900, 300, 300))))
    (chat,) = plan(there, LLAMA_3B, llama_3b=60_000).deployments
    assert chat.devices == ("GPU-00000001", "GPU-00000002")


def test_cards_of_two_nodes_are_not_joined() -> None:
    there = Inventory(nodes=(node(gpu(0, "A", 10240), name="a"), node(gpu(1, "A", 10240), name="b")))
    with pytest.raises(PlanError) as caught:
        plan(there, LLAMA_3B, llama_3b=60_000)
    assert "TP=2" not in caught.value.message


def test_heads_that_do_not_split() -> None:
    """SmolLM2 has 9 heads; the wide copy is too large for one card."""
    wide = model("wide", msgspec.structs.replace(SMOL.shape, parameters=8 * 10**9))
    with pytest.raises(PlanError, match="9 heads and 3 KV heads do not split over 2 cards"):
        plan(inventory(gpu(0, "A", 10240), gpu(1, "A", 10240)), wide)


def test_kv_heads_that_do_not_split() -> None:
    odd = model("odd", msgspec.structs.replace(SMOL.shape, parameters=8 * 10**9, heads=12))
    with pytest.raises(PlanError, match="12 heads and 3 KV heads do not split over 2 cards"):
        plan(inventory(gpu(0, "A", 10240), gpu(1, "A", 10240)), odd)


def test_a_card_serves_one_chat_model() -> None:
    there = inventory(gpu(0, "A", 10240), gpu(1, "B", 8192))
    first, second = plan(there, SMOL, model("other", SMOL.shape)).deployments
    assert (first.devices, second.devices) == (("GPU-00000000",), ("GPU-00000001",))
    with pytest.raises(PlanError, match="every card serves another model"):
        plan(there, SMOL, model("other", SMOL.shape), model("third", SMOL.shape))


def test_old_cards_get_float16() -> None:
    (chat,) = plan(inventory(gpu(0, "Tesla T4", 15360, capability="7.5")), SMOL).deployments
    assert chat.engine_args["dtype"] == "float16"


def test_one_card_for_both_kinds() -> None:
    """The embedding model's memory is taken off before vLLM's share is set."""
    card = gpu(0, "A", 8192, used_mib=300)
    alone = plan(inventory(card), SMOL).deployments[0]
    chat, embed = plan(inventory(card), SMOL, MINILM).deployments
    assert chat.devices == embed.devices
    assert chat.engine_args["gpu_memory_utilization"] < alone.engine_args["gpu_memory_utilization"]
    assert chat.memory.total_bytes + embed.memory.total_bytes <= card.memory_free_bytes


def test_an_embedding_model_that_no_card_holds() -> None:
    with pytest.raises(PlanError, match=r"no card holds `minilm-l6-v2`: it needs 0\.7 GiB, 0\.4 GiB is av"):
        plan(inventory(gpu(0, "A", 8192, used_mib=7800)), MINILM)


def test_the_next_card_where_the_smallest_is_full() -> None:
    there = inventory(gpu(0, "A", 8192), gpu(1, "B", 4096, used_mib=4000))
    assert plan(there, MINILM).deployments[0].devices == ("GPU-00000000",)


def test_a_desktop_on_the_card_lowers_the_share() -> None:
    (chat,) = plan(inventory(gpu(0, "A", 8192, used_mib=2000)), SMOL).deployments
    assert chat.engine_args["gpu_memory_utilization"] == 0.66


CARDS = st.tuples(
    st.sampled_from(["A", "B", "C"]),
    st.sampled_from([300, 8192, 10240, 24564]),
    st.sampled_from(["7.5", "8.6"]),
    st.integers(0, 9000),
)


@st.composite
def rigs(draw: st.DrawFn) -> list[Device]:
    cards = draw(st.lists(CARDS, min_size=1, max_size=6))
    return [
        gpu(at, name, mib, capability=capability, used_mib=min(used, mib))
        for at, (name, mib, capability, used) in enumerate(cards)
    ]


@given(rigs(), st.lists(st.sampled_from([SMOL, LLAMA_3B, NEMO, MINILM]), max_size=4), st.randoms())
def test_what_is_planned_fits(devices: list[Device], models: list[Model], chance: random.Random) -> None:
    named = [msgspec.structs.replace(each, name=f"{each.name}-{at}") for at, each in enumerate(models)]
    contexts = {each.name: 4096 for each in named if each.task == "chat"}
    there = inventory(*devices)
    try:
        found = make_plan(there, form_tiers(there), named, contexts=contexts)
    except PlanError as error:
        assert error.hint
        return
    used: Counter[str] = Counter()
    for deployment in found.deployments:
        for device in deployment.devices:
            used[device] += deployment.memory.total_bytes
    assert all(used[device.id] <= device.memory_free_bytes for device in devices)
    chats = [device for each in found.deployments if each.task == "chat" for device in each.devices]
    assert len(chats) == len(set(chats))
    shuffled = list(devices)
    chance.shuffle(shuffled)
    again = make_plan(inventory(*shuffled), form_tiers(inventory(*shuffled)), named, contexts=contexts)
    assert msgspec.json.encode(again) == msgspec.json.encode(found)


def test_the_rig_can_serve_three_models_at_once() -> None:
    found = plan(six_card_rig(), LLAMA_3B, SMOL, MINILM, llama_3b=16384)
    assert len({device for each in found.deployments for device in each.devices}) == 3
    assert all(each.memory.total_bytes <= 12 * GIB for each in found.deployments)
