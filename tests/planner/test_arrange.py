"""Whole plans. The rigs are made up or are the examples: no card was measured, and nothing was started."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.catalog.releases import release
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.config import Factory, ModelEntry, PlannerSettings, load_factory
from sovereign_ai.errors import ConfigError, PlanError
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.planner import Wish, arrange, make_plan, solver, wish_for
from sovereign_ai.planner.arrange import UNPROVED, options_of
from sovereign_ai.planner.memory import GIB, NON_TORCH_BYTES
from sovereign_ai.planner.packing import Option, Packing, Problem
from sovereign_ai.planner.rooms import every_room, sites
from sovereign_ai.spec import Deployment, Inventory, Model, Plan, Tier
from tests.inventory.fakes import cpu, inventory, node
from tests.planner.models import LLAMA_3B, MINILM, NEMO, QWEN_7B, SMOL, card, model, rig
from tests.planner.oracle import best_objective

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    "4090-and-3060",
    "cpu-only",
    "eight-a100",
    "old-miners-rig",
    "reference-rig",
    "single-24gb",
    "two-3090",
    "two-nodes",
)
"""Examples of up to eight devices."""

RIG = ("RTX 3080 10GB", "RTX 3060 12GB", "RTX 3060 Ti", "RTX 3080 10GB", "RTX 3070", "RTX 3060 Ti")
BGE = "bge-m3"


def shaped(entry: ModelEntry) -> Model:
    known = find_shape(entry.source.partition(":")[2])
    if known is None:
        return {one.name: one for one in (SMOL, MINILM)}[entry.name]
    return model(entry.name, known.shape, known.task)


def example(name: str) -> tuple[Inventory, tuple[Tier, ...], list[Wish], Factory]:
    factory = load_factory(EXAMPLES / name / "factory.yaml")
    there = load_inventory(EXAMPLES / name / "inventory.json")
    tiers = form_tiers(there, factory.tiers, catalog_bandwidths(there))
    return there, tiers, [wish_for(shaped(entry), entry) for entry in factory.models], factory


def tiers_of(there: Inventory) -> tuple[Tier, ...]:
    return form_tiers(there, (), catalog_bandwidths(there))


def plan(
    there: Inventory,
    *wishes: Wish,
    current: Plan | None = None,
    move_cost: float = 0.05,
    engine: str = "24.12",
) -> Plan:
    return make_plan(
        there,
        tiers_of(there),
        wishes,
        engine=release(engine),
        settings=PlannerSettings(move_cost=move_cost),
        current=current,
    )


def slots(there: Inventory, one: Deployment) -> list[int]:
    index = {(found.name, device.id): device.index for found in there.nodes for device in found.devices}
    return sorted(index[one.node, device] for device in one.devices)


def check(there: Inventory, made: Plan) -> None:
    """No device holds more than is usable, and none of several belongs to anybody else."""
    usable = {room.key: room.usable_bytes for room in every_room(sites(there, tiers_of(there))[0])}
    held: dict[tuple[str, str], list[Deployment]] = defaultdict(list)
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for one in made.deployments:
        for device, memory in zip(one.devices, one.memories, strict=True):
            held[one.node, device].append(one)
            taken[one.node, device] += memory.total_bytes
    for key, there_too in held.items():
        assert taken[key] <= usable[key], key
        assert len(there_too) == 1 or all(len(one.devices) == 1 for one in there_too), key
        assert len({one.model for one in there_too}) == len(there_too), key
    for one in made.deployments:
        assert len(set(one.devices)) == len(one.devices) == one.tp * one.pp == len(one.memories)
        assert sum(one.layer_partition) == 0 or len(one.layer_partition) == one.pp


def encoded(made: Plan) -> bytes:
    return msgspec.json.encode(made.deployments)


def test_the_reference_rig() -> None:
    """Nemo in 4 bit over both 3080s, the coder on the 3060 12GB, embeddings on a card of the last tier."""
    there, tiers, wishes, _ = example("reference-rig")
    made = make_plan(there, tiers, wishes, engine=release("24.12"))
    nemo, coder, bge = made.deployments
    assert (nemo.model, slots(there, nemo), nemo.format, nemo.tp, nemo.tier) == (
        "mistral-nemo",
        [0, 5],
        "w4a16",
        2,
        "primary",
    )
    assert (nemo.context, nemo.to_make, nemo.release, nemo.vllm) == (32_768, True, "24.12", "0.5.5")
    assert (coder.model, slots(there, coder), coder.tier) == ("coder", [2], "context")
    assert coder.format in ("fp8", "int8")
    assert (bge.model, bge.tier, bge.backend, len(bge.devices)) == ("bge-m3", "utility", "embedding", 1)
    reasons = {entry.option: entry.reason for entry in made.rejected if entry.model == "mistral-nemo"}
    two = "on 2× RTX 3080 10GB at TP=2 (tier primary, node rig)"
    assert "11.44 GiB of weights a card" in reasons[f"BF16 {two}"]
    for form in ("FP8", "INT8"):
        found = re.search(r"hold ([\d,]+) tokens, 32,768 are needed", reasons[f"{form} {two}"])
        assert found is not None
        assert 27_000 <= int(found[1].replace(",", "")) < 32_768
    assert (made.unplaced, made.warnings) == ((), ())
    check(there, made)


@pytest.mark.parametrize("name", SMALL)
def test_an_example_is_served(name: str) -> None:
    there, tiers, wishes, factory = example(name)
    made = make_plan(there, tiers, wishes, engine=release(factory.engine.release or "24.12"))
    assert not made.unplaced
    assert [one.model for one in made.deployments] == [
        wish.name for wish in wishes for _ in range(wish.replicas)
    ]
    assert made.tiers == tiers
    check(there, made)


def test_sixteen_mixed_cards_are_served() -> None:
    there, tiers, wishes, _ = example("sixteen-mixed")
    made = make_plan(there, tiers, wishes, engine=release("24.12"))
    assert not made.unplaced
    check(there, made)


def test_pascal_is_refused_with_the_reason() -> None:
    with pytest.raises(PlanError, match=r"vLLM needs compute capability 7\.0, the card has 6\.1"):
        plan(rig("GTX 1070", "GTX 1070"), Wish(model=SMOL))


def test_the_cpu_serves_both_defaults() -> None:
    there = inventory(cpu())
    chat, embed = plan(there, Wish(model=SMOL), Wish(model=MINILM)).deployments
    assert (chat.devices, embed.devices) == (("cpu",), ("cpu",))
    assert (chat.environment, chat.release, chat.vllm, chat.to_make) == ({}, "", "0.32.0", False)
    assert chat.memory.kv_cache_bytes > GIB * 0.9
    short = inventory(cpu(free_bytes=chat.memory.total_bytes + embed.memory.total_bytes - 1))
    less = plan(short, Wish(model=SMOL), Wish(model=MINILM))
    assert less.deployments[0].memory.kv_cache_bytes < chat.memory.kv_cache_bytes
    check(short, less)


def test_one_large_card_holds_a_chat_and_an_embedding_model() -> None:
    there = rig("RTX 3090")
    chat, embed = plan(there, Wish(model=QWEN_7B, context=8192), Wish(model=MINILM)).deployments
    alone = plan(there, Wish(model=QWEN_7B, context=8192)).deployments[0]
    assert chat.devices == embed.devices
    assert (chat.format, alone.format) == ("bfloat16", "bfloat16")
    assert "shares the card" in chat.reason and "shares the card" in embed.reason
    # all but a little of what the embedding model leaves is the cache's
    assert chat.memory.total_bytes + embed.memory.total_bytes > 0.95 * alone.memory.total_bytes
    check(there, plan(there, Wish(model=QWEN_7B, context=8192), Wish(model=MINILM)))


def test_two_chat_models_share_what_is_left() -> None:
    there = rig("RTX 3090")
    wishes = [Wish(model=LLAMA_3B, context=8192), Wish(model=model("other", LLAMA_3B.shape), context=8192)]
    first, second = plan(there, *wishes).deployments
    assert first.devices == second.devices
    assert first.memory.kv_cache_bytes == second.memory.kv_cache_bytes > 2 * GIB
    check(there, plan(there, *wishes))


@pytest.mark.parametrize("used_mib", range(0, 1000, 150))
@pytest.mark.parametrize("name", ["RTX 3090", "A100 80GB"])
def test_what_engines_are_told_to_take_is_there(name: str, used_mib: int) -> None:
    """`gpu_memory_utilization` is all that early vLLM knows: rounded up, it must not add up to more."""
    there = rig(name, used_mib=used_mib)
    twins = [Wish(model=model(f"chat-{at}", LLAMA_3B.shape), context=8192) for at in range(2)]
    made = plan(there, *twins, Wish(model=MINILM))
    (room,) = every_room(sites(there, tiers_of(there))[0])
    taken = 0.0
    for one in made.deployments:
        granted = one.engine_args.get("gpu_memory_utilization", 0.0) * room.cuda_bytes
        planned = one.memory.weights_bytes + one.memory.kv_cache_bytes + one.memory.activation_bytes
        taken += one.memory.total_bytes + max(0.0, granted - planned - NON_TORCH_BYTES)
    assert len({one.devices for one in made.deployments}) == 1
    assert taken <= room.usable_bytes


def test_a_card_of_its_own_is_better_than_a_shared_one() -> None:
    there = rig("RTX 3090", "RTX 3090")
    chat, embed = plan(there, Wish(model=QWEN_7B, context=8192), Wish(model=MINILM)).deployments
    assert set(chat.devices).isdisjoint(embed.devices)


def test_with_too_few_cards_the_lower_priority_waits() -> None:
    there = rig("RTX 3060 12GB")
    first, second = Wish(model=NEMO, context=8192), Wish(model=QWEN_7B, context=16_384)
    for high, low in ((first, second), (second, first)):
        wishes = [msgspec.structs.replace(high, priority=1), msgspec.structs.replace(low, priority=2)]
        for made in (plan(there, *wishes), plan(there, *reversed(wishes))):
            assert [one.model for one in made.deployments] == [high.name]
            (left,) = made.unplaced
            assert (left.model, left.reason) == (
                low.name,
                f"0 of 1 copies have a place; the devices serve {high.name}",
            )


def test_a_copy_too_many_is_told() -> None:
    there = rig("RTX 3060 12GB", "RTX 3060 12GB")
    made = plan(there, Wish(model=NEMO, context=8192, replicas=3))
    assert [one.replica for one in made.deployments] == [0, 1]
    assert made.unplaced[0].reason.startswith("2 of 3 copies have a place")


def test_cards_are_mixed_where_like_cards_do_not_serve_everybody() -> None:
    """Each of the like cards alone would hold the small model; the large one needs all of them."""
    there = rig("RTX 3090", "RTX 3060 12GB", "RTX 3060 12GB", "RTX 3070", "RTX 3060 Ti")
    wishes = [
        Wish(model=QWEN_7B, context=8192, formats=("bfloat16",), replicas=3),
        Wish(model=MINILM, priority=2),
    ]
    made = plan(there, *wishes)
    assert not made.unplaced
    assert any(len({there.devices[at].name for at in slots(there, one)}) > 1 for one in made.deployments)
    check(there, made)


def test_the_same_inputs_give_the_same_bytes() -> None:
    there, tiers, wishes, _ = example("sixteen-mixed")
    first, second = (make_plan(there, tiers, wishes, engine=release("24.12")) for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)
    assert msgspec.json.decode(msgspec.json.encode(first), type=Plan) == first


def test_a_plan_names_what_it_was_made_for() -> None:
    first, second = rig("RTX 3090"), rig("RTX 3090", used_mib=1)
    digests = {plan(there, Wish(model=SMOL)).inventory for there in (first, second, first)}
    assert len(digests) == 2
    assert all(re.fullmatch(r"[0-9a-f]{12}", digest) for digest in digests)


def test_no_wishes() -> None:
    assert plan(rig("RTX 3090")).deployments == ()


def test_no_devices() -> None:
    with pytest.raises(PlanError, match="no device is in any tier"):
        make_plan(Inventory(nodes=()), (), [Wish(model=SMOL)])


def test_the_default_release() -> None:
    there = rig("RTX 3090")
    assert make_plan(there, tiers_of(there), [Wish(model=SMOL)]).deployments[0].release == "24.12"


def test_an_impossible_wish_says_what_is_missing_and_three_ways_out() -> None:
    wish = Wish(model=NEMO, context=32_768, formats=("bfloat16",), where="factory.yaml:3")
    with pytest.raises(PlanError) as caught:
        plan(rig("RTX 3080 10GB", "RTX 3080 10GB"), wish, Wish(model=SMOL))
    message = caught.value.message
    assert message.startswith("factory.yaml:3: no place for `mistral-nemo` with a context of 32768 tokens: ")
    assert re.search(r"\(\d+\.\d\d GiB more on the tightest device would do\)$", message)
    assert "smollm2" not in message
    assert len(caught.value.hint.split("; or ")) == 3


def test_too_slow_everywhere() -> None:
    wish = Wish(model=QWEN_7B, context=8192, min_tokens_per_s=500)
    with pytest.raises(PlanError, match=r"decodes \d+\.\d tokens/s, 500 are asked for"):
        plan(rig("RTX 3090"), wish)


def test_a_wished_speed_decides_the_cards() -> None:
    there = rig("RTX 3060 12GB", "RTX 3090", "RTX 3090")
    slow = plan(there, Wish(model=NEMO, context=8192), Wish(model=LLAMA_3B, context=8192))
    speeds = [one.speed.decode_one for one in slow.deployments if one.speed]
    wish = Wish(model=LLAMA_3B, context=8192, min_tokens_per_s=max(speeds))
    fast = plan(there, wish).deployments[0]
    assert fast.speed and fast.speed.decode_one >= max(speeds)


def test_the_traffic_decides_who_gets_the_fast_card() -> None:
    there = rig("RTX 3090", "RTX 3060 12GB")
    for often in (0, 1):
        shares = [1.0, 1.0]
        shares[often] = 9.0
        both = [
            Wish(model=model(f"chat-{at}", LLAMA_3B.shape), context=8192, share=share)
            for at, share in enumerate(shares)
        ]
        found = {one.model: slots(there, one) for one in plan(there, *both).deployments}
        assert found[f"chat-{often}"] == [0]


def test_speed_before_quality() -> None:
    there = rig("RTX 3090")
    wish = Wish(model=QWEN_7B, context=8192)
    fast = make_plan(there, tiers_of(there), [wish], settings=PlannerSettings(prefer="speed")).deployments[0]
    assert (plan(there, wish).deployments[0].format, fast.format != "bfloat16") == ("bfloat16", True)


def test_a_measured_card_is_predicted_by_what_was_measured() -> None:
    there = rig("RTX 3090")
    own = constants_for("vllm", release("24.12").version)
    slower = msgspec.structs.replace(own, read={key: 2 * value for key, value in own.read.items()})
    measured = {"GeForce RTX 3090": slower}
    wishes = [Wish(model=QWEN_7B, context=8192)]
    before, after = (
        make_plan(there, tiers_of(there), wishes, measured=known).deployments[0].speed
        for known in ({}, measured)
    )
    assert before and after and after.decode_one < 0.6 * before.decode_one


def test_only_the_wished_tier() -> None:
    there = rig(*RIG)
    made = plan(there, Wish(model=LLAMA_3B, context=8192, tier="context"))
    assert [slots(there, one) for one in made.deployments] == [[1]]
    with pytest.raises(ConfigError) as caught:
        plan(there, Wish(model=LLAMA_3B, tier="contxt"))
    assert (caught.value.message, caught.value.hint) == (
        "there is no tier `contxt` for `llama-3b`",
        "did you mean `context`?",
    )


def on(made: Plan, *devices: str) -> Plan:
    """The plan's first deployment, moved."""
    moved = msgspec.structs.replace(made.deployments[0], devices=devices)
    return msgspec.structs.replace(made, deployments=(moved,))


@pytest.mark.parametrize("name", [*SMALL, "sixteen-mixed"])
def test_a_plan_that_runs_is_kept(name: str) -> None:
    there, tiers, wishes, _ = example(name)
    first = make_plan(there, tiers, wishes, engine=release("24.12"))
    again = make_plan(there, tiers, wishes, engine=release("24.12"), current=first)
    assert encoded(again) == encoded(first)


def test_a_copy_stays_where_another_place_is_as_good() -> None:
    there, wish = rig(*["RTX 3090"] * 3), Wish(model=SMOL)
    first = plan(there, wish)
    assert first.deployments[0].devices == ("GPU-00000000",)
    for device in ("GPU-00000001", "GPU-00000002"):
        current = on(first, device)
        assert plan(there, wish, current=current).deployments == current.deployments


def test_a_copy_moves_only_for_more_than_a_move_costs() -> None:
    there, wish = rig("RTX 3090", "RTX 3090 Ti"), Wish(model=QWEN_7B, context=8192)
    best = plan(there, wish)
    (fast,) = best.deployments
    slow = plan(rig("RTX 3090"), wish).deployments[0]
    assert slots(there, fast) == [1]
    assert fast.speed and slow.speed
    gain = 1 - slow.speed.decode_one / fast.speed.decode_one
    assert 0.02 < gain < 0.2
    current = on(plan(rig("RTX 3090"), wish), "GPU-00000000")
    assert slots(there, plan(there, wish, current=current, move_cost=2 * gain).deployments[0]) == [0]
    assert slots(there, plan(there, wish, current=current, move_cost=gain / 4).deployments[0]) == [1]


def test_a_running_plan_that_holds_its_memory_is_kept() -> None:
    """The inventory was taken while it ran: the cards look full."""
    wish = Wish(model=QWEN_7B, context=8192)
    current = plan(rig("RTX 3090", "RTX 3090"), wish)
    (one,) = current.deployments
    full = inventory(
        *(
            card(
                index,
                "RTX 3090",
                used_mib=int(one.memory.total_bytes / 2**20) if f"GPU-{index:08x}" in one.devices else 0,
            )
            for index in range(2)
        )
    )
    again = plan(full, wish, current=current)
    assert (again.deployments[0].devices, again.deployments[0].format) == (one.devices, one.format)


def test_a_running_plan_does_not_hide_what_its_cards_could_do() -> None:
    there = rig(*["RTX 3090"] * 4)
    current = plan(there, Wish(model=LLAMA_3B, context=8192, formats=("bfloat16",), replicas=4))
    assert len(current.deployments) == 4
    wish = Wish(model=NEMO, context=8192)
    assert encoded(plan(there, wish, current=current)) == encoded(plan(there, wish))


def test_a_desktop_on_one_of_two_cards_does_not_part_them() -> None:
    there = inventory(card(0, "RTX 3090", used_mib=900), card(1, "RTX 3090"))
    (one,) = plan(there, Wish(model=NEMO, context=8192)).deployments
    assert (one.format, one.tp) == ("bfloat16", 2)


def test_a_card_that_is_gone_is_left() -> None:
    wish = Wish(model=SMOL)
    current = on(plan(rig("RTX 3090", "RTX 3090"), wish), "GPU-gone")
    assert plan(rig("RTX 3090"), wish, current=current).deployments[0].devices == ("GPU-00000000",)


def test_every_option_that_was_not_taken() -> None:
    there, tiers, wishes, _ = example("reference-rig")
    made = make_plan(there, tiers, wishes, engine=release("24.12"))
    options = options_of(there, tiers, wishes[0], made, engine=release("24.12"))
    assert {entry.model for entry in options} == {"mistral-nemo"}
    taken = "4-bit (W4A16) on 2× RTX 3080 10GB at TP=2 (tier primary, node rig)"
    assert taken not in {entry.option for entry in options}
    assert len(options) >= 5


def test_old_drivers_and_cards_at_fault_are_told_of() -> None:
    good, bad = rig("RTX 3090", "RTX 3090").devices
    fault = msgspec.structs.replace(bad, fault="has fallen off the bus")
    there = Inventory(nodes=(msgspec.structs.replace(node(good, fault), driver_version="550.54.14"),))
    made = plan(there, Wish(model=SMOL))
    assert made.warnings == (
        "node box: release 24.12 needs driver 560 or later, 550.54.14 is installed",
        "node box: GPU-00000001 (NVIDIA GeForce RTX 3090) is left out: has fallen off the bus",
    )
    new = Inventory(nodes=(msgspec.structs.replace(node(good), driver_version="560.35.03"),))
    assert plan(new, Wish(model=SMOL)).warnings == ()


def test_a_deployment_has_the_speeds_of_smaller_batches() -> None:
    (chat, embed) = plan(
        rig("RTX 3090", "RTX 3070"), Wish(model=QWEN_7B, context=8192), Wish(model=MINILM)
    ).deployments
    assert chat.speed and embed.speed
    assert chat.speed.curve[0] == (1, chat.speed.decode_one)
    assert chat.speed.curve[-1] == (chat.speed.batch, chat.speed.decode_full)
    assert embed.speed.curve == ()


def test_a_search_without_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = solver.solve

    def hasty(problem: Problem, *, gap: float, time_limit_s: float) -> Packing:
        assert (gap, time_limit_s) == (0.0, arrange.TIME_LIMIT_S)
        return msgspec.structs.replace(honest(problem), proved=False)

    monkeypatch.setattr(solver, "solve", hasty)
    assert plan(rig("RTX 3090"), Wish(model=SMOL)).warnings == (UNPROVED,)


def test_many_cards_may_be_a_percent_below_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = []
    honest = solver.solve

    def listening(problem: Problem, *, gap: float, time_limit_s: float) -> Packing:
        gaps.append(gap)
        return honest(problem, gap=gap, time_limit_s=time_limit_s)

    monkeypatch.setattr(solver, "solve", listening)
    nodes = [
        node(
            *(msgspec.structs.replace(card(at, "RTX 3090"), id=f"GPU-{number}-{at}") for at in range(8)),
            name=f"n{number}",
        )
        for number in range(9)
    ]
    there = Inventory(nodes=tuple(nodes))
    made = plan(there, Wish(model=QWEN_7B, context=8192, replicas=20), Wish(model=MINILM, replicas=10))
    assert gaps == [arrange.LARGE_GAP]
    assert len(made.deployments) == 30
    check(there, made)


def reduced(problem: Problem, most: int) -> Problem:
    """The options that are worth most, so many of each demand."""
    kept: list[Option] = []
    for demand in range(len(problem.demands)):
        mine = [option for option in problem.options if option.demand == demand]
        kept += sorted(mine, key=lambda option: -option.score)[:most]
    return msgspec.structs.replace(problem, options=tuple(kept))


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_no_plan_of_an_example_is_better(name: str, mixing: bool) -> None:
    """By trying every plan there is (of eight-a100, of the six best options of each model)."""
    there, tiers, wishes, factory = example(name)
    engine = release(factory.engine.release or "24.12")
    studied = arrange.study(there, tiers, wishes, engine=engine, settings=factory.planner, mixing=mixing)
    problem, _ = arrange._problem(studied, wishes, factory.planner, None)
    small = reduced(problem, 6 if name == "eight-a100" else 1000)
    assert solver.solve(small).objective == best_objective(small)


MODELS = (SMOL, MINILM, LLAMA_3B, QWEN_7B, NEMO)
CARDS = st.sampled_from(
    ["RTX 3090", "RTX 3080 10GB", "RTX 3060 12GB", "RTX 3060 Ti", "RTX 2080 Ti", "A100 80GB"]
)


@st.composite
def rigs(draw: st.DrawFn) -> Inventory:
    found = []
    for number in range(draw(st.integers(1, 2))):
        names = draw(st.lists(CARDS, min_size=1, max_size=4))
        cards = [
            msgspec.structs.replace(
                card(at, name, used_mib=draw(st.sampled_from([0, 700]))), id=f"GPU-{number}-{at}"
            )
            for at, name in enumerate(names)
        ]
        found.append(node(*cards, name=f"node-{number}"))
    return Inventory(nodes=tuple(found))


@st.composite
def wished(draw: st.DrawFn) -> list[Wish]:
    models = draw(st.lists(st.sampled_from(MODELS), min_size=1, max_size=3, unique_by=lambda one: one.name))
    return [
        Wish(
            model=one,
            context=draw(st.sampled_from([None, 256])),
            priority=draw(st.integers(1, 2)),
            share=draw(st.sampled_from([1.0, 3.0])),
            replicas=draw(st.integers(1, 2)),
        )
        for one in models
    ]


@settings(max_examples=60, deadline=None)
@given(rigs(), wished(), st.sampled_from(["24.12", "25.09", "26.07"]), st.randoms(use_true_random=False))
def test_plans_of_any_rig(there: Inventory, wishes: list[Wish], engine: str, chance: random.Random) -> None:
    """They keep within every card, say who has no place, and do not depend on the order of what was found."""
    try:
        made = plan(there, *wishes, engine=engine)
    except PlanError as error:
        assert "no place for" in error.message
        return
    check(there, made)
    copies = {wish.name: sum(one.model == wish.name for one in made.deployments) for wish in wishes}
    assert {one.model for one in made.unplaced} == {w.name for w in wishes if copies[w.name] < w.replicas}
    nodes = [
        msgspec.structs.replace(one, devices=tuple(chance.sample(one.devices, len(one.devices))))
        for one in there.nodes
    ]
    shuffled = Inventory(nodes=tuple(chance.sample(nodes, len(nodes))))
    assert encoded(plan(shuffled, *wishes, engine=engine)) == encoded(made)


def test_copies_behind_one_name_take_the_same_context() -> None:
    made = plan(rig(*RIG), Wish(model=NEMO, replicas=3))
    assert len(made.deployments) == 3
    assert len({one.context for one in made.deployments}) == 1
    assert len({one.engine_args["max_model_len"] for one in made.deployments}) == 1


def test_a_quantized_deployment_says_why() -> None:
    made = plan(rig(*RIG), Wish(model=NEMO, context=32768, tier="primary"))
    assert re.search(
        r"; (FP8|INT8) does not fit: the KV cache would hold 31,\d\d\d tokens", made.deployments[0].reason
    )
    as_given = plan(rig("RTX 3090"), Wish(model=LLAMA_3B, context=8192))
    assert "does not fit" not in as_given.deployments[0].reason


def test_an_embedding_model_leaves_the_large_card_alone() -> None:
    made = plan(rig("RTX 3090", "RTX 3060 Ti"), Wish(model=MINILM))
    assert made.deployments[0].devices == ("GPU-00000001",)
