"""The roofline: its terms one by one, numbers that others measured, and laws. No card was here to measure."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.catalog.gpus import GpuFacts, find_gpu, known_gpus
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.catalog.speed import Constants, constants_for
from sovereign_ai.planner import memory, performance
from sovereign_ai.planner.memory import Rank
from sovereign_ai.planner.performance import Card, Stage, gpu_card, slowest
from sovereign_ai.spec import Format, LinkKind, Shape
from tests.planner.models import LLAMA_3B_SHAPE, NEMO_SHAPE, QWEN_7B_SHAPE, SMOL_SHAPE

VERSION = VllmVersion.parse("0.6.3")
VLLM = constants_for("vllm", VERSION)
FREE = Constants(engine="none", layer_s=0.0, read=VLLM.read, hop_s=0.0, compute=1.0)
"""An engine that costs nothing beside bytes and operations."""


def facts(name: str) -> GpuFacts:
    found = find_gpu(name)
    assert found is not None
    return found


def card(name: str) -> Card:
    return gpu_card(facts(name))


def known(name: str) -> Shape:
    found = find_shape(name)
    assert found is not None
    return found.shape


def rank(shape: Shape = NEMO_SHAPE, form: Format = "bfloat16", **settings: object) -> Rank:
    made = Rank(shape=shape, format=form, vllm=VERSION, v1=False, batched_tokens=2048, max_num_seqs=64)
    return msgspec.structs.replace(made, **settings)


def stage(name: str = "RTX 3090", link: LinkKind = "host", **settings: object) -> Stage:
    return Stage(rank=rank(**settings), card=card(name), link=link)  # type: ignore[arg-type]


def pipeline(*layers: int, name: str = "RTX 3090", tp: int = 1) -> list[Stage]:
    last = len(layers) - 1
    return [
        stage(name, layers=count, tp=tp, pp=len(layers), first=at == 0, last=at == last)
        for at, count in enumerate(layers)
    ]


def test_a_geforce_card() -> None:
    there = card("RTX 3080 10GB")
    assert (there.kind, there.bandwidth, there.clock_hz) == ("gddr", 760.3e9, 1.71e9)
    assert there.low_formats == {"int8"}
    assert there.flops == facts("RTX 3080 10GB").fp16_flops_fp32_accumulate


def test_what_kinds_of_cards_can() -> None:
    assert card("A100 SXM 80GB").kind == "hbm"
    assert card("RTX 4090").low_formats == {"int8", "fp8"}
    assert card("GTX 1070").low_formats == frozenset()  # dp4a is not what vLLM's INT8 runs on
    assert card("GTX 1070").flops == facts("GTX 1070").fp32_flops
    assert card("V100 SXM2 16GB").low_formats == frozenset()


def test_ecc_takes_its_part_of_gddr_bandwidth() -> None:
    assert card("A40").bandwidth == facts("A40").bandwidth_bytes_per_s * 15 / 16
    assert card("RTX A6000").bandwidth == facts("RTX A6000").bandwidth_bytes_per_s


def test_a_card_that_nobody_knows_has_something() -> None:
    blank = msgspec.structs.replace(
        facts("RTX 3090"), clock_hz=None, fp16_flops_fp32_accumulate=None, fp32_flops=None, int8_ops=None
    )
    assert (gpu_card(blank).flops, gpu_card(blank).clock_hz) == (1e12, performance.CLOCK_HZ)


def test_a_key_tells_cards_apart_that_are_not_equally_fast() -> None:
    assert card("RTX 3090").key == card("RTX 3090").key
    assert card("RTX 3090").key != card("RTX 3090 Ti").key


def test_a_group_is_paced_by_the_least_of_everything() -> None:
    fast, slow, old = card("RTX 4090"), card("RTX 3060 12GB"), card("V100 SXM2 16GB")
    pair = slowest([fast, slow])
    assert (pair.name, pair.bandwidth, pair.flops) == (slow.name, slow.bandwidth, slow.flops)
    assert pair.clock_hz == min(fast.clock_hz, slow.clock_hz)
    assert pair.low_formats == {"int8"}
    assert slowest([fast, old]).low_ops is None
    assert slowest([fast]) == fast


def test_constants_of_the_slowest_card_win() -> None:
    own = msgspec.structs.replace(VLLM, source="measured here")
    measured = msgspec.structs.replace(card("RTX 3060 12GB"), constants=own)
    slow, fast = Stage(rank=rank(), card=measured), stage("RTX 3090")
    assert performance.constants_of([fast, slow], "vllm", VERSION) is own
    assert performance.constants_of([fast], "vllm", VERSION) is VLLM


def test_weight_only_kernels_compute_in_16_bit() -> None:
    assert performance.weight_only(card("RTX 4090")).low_formats == frozenset()


@pytest.mark.parametrize(
    ("form", "key"), [("bfloat16", "gddr-16"), ("float32", "gddr-16"), ("fp8", "gddr-8"), ("awq", "gddr-4")]
)
def test_how_wide_weights_are_read(form: Format, key: str) -> None:
    assert performance.read_key("gddr", form) == key


def test_an_embedding_is_not_read() -> None:
    rope = memory.rope_cache_bytes(NEMO_SHAPE, 2)
    every = memory.weights_bytes(rank()) - rope
    assert performance.weights_read_bytes(rank(), 1) == every - 131_072 * 5120 * 2
    middle = rank(first=False, last=False, layers=10)
    assert performance.weights_read_bytes(middle, 1) == memory.weights_bytes(middle) - rope


def test_a_tied_embedding_is_the_head() -> None:
    rope = memory.rope_cache_bytes(LLAMA_3B_SHAPE, 2)
    whole = rank(LLAMA_3B_SHAPE)
    assert performance.weights_read_bytes(whole, 1) == memory.weights_bytes(whole) - rope
    first = rank(LLAMA_3B_SHAPE, layers=14, last=False)
    table = 128_256 * 3072 * 2
    assert performance.weights_read_bytes(first, 1) == memory.weights_bytes(first) - rope - table


@pytest.mark.parametrize(("name", "billions"), [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.3)])
def test_active_parameters_as_published(name: str, billions: float) -> None:
    """What the authors call active counts the embedding too, which nothing is multiplied with."""
    shape = known(name)
    counted = performance.active_parameters(rank(shape)) + shape.vocabulary * shape.hidden
    assert counted == pytest.approx(billions * 1e9, rel=0.02)


def test_experts_that_nobody_asks_for_are_not_read() -> None:
    mixtral = rank(known("mixtral-8x7b"))
    read = [performance.weights_read_bytes(mixtral, batch) for batch in (1, 2, 8, 1000)]
    assert read == sorted(read)
    assert read[0] / read[-1] == pytest.approx(12.9 / 46.7, rel=0.03)
    assert performance.expert_parameters(rank(NEMO_SHAPE)) == 0
    dense = msgspec.structs.replace(mixtral.shape, dense_layers=16)
    half = performance.expert_parameters(rank(dense))
    assert half == performance.expert_parameters(mixtral) / 2


def test_a_step_is_bytes_over_bandwidth_and_layers() -> None:
    one = stage()
    weights = performance.weights_read_bytes(one.rank, 1) * VLLM.read["gddr-16"]
    cached = 1000 * 163_840 * VLLM.read["gddr-16"]
    latency = 40 * VLLM.layer_s * performance.CLOCK_HZ / one.card.clock_hz
    expected = latency + (weights + cached) / one.card.bandwidth
    assert performance.stage_step_s(VLLM, one, 1, 1000) == pytest.approx(expected)


def test_a_large_batch_computes() -> None:
    """4,096 sequences a step are arithmetic, at the low width where the card has units for it."""
    each = [
        performance.operations_s(FREE, stage("RTX 4090", form=form), 4096, 0.0)
        for form in ("bfloat16", "fp8", "int8", "w4a16")
    ]
    there = card("RTX 4090")
    assert there.low_ops is not None
    assert (
        each[0] == each[3] == pytest.approx(2 * (NEMO_SHAPE.parameters - 131_072 * 5120) * 4096 / there.flops)
    )
    assert each[1] == each[2] == pytest.approx(each[0] * there.flops / there.low_ops)
    attending = performance.operations_s(FREE, stage("RTX 4090"), 0, 1e6)
    assert attending == pytest.approx(4e6 * 32 * 128 * 40 / there.flops)


def test_layers_that_are_split_cost_more() -> None:
    costly = msgspec.structs.replace(VLLM, split_layer_s=1e-5)
    step = [performance.stage_step_s(costly, stage(), 1, 512, cards=cards) for cards in (1, 2)]
    assert step[1] - step[0] == pytest.approx(40e-5 * performance.CLOCK_HZ / card("RTX 3090").clock_hz)


def test_all_reduces() -> None:
    assert performance.all_reduces_s(stage(tp=1), 1) == 0
    bound = [performance.all_reduces_s(stage(link=link, tp=2), 1) for link in ("nvlink", "p2p", "host")]
    assert bound == sorted(bound)
    size = 2048 * 5120 * 2
    assert performance.all_reduces_s(stage(tp=2), 2048) == pytest.approx(80 * (20e-6 + size / 6e9))
    assert performance.all_reduces_s(stage(tp=4), 2048) == pytest.approx(80 * (40e-6 + 1.5 * size / 6e9))


@pytest.mark.parametrize(
    ("name", "engine", "model", "form", "context", "tokens_per_s"),
    [
        ("A100 80GB", "0.6.3", "qwen2.5-7b", "bfloat16", 1024, 84.28),
        ("RTX 4090", "0.10.1.1", "qwen3-8b", "bfloat16", 150, 58.7),
        ("RTX 4090", "0.10.1.1", "qwen3-4b", "bfloat16", 640, 96.05),
        ("RTX 3060 12GB", "0.11.0", "qwen2.5-7b", "awq", 512, 59.0),
    ],
)
def test_single_streams_that_others_measured(
    name: str, engine: str, model: str, form: Format, context: int, tokens_per_s: float
) -> None:
    """Rows of benchmarks/data/vllm_speed_points.csv, and what bytes alone allow."""
    there = Stage(rank=rank(known(model), form), card=card(name))
    constants = constants_for("vllm", VllmVersion.parse(engine))
    predicted = performance.decode_one(constants, [there], context)
    assert predicted == pytest.approx(tokens_per_s, rel=0.08)
    assert predicted < there.card.bandwidth / performance.weights_read_bytes(there.rank, 1)


def test_one_stream_passes_every_stage() -> None:
    stages = pipeline(20, 20)
    steps = sum(performance.stage_step_s(VLLM, one, 1, 1024, cards=2) for one in stages)
    expected = 1 / (steps + VLLM.hop_s + VLLM.step_s + VLLM.sequence_s)
    assert performance.decode_one(VLLM, stages, 1024) == pytest.approx(expected)
    assert performance.decode_one(VLLM, stages, 1024) < performance.decode_one(VLLM, [stage()], 1024)


def test_a_full_batch_is_in_all_stages_at_once() -> None:
    one, two = [stage()], pipeline(20, 20)
    assert performance.decode_full(VLLM, one, 1, 1024) == pytest.approx(
        performance.decode_one(VLLM, one, 1024)
    )
    assert performance.decode_full(VLLM, two, 1, 1024) == pytest.approx(
        performance.decode_one(VLLM, two, 1024)
    )
    assert performance.decode_full(VLLM, two, 64, 1024) > 1.3 * performance.decode_full(VLLM, one, 64, 1024)


def test_the_slowest_stage_sets_the_pace() -> None:
    even, skewed = pipeline(20, 20), pipeline(5, 35)
    assert performance.decode_full(VLLM, even, 64, 1024) > performance.decode_full(VLLM, skewed, 64, 1024)


def test_a_prompt_is_computed_in_steps() -> None:
    one = [stage()]
    short, double = (performance.prefill_s(FREE, one, tokens) for tokens in (2048, 4096))
    matrices = 2 * performance.active_parameters(rank()) * 2048 / card("RTX 3090").flops
    attention = 4 * 32 * 128 * 40 * 2048 * 1024 / card("RTX 3090").flops
    assert short == pytest.approx(matrices + attention)
    assert double == pytest.approx(2 * matrices + 4 * attention)
    halves = [stage(batched_tokens=1024)]
    assert performance.prefill_s(FREE, halves, 2048) == pytest.approx(short)


def test_a_prompt_fills_the_pipeline_once() -> None:
    one, two = [stage()], pipeline(20, 20)
    short = performance.prefill_s(FREE, two, 2048)
    assert short == pytest.approx(performance.prefill_s(FREE, one, 2048))
    long = performance.prefill_s(FREE, two, 16 * 2048)
    assert long < 0.6 * performance.prefill_s(FREE, one, 16 * 2048)


def test_the_curve_goes_to_the_largest_batch() -> None:
    curve = performance.batch_curve(VLLM, [stage()], 1024, 48)
    assert [batch for batch, _ in curve] == [1, 2, 4, 8, 16, 32, 48]
    assert dict(curve)[48] == performance.decode_full(VLLM, [stage()], 48, 1024)


def test_a_speed_with_its_curve() -> None:
    speed = performance.predict(VLLM, [stage()], context=32_768, max_num_seqs=64, kv_tokens=40_000)
    found = performance.curved(speed, VLLM, [stage()])
    assert [batch for batch, _ in found.curve] == [1, 2, 4, 8, 16, 32, 39]
    assert (found.curve[0][1], found.curve[-1][1]) == (speed.decode_one, speed.decode_full)


def test_what_is_predicted_of_a_deployment() -> None:
    speed = performance.predict(VLLM, [stage()], context=32_768, max_num_seqs=64, kv_tokens=40_000)
    assert (speed.batch, speed.batch_context) == (39, 1024)
    assert list(speed.ttft_s) == [512, 2048, 8192]
    assert speed.prefill == round(8192 / performance.prefill_s(VLLM, [stage()], 8192))
    assert speed.decode_full == round(performance.decode_full(VLLM, [stage()], 39, 1024), 1)


def test_short_contexts_and_small_caches() -> None:
    short = performance.predict(VLLM, [stage()], context=256, max_num_seqs=64, kv_tokens=300)
    assert (short.batch, short.batch_context, list(short.ttft_s)) == (1, 256, [256])
    assert short.decode_full == short.decode_one
    wide = performance.predict(VLLM, [stage()], context=8192, max_num_seqs=8, kv_tokens=10**6)
    assert wide.batch == 8


CARDS = [gpu_card(facts) for facts in known_gpus() if facts.capability >= (7, 0)]
SHAPES = [SMOL_SHAPE, LLAMA_3B_SHAPE, QWEN_7B_SHAPE, NEMO_SHAPE]
FORMATS: list[Format] = ["bfloat16", "fp8", "int8", "w4a16"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(CARDS),
    st.sampled_from(SHAPES),
    st.sampled_from(FORMATS),
    st.integers(1, 255),
    st.integers(16, 8192),
)
def test_a_larger_batch_is_never_slower(
    there: Card, shape: Shape, form: Format, batch: int, context: int
) -> None:
    stages = [Stage(rank=rank(shape, form), card=there)]
    less, more = (performance.decode_full(VLLM, stages, size, context) for size in (batch, batch + 1))
    assert more >= less * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(CARDS),
    st.sampled_from(SHAPES),
    st.sampled_from(FORMATS),
    st.integers(1, 64),
)
def test_two_cards_read_no_slower_than_one(there: Card, shape: Shape, form: Format, batch: int) -> None:
    """Without what an engine and a link cost; a KV head that cannot be split costs no more than before."""
    one = Stage(rank=rank(shape, form), card=there)
    two = Stage(rank=rank(shape, form, tp=2), card=there, link="nvlink")
    links = performance.all_reduces_s(two, batch)
    times = [performance.stage_step_s(FREE, each, batch, 1024) for each in (one, two)]
    assert times[1] - links <= times[0]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CARDS), st.sampled_from(SHAPES), st.integers(1, 20_000), st.integers(1, 5000))
def test_a_longer_prompt_takes_longer(there: Card, shape: Shape, prompt: int, more: int) -> None:
    stages = [Stage(rank=rank(shape), card=there)]
    times = [performance.prefill_s(VLLM, stages, tokens) for tokens in (prompt, prompt + more)]
    assert 0 < times[0] <= times[1]


def test_links_between_cards() -> None:
    def stage(name: str, link: LinkKind, host: float | None = None) -> Stage:
        there = msgspec.structs.replace(card(name), host_bytes_per_s=host)
        return Stage(rank=rank(tp=2), card=there, link=link)

    assert performance.link_bytes_per_s(stage("RTX 3090", "host")) == 6e9
    assert performance.link_bytes_per_s(stage("RTX 3090", "host", 0.2e9)) == 0.2e9
    assert performance.link_bytes_per_s(stage("RTX 3090", "nvlink", 0.2e9)) == 50e9
    assert performance.link_bytes_per_s(stage("A100 SXM 80GB", "nvlink")) == 150e9
