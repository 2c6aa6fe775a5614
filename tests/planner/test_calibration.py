"""Fitting: it finds the constants that points were made from, and predicts cards that it has not seen."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.catalog.gpus import known_gpus
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.speed import Constants, constants_for
from sovereign_ai.planner import calibration
from sovereign_ai.planner.calibration import READ_KEYS, Point, PromptPoint
from sovereign_ai.planner.evidence import decode_points
from sovereign_ai.planner.memory import Rank
from sovereign_ai.planner.performance import Card, Stage, decode_full, decode_one, gpu_card, prefill_s
from sovereign_ai.spec import Format, Shape
from tests.planner.models import LLAMA_3B_SHAPE, NEMO_SHAPE, QWEN_7B_SHAPE, SMOL_SHAPE

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
LLAMA_CPP = constants_for("llama.cpp")
BATCHED = constants_for("vllm", VllmVersion.parse("0.5.5"))
CARDS = {facts.name: gpu_card(facts) for facts in known_gpus() if facts.capability >= (7, 0)}
SHAPES = (SMOL_SHAPE, LLAMA_3B_SHAPE, QWEN_7B_SHAPE, NEMO_SHAPE)


def point(
    there: Card, shape: Shape = QWEN_7B_SHAPE, form: Format = "bfloat16", context: float = 512, cards: int = 1
) -> Point:
    """One without a speed yet."""
    version = VllmVersion.parse("0.5.5")
    return Point(
        name=there.name,
        card=there,
        rank=Rank(shape=shape, format=form, vllm=version, batched_tokens=2048, max_num_seqs=1),
        engine="made up",
        context=context,
        tokens_per_s=1.0,
        cards=cards,
    )


def told(constants: Constants, made: Point, *, factor: float = 1.0) -> Point:
    """The point as these constants would have it, or `factor` times as fast."""
    speed = factor * made.batch / calibration.seconds(constants, made)
    return msgspec.structs.replace(made, tokens_per_s=speed)


def every_point(*, factor: float = 1.0) -> list[Point]:
    cards = [
        CARDS[name] for name in ("GeForce RTX 3090", "GeForce RTX 3060 12GB", "A100 SXM 80GB", "H100 PCIe")
    ]
    formats: tuple[Format, ...] = ("bfloat16", "fp8", "w4a16")
    made = [
        point(there, shape, form, context, count)
        for there in cards
        for shape in SHAPES[1:]
        for form in formats
        for context, count in ((64, 1), (4096, 1), (64, 2))
    ]
    return [told(LLAMA_CPP, one, factor=factor) for one in made]


def measured() -> list[Point]:
    with (DATA / "decode_points.csv").open(encoding="utf-8", newline="") as file:
        return decode_points(csv.DictReader(file))[0]


def test_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="no points"):
        calibration.fit("vllm", [])


def test_fitting_finds_what_the_points_were_made_from() -> None:
    found = calibration.fit("made up", every_point())
    assert (found.engine, found.source) == ("made up", "fitted on 108 points")
    for name in ("layer_s", "attention_s", "split_layer_s", "hop_s"):
        assert getattr(found, name) == pytest.approx(getattr(LLAMA_CPP, name), rel=0.02, abs=1e-8), name
    assert found.read == pytest.approx({key: LLAMA_CPP.read[key] for key in READ_KEYS}, rel=0.02)


def test_a_mistake_in_a_table_weighs_little() -> None:
    points = every_point()
    points[7] = msgspec.structs.replace(points[7], tokens_per_s=5 * points[7].tokens_per_s)
    found = calibration.fit("made up", points, source="with a typing error")
    assert found.source == "with a typing error"
    assert found.read == pytest.approx({key: LLAMA_CPP.read[key] for key in READ_KEYS}, rel=0.03)


def test_what_no_point_tells_of_is_like_its_neighbour() -> None:
    wide = calibration.fit("made up", [one for one in every_point() if one.rank.format == "bfloat16"])
    assert wide.read["gddr-8"] == wide.read["gddr-4"] == wide.read["gddr-16"]
    small = [one for one in every_point() if one.card.kind == "hbm"]
    assert calibration.fit("made up", small).read["gddr-4"] == calibration.fit("made up", small).read["hbm-4"]


def test_the_size_of_a_file_replaces_the_formula() -> None:
    made = point(CARDS["GeForce RTX 3090"])
    table = 152_064 * 3584
    sized = msgspec.structs.replace(made, weights_bytes=8e9)
    assert sized.read_bytes == pytest.approx(8e9 * (1 - table / QWEN_7B_SHAPE.parameters))
    tied = msgspec.structs.replace(sized, rank=point(sized.card, LLAMA_3B_SHAPE).rank)
    assert tied.read_bytes == 8e9
    bf16 = msgspec.structs.replace(made, weights_bytes=2.0 * QWEN_7B_SHAPE.parameters)
    assert bf16.read_bytes == pytest.approx(made.read_bytes, rel=0.006)


def test_an_error_above_zero_is_too_fast() -> None:
    made = point(CARDS["GeForce RTX 3090"])
    assert calibration.error(LLAMA_CPP, told(LLAMA_CPP, made)) == pytest.approx(0.0)
    assert calibration.error(LLAMA_CPP, told(LLAMA_CPP, made, factor=0.8)) == pytest.approx(0.25)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(CARDS)),
    st.sampled_from(SHAPES),
    st.sampled_from(["bfloat16", "fp8", "int8", "w4a16"]),
    st.integers(1, 8192),
)
def test_a_single_card_is_as_the_planner_has_it(name: str, shape: Shape, form: Format, context: int) -> None:
    """Without costs of a step, which points do not tell of."""
    made = point(CARDS[name], shape, form, context)
    predicted = decode_one(LLAMA_CPP, [Stage(rank=made.rank, card=made.card)], context)
    assert 1.0 / calibration.seconds(LLAMA_CPP, made) == pytest.approx(predicted)
    assert calibration.error(
        LLAMA_CPP, msgspec.structs.replace(made, tokens_per_s=predicted)
    ) == pytest.approx(0.0)


def test_the_catalog_ships_what_the_table_gives() -> None:
    found = calibration.fit("llama.cpp", measured())
    for name in ("layer_s", "attention_s", "split_layer_s", "hop_s"):
        assert getattr(LLAMA_CPP, name) == pytest.approx(getattr(found, name), rel=0.01), name
    for key in ("gddr-16", "gddr-4", "hbm-16", "hbm-4"):
        assert LLAMA_CPP.read[key] == pytest.approx(found.read[key], rel=0.01), key


def test_cards_that_were_not_seen() -> None:
    """Each card predicted by constants fitted on all others."""
    points = measured()
    errors: list[float] = []
    for name in sorted({one.name for one in points}):
        constants = calibration.fit("llama.cpp", [one for one in points if one.name != name])
        errors += [abs(calibration.error(constants, one)) for one in points if one.name == name]
    assert len(errors) > 300
    assert statistics.mean(errors) <= 0.08


def test_nothing_measured_changes_nothing() -> None:
    assert calibration.adjust(LLAMA_CPP, [], source="mine") is LLAMA_CPP


def test_one_point_moves_everything_alike() -> None:
    made = told(LLAMA_CPP, point(CARDS["GeForce RTX 3090"]), factor=0.8)
    moved = calibration.adjust(LLAMA_CPP, [made], source="mine")
    assert moved.source == "mine"
    assert calibration.error(moved, made) == pytest.approx(0.0)
    assert moved.layer_s == pytest.approx(1.25 * LLAMA_CPP.layer_s)
    assert moved.read["gddr-4"] == pytest.approx(1.25 * LLAMA_CPP.read["gddr-4"])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(CARDS)), st.sampled_from(SHAPES[1:]), st.integers(1, 4), st.integers(1, 2048))
def test_a_small_batch_is_as_the_planner_has_it(name: str, shape: Shape, batch: int, context: int) -> None:
    """With the costs of a step and of a sequence, as long as reading sets the pace."""
    made = msgspec.structs.replace(point(CARDS[name], shape, context=context), batch=batch)
    stages = [Stage(rank=made.rank, card=made.card)]
    together = batch / calibration.seconds(BATCHED, made)
    assert together == pytest.approx(decode_full(BATCHED, stages, batch, context))


def test_points_too_much_alike_move_everything_alike() -> None:
    there = CARDS["GeForce RTX 3090"]
    points = [told(LLAMA_CPP, point(there, context=context), factor=0.5) for context in (512, 514)]
    moved = calibration.adjust(LLAMA_CPP, points, source="mine")
    assert moved.hop_s / LLAMA_CPP.hop_s == pytest.approx(moved.read["hbm-16"] / LLAMA_CPP.read["hbm-16"])


def test_latency_and_reading_are_told_apart() -> None:
    there = CARDS["GeForce RTX 3090"]
    slower = msgspec.structs.replace(
        LLAMA_CPP,
        layer_s=2 * LLAMA_CPP.layer_s,
        attention_s=2 * LLAMA_CPP.attention_s,
        read={key: 1.1 * value for key, value in LLAMA_CPP.read.items()},
    )
    points = [told(slower, point(there, shape)) for shape in (SMOL_SHAPE, QWEN_7B_SHAPE)]
    moved = calibration.adjust(LLAMA_CPP, points, source="mine")
    assert moved.layer_s == pytest.approx(slower.layer_s, rel=0.01)
    assert moved.read == pytest.approx(slower.read, rel=0.01)


def test_batches_tell_what_a_sequence_costs() -> None:
    """Three factors from three kinds of points."""
    there = CARDS["GeForce RTX 3090"]
    slower = msgspec.structs.replace(
        BATCHED,
        layer_s=2 * BATCHED.layer_s,
        step_s=2 * BATCHED.step_s,
        sequence_s=3 * BATCHED.sequence_s,
        hop_s=2 * BATCHED.hop_s,
        read={key: 1.1 * value for key, value in BATCHED.read.items()},
    )
    made = [
        point(there, SMOL_SHAPE),
        point(there),
        msgspec.structs.replace(point(there, SMOL_SHAPE), batch=64),
    ]
    moved = calibration.adjust(BATCHED, [told(slower, one) for one in made], source="mine")
    for name in ("layer_s", "step_s", "sequence_s", "hop_s", "read"):
        assert getattr(moved, name) == pytest.approx(getattr(slower, name), rel=0.01), name
    single = calibration.adjust(BATCHED, [told(slower, one) for one in made[:2]], source="mine")
    assert single.sequence_s / BATCHED.sequence_s == pytest.approx(single.layer_s / BATCHED.layer_s)


STAGE = Stage(rank=point(CARDS["GeForce RTX 3090"]).rank, card=CARDS["GeForce RTX 3090"])


def test_a_batch_tells_what_a_sequence_costs() -> None:
    costly = msgspec.structs.replace(
        BATCHED, sequence_s=3e-4, step_s=BATCHED.step_s + BATCHED.sequence_s - 3e-4
    )
    each = decode_full(costly, [STAGE], 16, 512) / 16
    found = calibration.with_batch(BATCHED, STAGE, 16, 512, each)
    assert found.sequence_s == pytest.approx(3e-4)
    assert found.step_s == pytest.approx(costly.step_s)
    assert decode_one(found, [STAGE], 512) == pytest.approx(decode_one(BATCHED, [STAGE], 512))


def test_a_batch_that_costs_nothing_or_too_much() -> None:
    fixed = BATCHED.step_s + BATCHED.sequence_s
    fast, slow = (calibration.with_batch(BATCHED, STAGE, 16, 512, speed) for speed in (1000.0, 0.1))
    assert (fast.sequence_s, fast.step_s) == (0.0, fixed)
    assert (slow.sequence_s, slow.step_s) == (fixed, 0.0)


def test_a_prompt_tells_what_is_computed() -> None:
    twice = prefill_s(BATCHED, [STAGE], 2048) * 2
    assert calibration.with_prompt(BATCHED, STAGE, 2048, twice).compute == pytest.approx(BATCHED.compute / 2)
    assert calibration.with_prompt(BATCHED, STAGE, 2048, 1e-6).compute == calibration.MOST_COMPUTE
    assert calibration.with_prompt(BATCHED, STAGE, 2048, 1e6).compute == calibration.LEAST_COMPUTE


def prompt(length: int, tokens_per_s: float) -> PromptPoint:
    there = STAGE.card
    return PromptPoint(
        name=there.name, card=there, rank=STAGE.rank, engine="vllm", length=length, tokens_per_s=tokens_per_s
    )


def test_prompts_tell_what_is_computed() -> None:
    half = msgspec.structs.replace(BATCHED, compute=BATCHED.compute / 2)
    points = [prompt(length, length / prefill_s(half, [STAGE], length)) for length in (512, 2048, 8192)]
    assert calibration.with_prompts(BATCHED, points).compute == pytest.approx(half.compute, rel=0.01)
    assert calibration.with_prompts(BATCHED, [prompt(512, 1e9)]).compute == calibration.MOST_COMPUTE
    assert calibration.with_prompts(BATCHED, [prompt(512, 1e-9)]).compute == calibration.LEAST_COMPUTE
    assert calibration.with_prompts(BATCHED, []) is BATCHED
