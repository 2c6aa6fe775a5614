from __future__ import annotations

import re

import pytest

from sovereign_ai import catalog
from sovereign_ai.catalog.parameters import parameter_count
from sovereign_ai.catalog.shapes import KnownShape, find_shape, known_shapes, nearest_shapes
from sovereign_ai.config import HUB_SOURCE, MODEL_NAME

BY_NAME = {known.name: known for known in known_shapes()}


@pytest.mark.parametrize("known", known_shapes(), ids=lambda known: known.name)
def test_the_parameters_follow_from_the_shape(known: KnownShape) -> None:
    assert parameter_count(known.shape, positions=known.positions) == known.shape.parameters


@pytest.mark.parametrize("known", known_shapes(), ids=lambda known: known.name)
def test_the_hub_counts_as_many(known: KnownShape) -> None:
    """`8_030_261_248`, or `33_360_512 less 512 position ids`, which nobody computes with."""
    if known.checked != "formula":
        numbers = [int(number.replace("_", "")) for number in re.findall(r"\d[\d_]*", known.checked)]
        assert numbers[0] - sum(numbers[1:]) == known.shape.parameters


@pytest.mark.parametrize("known", known_shapes(), ids=lambda known: known.name)
def test_entries_are_sound(known: KnownShape) -> None:
    shape = known.shape
    assert MODEL_NAME.fullmatch(known.name)
    assert HUB_SOURCE.fullmatch(known.hub)
    assert known.source == f"https://huggingface.co/{known.hub}/blob/main/config.json"
    assert shape.heads % shape.kv_heads == 0
    assert (shape.sliding_window > 0) == (shape.sliding_layers > 0)
    assert known.context_max >= 128
    assert known.task == "embed" or shape.architecture.endswith(("ForCausalLM", "ForConditionalGeneration"))


def test_names_are_of_one_entry_each() -> None:
    names = [name for known in known_shapes() for name in (known.name, *known.aliases)]
    assert len(names) == len(set(names))
    assert len(known_shapes()) >= 45


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistral-nemo", 12_247_782_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-4b", 4_022_468_096),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_counts_that_many_know(name: str, parameters: int) -> None:
    assert BY_NAME[name].shape.parameters == parameters


def test_every_name_finds_its_entry() -> None:
    for known in known_shapes():
        for name in (known.name, *known.aliases, known.hub, known.hub.upper(), known.hub.partition("/")[2]):
            assert find_shape(name) is known, name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("mistralai/Mistral-Nemo-Base-2407", "mistral-nemo"),
        ("Mistral Nemo", "mistral-nemo"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("llama3_8b", "llama-3-8b"),
        ("Qwen2.5-14B(R1-Distill)", "deepseek-r1-distill-qwen-14b"),
        ("Qwen2.5-14B(something)", "qwen2.5-14b"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "mistral-7b-v0.2"),
        ("Mistral-7B-Instruct", "mistral-7b-v0.3"),
        ("google/gemma-2-9b", "gemma-2-9b"),
        ("Yi-1.5-34B", "yi-1.5-34b"),
        ("all-MiniLM-L6-v2", "minilm-l6"),
        ("e5-base", "e5-base"),
    ],
)
def test_names_that_people_use(name: str, found: str) -> None:
    known = find_shape(name)
    assert known is not None
    assert known.name == found


@pytest.mark.parametrize(
    "name", ["Qwen2.5-7B-Instruct-1M", "Qwen3.8-27B", "NousResearch/Hermes-3-Llama-3.1-8B", ""]
)
def test_a_word_not_understood_makes_another_model(name: str) -> None:
    assert find_shape(name) is None


def test_the_nearest_names_for_a_slip_of_the_finger() -> None:
    assert nearest_shapes("mistral-nemmo")[0] == "mistral-nemo"
    assert "llama-3.1-8b" in nearest_shapes("llama-3.1-9b")
    assert nearest_shapes("zzzzzz") == ()


def test_windows_follow_the_architecture() -> None:
    found = {
        name: (BY_NAME[name].shape.sliding_window, BY_NAME[name].shape.sliding_layers) for name in BY_NAME
    }
    assert found["mistral-7b-v0.1"] == (4096, 32)
    assert found["mistral-7b-v0.3"] == (0, 0)
    assert found["gemma-2-9b"] == (4096, 21)
    assert found["gemma-3-27b"] == (1024, 52)
    assert found["gpt-oss-20b"] == (128, 12)


def test_the_default_models_have_the_same_sizes_here() -> None:
    for name, here in (("smollm2-135m", "smollm2-135m"), ("minilm-l6-v2", "minilm-l6")):
        shape, known = catalog.default_model(name).shape, BY_NAME[here].shape
        assert (shape.parameters, shape.layers, shape.context_max) == (
            known.parameters,
            known.layers,
            known.context_max,
        )
