"""Public tables → cases; and what the formulas say of them. benchmarks/prediction.py shows every row."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

from sovereign_ai.errors import ConfigError
from sovereign_ai.planner import evidence, memory
from sovereign_ai.planner.calibration import Point
from sovereign_ai.planner.evidence import (
    MemoryCase,
    Skipped,
    decode_points,
    memory_cases,
    prompt_points,
    weighed,
)
from sovereign_ai.spec import Format

DATA = Path(__file__).parents[2] / "benchmarks" / "data"

LOG = {
    "gpu": "T4",
    "cuda_total_gib": "14.56",
    "tp": "1",
    "vllm": "0.6.5",
    "model": "Qwen2.5-0.5B",
    "quant": "fp16",
    "max_model_len": "32768",
    "max_num_batched_tokens": "32768",
    "max_num_seqs": "256",
    "enforce_eager": "n",
    "gpu_memory_utilization": "0.9",
    "kv_gib_per_gpu": "",
    "kv_blocks": "",
    "kv_tokens": "928944",
    "kv_bytes_per_token_per_gpu": "",
    "grade": "A",
    "notes": "",
}
SPEED = {
    "gpu": "RTX 3090 24GB",
    "n_gpu": "1",
    "link_parallel": "",
    "engine": "llama.cpp 3e12fbd",
    "model": "Llama-3-8B",
    "quant": "Q4_K_M",
    "weights_gib": "4.58",
    "batch": "1",
    "test": "pp512/tg1024",
    "decode_tok_s": "111.5",
    "source": "a page",
}


def table(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def case(**cells: str) -> MemoryCase:
    (made,), skipped = memory_cases([LOG | cells])
    assert not skipped
    return made


def speed(**cells: str) -> Point:
    (made,), skipped = decode_points([SPEED | cells])
    assert not skipped
    return made


def why_not(rows: tuple[list[MemoryCase], list[Skipped]] | tuple[list[Point], list[Skipped]]) -> str:
    (skipped,) = rows[1]
    assert not rows[0]
    return skipped.reason


def test_the_first_number_of_a_cell() -> None:
    cells = ("0.90 (default)", "-3 GiB", "none", "", None)
    assert [evidence.number(cell) for cell in cells] == [0.9, -3.0, None, None, None]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("bnb-4bit + LoRA", "bnb4"),
        ("AWQ-4bit", "awq"),
        ("GPTQ-Int4", "gptq"),
        ("Q4_K_M", "w4a16"),
        ("4.5bpw", "w4a16"),
        ("FP8 checkpoint (Marlin W8A16)", "fp8"),
        ("Q8_0", "int8"),
        ("float32", "float32"),
        ("BF16", "bfloat16"),
        ("F16", "float16"),
        ("?", None),
    ],
)
def test_formats_as_tables_write_them(text: str, form: Format | None) -> None:
    assert evidence.weights_format(text) == form


def test_a_log_that_states_everything() -> None:
    made = case(tp="2", enforce_eager="y")
    (rank,) = made.ranks
    assert (made.label, made.grade, made.context, made.kv_tokens) == (
        "T4 · Qwen2.5-0.5B · fp16 · vLLM 0.6.5",
        "A",
        32_768,
        928_944,
    )
    assert (rank.tp, rank.eager, rank.v1, rank.batched_tokens, rank.max_num_seqs) == (
        2,
        True,
        False,
        32_768,
        256,
    )
    assert (made.assumed, made.refused, made.utilization) == ((), False, 0.9)


def test_what_a_log_does_not_state_is_assumed() -> None:
    made = case(max_model_len="", max_num_batched_tokens="", max_num_seqs="", gpu_memory_utilization="")
    assert made.assumed == ("max_model_len", "max_num_seqs", "gpu_memory_utilization")
    assert (made.context, made.utilization, made.ranks[0].max_num_seqs) == (32_768, 0.9, 256)
    assert made.ranks[0].batched_tokens == 2048


@pytest.mark.parametrize(
    ("version", "context", "batched"),
    [
        ("0.6.5", "8192", 8192),
        ("0.6.5", "1024", 2048),
        ("0.6.5", "65536", 512),
        ("0.6.6", "65536", 2048),
        ("0.28.0", "8192", 2048),
    ],
)
def test_the_step_that_vllm_takes_by_itself(version: str, context: str, batched: int) -> None:
    made = case(vllm=version, max_model_len=context, max_num_batched_tokens="")
    assert made.ranks[0].batched_tokens == batched


def test_an_unknown_card_runs_v1() -> None:
    assert case(gpu="some card", vllm="0.8.5").ranks[0].v1
    assert not case(vllm="0.8.5").ranks[0].v1  # a T4 does not


@pytest.mark.parametrize(
    ("cells", "tokens"),
    [
        ({"kv_tokens": "1000"}, 1000),
        ({"kv_tokens": "", "kv_blocks": "100"}, 1600),
        ({"kv_tokens": "", "kv_gib_per_gpu": "1", "kv_bytes_per_token_per_gpu": "1024"}, 1_048_576),
        ({"kv_tokens": "", "kv_gib_per_gpu": "1"}, None),
        ({"kv_tokens": ""}, None),
        ({"kv_gib_per_gpu": "-0.3"}, 0),
        ({"kv_blocks": "0"}, 0),
        ({"notes": "Refused to start"}, 0),
    ],
)
def test_tokens_that_a_log_gives(cells: dict[str, str], tokens: int | None) -> None:
    made = case(**cells)
    assert (made.kv_tokens, made.refused) == (tokens, tokens == 0)


def test_whether_it_is_said_to_start() -> None:
    assert case().predicted_to_start
    assert not case(max_model_len="2000000").predicted_to_start
    # A context that nobody stated is not held against the card.
    assert case(max_model_len="", cuda_total_gib="3").predicted_to_start
    none = case(cuda_total_gib="1")
    assert (none.predicted_tokens, none.predicted_to_start, none.predicted_bytes < 0) == (0, False, True)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"model": "?"}, "no shape known for `?`"),
        ({"quant": "?"}, "weights format `?` not understood"),
        ({"cuda_total_gib": ""}, "the card's memory is not stated"),
        ({"vllm": "main"}, "`main` is not a version of vLLM"),
    ],
)
def test_logs_that_say_too_little(cells: dict[str, str], reason: str) -> None:
    assert why_not(memory_cases([LOG | cells])) == reason


def miss(made: MemoryCase) -> float:
    assert made.kv_tokens
    return abs(made.predicted_tokens / made.kv_tokens - 1)


def test_the_formulas_against_start_up_logs() -> None:
    """Of grade A, with every setting stated: nothing is assumed there that could be wrong instead."""
    cases, _ = memory_cases(table("vllm_log_points.csv"))
    misses = [miss(one) for one in cases if one.grade == "A" and not one.assumed and one.kv_tokens]
    assert len(misses) >= 8
    assert statistics.median(misses) <= 0.03
    assert max(misses) <= 0.10


def test_nothing_is_said_to_start_that_was_refused() -> None:
    cases, _ = memory_cases(table("vllm_log_points.csv"))
    refused = [one for one in cases if one.refused]
    assert refused
    assert not [one.label for one in refused if one.predicted_to_start]


def test_a_decode_speed() -> None:
    made = speed()
    assert (made.name, made.engine, made.tokens_per_s, made.context) == (
        "GeForce RTX 3090",
        "llama.cpp",
        111.5,
        512,
    )
    assert (made.cards, made.rank.tp, made.rank.format, made.source) == (1, 1, "w4a16", "a page")
    assert made.weights_bytes == pytest.approx(4.58 * 2**30)
    assert made.batch == 1
    assert speed(weights_gib="").weights_bytes is None
    assert (speed(batch="8").batch, speed(batch="").batch) == (8, 1)


def test_speeds_of_several_cards() -> None:
    layers, split = speed(n_gpu="4", link_parallel="PP"), speed(n_gpu="2", link_parallel="NVLink, TP=2")
    assert (layers.cards, layers.rank.tp) == (4, 1)
    assert (split.cards, split.rank.tp) == (2, 2)
    assert speed(n_gpu="", link_parallel="TP").cards == 1


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"decode_tok_s": ""}, "no decode speed"),
        ({"gpu": "MI300X"}, "`MI300X` is not known"),
        ({"model": "?"}, "`?` is not known"),
        ({"quant": "unknown"}, "`unknown` is not known"),
    ],
)
def test_speeds_that_cannot_be_used(cells: dict[str, str], reason: str) -> None:
    assert why_not(decode_points([SPEED | cells])) == reason


def test_engines_by_name() -> None:
    names = ("llama.cpp 3e12fbd", "vLLM 0.6.3", "ExLlamaV2", "torch 2.5", "MLX")
    assert [evidence.engine_of(name) for name in names] == ["llama.cpp", "vllm", "exllama", "torch", "mlx"]


def test_speeds_of_prompts() -> None:
    (made,) = prompt_points([SPEED | {"prefill_tok_s": "3690.3"}])
    assert (made.name, made.engine, made.length) == ("GeForce RTX 3090", "llama.cpp", 512)
    assert (made.tokens_per_s, made.rank.batched_tokens) == (3690.3, 8192)
    for cells in (
        {"prefill_tok_s": ""},
        {"test": "tg512"},
        {"gpu": "MI300X"},
        {"model": "?"},
        {"quant": "?"},
        {"n_gpu": "2"},
    ):
        assert prompt_points([SPEED | {"prefill_tok_s": "3690.3"} | cells]) == []


def part(kind: str, size: int, *, model: str = "qwen2.5-7b", measured: int = 1000) -> evidence.Weighed:
    return weighed({"model": model, "kind": kind, "size": str(size), "measured_bytes": str(measured)})


@pytest.mark.parametrize(
    ("kind", "size", "what", "predicted"),
    [
        ("kv", 1000, "KV cache of 1,000 tokens", 1008 * 57_344),
        ("step", 2048, "peak of a step of 2,048 tokens", 2048 * 2 * (3 * 18_944 + 3 * 3584)),
        ("context", 80 << 30, "CUDA context and cuBLAS", memory.CUDA_CONTEXT_LARGE_BYTES),
    ],
)
def test_a_part_that_was_weighed_by_itself(kind: str, size: int, what: str, predicted: int) -> None:
    found = part(kind, size)
    assert (found.model, found.what, found.measured_bytes) == ("qwen2.5-7b", what, 1000)
    assert found.predicted_bytes == predicted
    assert found.error == pytest.approx(predicted / 1000 - 1)


def test_weights_and_graphs_that_were_weighed() -> None:
    assert part("weights", 0, measured=15_231_233_024).error == pytest.approx(0.005, abs=0.001)
    assert part("graphs", 256).predicted_bytes / 2**30 == pytest.approx(0.7)
    assert part("graphs", 256).what == "CUDA graphs for 256 sequences"


def test_what_cannot_be_weighed() -> None:
    assert part("context", 80 << 30, model="").model == "–"
    assert part("context", 80 << 30, measured=0).error == 0.0
    with pytest.raises(ConfigError, match="no shape known for `nobody`"):
        part("kv", 1, model="nobody")
    with pytest.raises(ConfigError, match="`sampler` is no kind of memory") as caught:
        part("sampler", 1)
    assert caught.value.hint == "one of: context, weights, kv, step, graphs"


@pytest.mark.parametrize(
    ("test", "context"),
    [
        ("pp512/tg1024", 512),
        ("tg_128", 64),
        ("prompt 16k", 16_384),
        ("prompt 500", 500),
        ("ctx1024", 1024),
        ("?", 256),
    ],
)
def test_how_long_a_test_is_on_average(test: str, context: int) -> None:
    assert speed(test=test).context == context


def test_rows_of_the_tables_that_are_used() -> None:
    cases, left = memory_cases(table("vllm_log_points.csv"))
    points, skipped = decode_points(table("decode_points.csv"))
    assert (len(cases) >= 20, len(left) <= 6) == (True, True)
    assert (len(points), len(skipped)) == (344, 2)


def test_a_kv_cache_of_eight_bit_is_told_by_its_tokens() -> None:
    assert case(kv_bytes_per_token_per_gpu="6144").ranks[0].kv_width == 1
    assert case(kv_bytes_per_token_per_gpu="12288").ranks[0].kv_width == 2


def test_v1_computes_longer_steps_on_large_cards() -> None:
    steps = {
        gpu: case(gpu=gpu, cuda_total_gib="79.1", vllm="0.9.0", max_num_batched_tokens="")
        .ranks[0]
        .batched_tokens
        for gpu in ("H100 80GB", "A100 80GB")
    }
    assert steps == {"H100 80GB": 8192, "A100 80GB": 2048}


def test_a_label_of_several_cards_is_still_the_card() -> None:
    """Compute capability 7.5 has no V1 before it was the only engine."""
    assert not case(gpu="T4 x2", vllm="0.9.0").ranks[0].v1
