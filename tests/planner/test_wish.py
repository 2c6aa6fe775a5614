from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.config import ModelEntry
from sovereign_ai.errors import PlanError
from sovereign_ai.planner import Wish, memory, wish_for
from sovereign_ai.planner.wish import embedding_arguments, embedding_context, embedding_memory
from tests.planner.models import MINILM, MINILM_SHAPE, NEMO, SMOL, SMOL_SHAPE, model

ENTRY = ModelEntry(
    name="mistral-nemo",
    source="hf:mistralai/Mistral-Nemo-Instruct-2407",
    context=32_768,
    priority=2,
    share=3.0,
    min_tokens_per_s=20.0,
    concurrency=4,
    replicas=2,
    quantization=("fp8", "int8"),
    tier="primary",
    devices=("GPU-1", "GPU-2"),
    where="factory.yaml:7",
)


def test_a_wish_without_an_entry_asks_for_nothing() -> None:
    assert wish_for(SMOL) == Wish(model=SMOL)
    assert wish_for(SMOL, stored=["awq"]).stored == ("awq",)
    assert (wish_for(SMOL).name, wish_for(SMOL).at) == ("smollm2-135m", "")


def test_an_entry_is_taken_over() -> None:
    wish = wish_for(NEMO, ENTRY, stored=["fp8"])
    assert wish == Wish(
        model=NEMO,
        context=32_768,
        priority=2,
        share=3.0,
        min_tokens_per_s=20.0,
        concurrency=4,
        replicas=2,
        formats=("fp8", "int8"),
        stored=("fp8",),
        tier="primary",
        devices=("GPU-1", "GPU-2"),
        where="factory.yaml:7",
    )
    assert wish.at == "factory.yaml:7: "


def test_no_more_context_than_the_model_was_made_for() -> None:
    entry = msgspec.structs.replace(ENTRY, context=131_073)
    with pytest.raises(PlanError) as caught:
        wish_for(NEMO, entry)
    assert caught.value.message == (
        "factory.yaml:7: a context of 131073 tokens for `mistral-nemo` is more than the 131072 "
        "it was made for"
    )
    assert caught.value.hint == "set its context to 131072 or less"
    assert wish_for(NEMO, msgspec.structs.replace(ENTRY, context=131_072)).context == 131_072


def test_a_wished_context_is_the_only_one() -> None:
    assert Wish(model=NEMO, context=5000).contexts == (5000,)
    assert Wish(model=NEMO, context=5000).least_context == 5000


def test_contexts_of_a_wish_for_none() -> None:
    assert Wish(model=NEMO).contexts == (131_072, 65_536, 32_768, 16_384, 8192)
    assert Wish(model=SMOL).contexts == (8192,)


@pytest.mark.parametrize(
    ("most", "contexts"),
    [(32_000, (32_000, 16_384, 8192)), (10_000, (10_000, 8192)), (512, (512,)), (100, (100,))],
)
def test_contexts_of_models_of_other_lengths(most: int, contexts: tuple[int, ...]) -> None:
    other = model("other", msgspec.structs.replace(SMOL_SHAPE, context_max=most))
    assert Wish(model=other).contexts == contexts


def test_an_embedding_model_gets_all_it_was_made_for() -> None:
    assert embedding_context(Wish(model=MINILM)) == 256
    assert embedding_arguments(Wish(model=MINILM)) == {"max_tokens": 256, "max_batch": 64}
    assert embedding_arguments(Wish(model=MINILM, context=100)) == {"max_tokens": 100, "max_batch": 64}


def test_memory_of_an_embedding_model() -> None:
    """Weights in float32 and the activations of 64 texts; it keeps nothing between requests."""
    found = embedding_memory(Wish(model=MINILM), 5)
    assert (found.weights_bytes, found.kv_cache_bytes, found.overhead_bytes) == (4 * 22_713_216, 0, 5)
    assert found.activation_bytes == 64 * 256 * memory.FLOAT32 * (3 * 1536 + 3 * 384)


def test_long_texts_do_not_all_come_at_once() -> None:
    long = model("long", msgspec.structs.replace(MINILM_SHAPE, context_max=8192), "embed")
    longer = model("longer", msgspec.structs.replace(MINILM_SHAPE, context_max=16_384), "embed")
    peaks = [embedding_memory(Wish(model=one), 0).activation_bytes for one in (MINILM, long, longer)]
    assert peaks[0] < peaks[1] == peaks[2]
