from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.catalog.releases import release
from sovereign_ai.planner import reasons
from sovereign_ai.planner.candidates import Tried
from sovereign_ai.planner.cpu import cpu_fit, least_on_cpu, need
from sovereign_ai.planner.embedding import fit_embedding
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.reasons import (
    MOST_REJECTED,
    Taken,
    explain,
    nothing_fits,
    option_name,
    rejected,
    why,
)
from sovereign_ai.planner.sizing import Fit, Misfit, fit
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Deployment, Format, Rejected
from tests.inventory.fakes import GIB, cpu, inventory
from tests.planner.models import LLAMA_3B, MINILM, NEMO, SMOL, layout, rooms

OLD = release("24.12")
PAIR = layout(("RTX 3080 10GB", "RTX 3080 10GB"), tp=2)
MIXED = layout(("RTX 3090", "RTX 3060 12GB"), pp=2)
ONE = layout(["RTX 3090"])
NEMO_WISH = Wish(model=NEMO, context=16_384)


def tried(wish: Wish, there: Layout, form: Format) -> Tried:
    return Tried(there, form, fit(wish, there, form, OLD))


def works(wish: Wish, there: Layout, form: Format = "bfloat16") -> Fit:
    found = fit(wish, there, form, OLD)
    assert isinstance(found, Fit)
    return found


def here(free_bytes: int = 14 * GIB) -> Layout:
    return Layout(rooms=rooms(inventory(cpu(free_bytes=free_bytes))))


def chosen(wish: Wish, there: Layout, form: Format) -> Taken:
    """As it is deployed on these very devices."""
    found = works(wish, there, form)
    return Taken(
        format=form,
        keys=frozenset(room.key for room in there.rooms),
        tp=there.tp,
        pp=there.pp,
        cards=len(there.rooms),
        alone=found.speed.decode_one,
        full=found.speed.decode_full,
    )


def deployed(wish: Wish, there: Layout, form: Format) -> Deployment:
    found = works(wish, there, form)
    return Deployment(
        model=wish.name,
        version="1",
        task="chat",
        engine="triton",
        backend="vllm",
        node="box",
        tier="primary",
        devices=tuple(room.id for room in there.rooms),
        context=found.context,
        max_num_seqs=found.rung.max_num_seqs,
        memories=found.memories,
        tp=there.tp,
        format=form,
        speed=found.speed,
    )


def test_an_option_has_a_name() -> None:
    assert option_name(tried(NEMO_WISH, PAIR, "w4a16")) == (
        "4-bit (W4A16) on 2× RTX 3080 10GB at TP=2 (tier primary, node box)"
    )


def test_why_a_chat_model_is_where_it_is() -> None:
    found = works(NEMO_WISH, PAIR, "w4a16")
    assert why(NEMO_WISH, found, shared=False) == (
        f"4-bit (W4A16) on 2× RTX 3080 10GB at TP=2: {found.speed.decode_one:,.0f} tokens/s alone, "
        f"{found.speed.decode_full:,.0f} with {found.speed.batch} streams, "
        f"KV cache of {found.kv_tokens:,} tokens"
    )
    assert why(NEMO_WISH, found, shared=True).startswith(
        "4-bit (W4A16) on 2× RTX 3080 10GB at TP=2, shares the card: "
    )


def test_why_an_embedding_model_is_where_it_is() -> None:
    wish = Wish(model=MINILM)
    found = fit_embedding(wish, ONE)
    assert isinstance(found, Fit)
    assert why(wish, found, shared=False) == "FP32 on 1× RTX 3090"
    assert why(wish, found, shared=True) == "FP32 on 1× RTX 3090, shares the card"


def test_why_the_cpu_serves() -> None:
    wish, embed = Wish(model=SMOL), Wish(model=MINILM)
    text = why(wish, cpu_fit(need(wish, 14 * GIB), here()), shared=False)
    assert text == "no GPU: the CPU serves, in float32; the KV cache of 1.0 GiB holds 23,296 tokens"
    on_cpu = fit_embedding(embed, here())
    assert isinstance(on_cpu, Fit)
    assert why(embed, on_cpu, shared=True) == "no GPU: the CPU serves, in float32"


def test_what_was_taken() -> None:
    one = deployed(NEMO_WISH, PAIR, "w4a16")
    assert reasons.taken(one) == chosen(NEMO_WISH, PAIR, "w4a16")
    assert reasons.taken(one).pace == pytest.approx((one.speed.decode_one * one.speed.decode_full) ** 0.5)  # type: ignore[union-attr]
    assert reasons.taken(msgspec.structs.replace(one, speed=None)).pace == 0.0


def lost(wish: Wish, there: Layout, form: Format, *mine: Taken) -> Rejected:
    (entry,) = explain(wish, [tried(wish, there, form)], mine)
    return entry


def test_why_an_option_lost() -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    mine = chosen(wish, ONE, "bfloat16")._replace(keys=frozenset({("other", "GPU-00000000")}))
    for there, form, reason in (
        (ONE, "w4a16", ", but quantized further (chosen: BF16, "),
        (MIXED, "bfloat16", ", but mixes kinds of cards (chosen: BF16, "),
        (layout(["RTX 3060 12GB"]), "bfloat16", ": slower (chosen: BF16, "),
        (layout(["RTX 3090", "RTX 3090"], tp=2), "bfloat16", ", but on more cards (chosen: BF16, "),
        (layout(["RTX 4090"]), "bfloat16", "; its devices serve others better (chosen: BF16, "),
    ):
        entry = lost(wish, there, form, mine)  # type: ignore[arg-type]
        assert entry.fits and entry.model == "llama-3b"
        assert entry.reason.startswith("fits, ")
        assert reason in entry.reason


def test_nothing_is_deployed_to_compare_with() -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    assert lost(wish, ONE, "bfloat16").reason.endswith(" in full; its devices serve others")


def test_what_does_not_fit_comes_first_with_its_numbers() -> None:
    found = explain(NEMO_WISH, [tried(NEMO_WISH, ONE, "fp8"), tried(NEMO_WISH, PAIR, "bfloat16")], [])
    assert [entry.fits for entry in found] == [False, True]
    assert found[0].reason.startswith("11.44 GiB of weights a card, ")


def test_what_was_taken_is_not_rejected() -> None:
    """Nor is the same on cards like them."""
    mine = chosen(NEMO_WISH, PAIR, "w4a16")
    elsewhere = mine._replace(keys=frozenset({("other", "a"), ("other", "b")}))
    for one in (mine, elsewhere):
        assert explain(NEMO_WISH, [tried(NEMO_WISH, PAIR, "w4a16")], [one]) == ()
        assert len(explain(NEMO_WISH, [tried(NEMO_WISH, PAIR, "int8")], [one])) == 1
    assert explain(NEMO_WISH, [tried(NEMO_WISH, PAIR, "w4a16")], [elsewhere._replace(alone=1.0)]) != ()


def test_equal_options_are_told_once() -> None:
    again = [tried(NEMO_WISH, PAIR, "bfloat16")] * 3
    assert len(explain(NEMO_WISH, again, [])) == 1


def test_a_plan_keeps_the_plain_options_and_the_best_that_lost() -> None:
    looked_at = [
        tried(NEMO_WISH, PAIR, "bfloat16"),
        tried(NEMO_WISH, PAIR, "int8"),
        tried(NEMO_WISH, MIXED, "bfloat16"),
        tried(Wish(model=NEMO, context=131_072), MIXED, "bfloat16"),
    ]
    found = rejected([NEMO_WISH], [looked_at], [deployed(NEMO_WISH, PAIR, "w4a16")])
    assert [entry.option for entry in found] == [
        "BF16 on 2× RTX 3080 10GB at TP=2 (tier primary, node box)",
        "INT8 on 2× RTX 3080 10GB at TP=2 (tier primary, node box)",
        "BF16 on 1× RTX 3090 + 1× RTX 3060 12GB at PP=2 (tier primary, context, node box)",
    ]


def test_a_plan_keeps_no_more_than_people_read() -> None:
    tight = [layout(["RTX 3080 10GB"], used_mib=used) for used in range(0, 3000, 100)]
    roomy = [layout(["RTX 3090"], used_mib=used) for used in range(0, 3000, 100)]
    looked_at = [tried(NEMO_WISH, there, "fp8") for there in (*tight, *roomy)]
    found = rejected([NEMO_WISH], [looked_at], [])
    assert len(found) <= MOST_REJECTED
    assert {entry.fits for entry in found} == {True, False}


def test_the_cpu_tells_why_not_bfloat16() -> None:
    wish, embed = Wish(model=SMOL), Wish(model=MINILM)
    on_cpu = Tried(here(), "float32", least_on_cpu(wish, here()))
    assert rejected([wish], [[on_cpu]], [])[-1] == Rejected(
        model="smollm2-135m",
        option="bfloat16 on the CPU",
        reason="this CPU has no bfloat16 units: measured 4 to 8 times slower than float32",
    )
    others = rejected([embed], [[Tried(here(), "float32", fit_embedding(embed, here()))]], [])
    assert all(entry.option != "bfloat16 on the CPU" for entry in others)


def test_nothing_fits() -> None:
    wish = Wish(model=NEMO, context=32_768, where="factory.yaml:3")
    closest = tried(wish, PAIR, "fp8")
    assert isinstance(closest.result, Misfit) and closest.result.missing_bytes
    error = nothing_fits([(wish, [tried(wish, PAIR, "bfloat16"), closest])])
    lack = f"{closest.result.missing_bytes / GIB:.2f} GiB"
    assert error.message == (
        "factory.yaml:3: no place for `mistral-nemo` with a context of 32768 tokens: the closest is FP8 on "
        f"2× RTX 3080 10GB at TP=2 (tier primary, node box): {closest.result.reason} "
        f"({lack} more on the tightest device would do)"
    )
    assert error.hint == (
        f"ask for a smaller context than 32768; or add memory: {lack} a device; or serve a smaller model, "
        "or one that is quantized further"
    )


def test_ways_out_name_what_narrows_the_wish() -> None:
    wish = Wish(model=NEMO, context=2048, formats=("bfloat16",), concurrency=4)
    assert nothing_fits([(wish, [tried(wish, PAIR, "bfloat16")])]).hint.startswith(
        "drop its `quantization`, `tier` or `devices`, which leave out what might fit; or ask for fewer than "
        "4 requests at once; or add memory: "
    )


def test_no_device_for_it() -> None:
    assert nothing_fits([(NEMO_WISH, [])]).message.endswith(": there is no device for it")
    tiered = msgspec.structs.replace(NEMO_WISH, tier="context")
    assert nothing_fits([(tiered, [])]).message.endswith(": tier `context` has no device for it")


def test_every_wish_that_fits_nowhere_is_named() -> None:
    slow = Wish(model=LLAMA_3B, context=2048, min_tokens_per_s=1000)
    error = nothing_fits([(slow, [tried(slow, ONE, "bfloat16")]), (NEMO_WISH, [])])
    first, second = error.message.splitlines()
    assert first.endswith("tokens/s, 1000 are asked for")
    assert "`mistral-nemo`" in second
    assert error.hint.startswith("ask for at most ")
    assert error.hint.endswith(
        " tokens/s; or add a card that can; or serve a smaller model, or one that is quantized further"
    )


def test_a_device_that_was_insisted_on_is_at_fault() -> None:
    pinned = msgspec.structs.replace(NEMO_WISH, devices=("GPU-1",))
    assert nothing_fits([(pinned, [])]).message.endswith(": one of its `devices` is at fault")
