from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.planner.embedding import COMPUTE, fit_embedding
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.memory import EMBEDDING_OVERHEAD_BYTES, GIB
from sovereign_ai.planner.sizing import MARGIN_BYTES, Fit, Misfit
from sovereign_ai.planner.wish import Wish
from tests.inventory.fakes import cpu, inventory
from tests.planner.models import MINILM, MINILM_SHAPE, layout, model, rooms

WISH = Wish(model=MINILM)


def fits(there: Layout, wish: Wish = WISH) -> Fit:
    found = fit_embedding(wish, there)
    assert isinstance(found, Fit)
    return found


def test_on_a_card() -> None:
    found = fits(layout(["RTX 3070"]))
    (memory,) = found.memories
    assert (found.format, found.context, found.kv_tokens, found.rung.max_num_seqs) == ("float32", 256, 0, 64)
    assert memory.overhead_bytes / GIB == pytest.approx(0.25)
    assert memory.total_bytes == found.needed_bytes == found.total_bytes


def test_on_a_cpu() -> None:
    there = Layout(rooms=rooms(inventory(cpu())))
    (memory,) = fits(there).memories
    assert memory.overhead_bytes == EMBEDDING_OVERHEAD_BYTES


def test_every_token_is_multiplied_with_all_but_the_table() -> None:
    there = layout(["RTX 3070"])
    speed = fits(there).speed
    facts = there.rooms[0].facts
    assert facts is not None
    assert facts.fp32_flops is not None, "the backend computes in float32, which no tensor core does"
    rate = COMPUTE * facts.fp32_flops / (2 * (22_713_216 - 30_522 * 384))
    assert speed.decode_one == speed.decode_full == pytest.approx(rate, rel=1e-6)
    assert speed.ttft_s == {256: round(256 / rate, 4)}
    assert speed.prefill == round(rate)


def test_a_model_that_is_all_table() -> None:
    table = model("table", msgspec.structs.replace(MINILM_SHAPE, parameters=30_522 * 384), "embed")
    assert fits(layout(["RTX 3070"]), Wish(model=table)).speed.prefill > 0


def test_a_card_keeps_its_margin_and_a_cpu_does_not() -> None:
    needed = fits(layout(["RTX 3070"])).needed_bytes

    def on(free: int, kind: str) -> Fit | Misfit:
        there = layout(["RTX 3070"]) if kind == "gpu" else Layout(rooms=rooms(inventory(cpu())))
        room = msgspec.structs.replace(there.rooms[0], usable_bytes=free)
        return fit_embedding(WISH, Layout(rooms=(room,)))

    assert isinstance(on(needed + MARGIN_BYTES, "gpu"), Fit)
    short = on(needed + MARGIN_BYTES - 1, "gpu")
    assert isinstance(short, Misfit)
    assert short.missing_bytes == 1
    on_cpu = fits(Layout(rooms=rooms(inventory(cpu())))).needed_bytes
    assert isinstance(on(on_cpu, "cpu"), Fit)


def test_what_is_missing() -> None:
    found = fit_embedding(WISH, layout(["RTX 3070"], used_mib=7400))
    assert isinstance(found, Misfit)
    assert found.reason.startswith("needs 0.69 GiB in float32, ")
    assert found.reason.endswith(" usable")
