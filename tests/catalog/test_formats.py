from __future__ import annotations

from typing import get_args

import pytest

from sovereign_ai.catalog.formats import format_facts, kernel, supports
from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.spec import Format

FORMATS: tuple[Format, ...] = get_args(Format)
parse = VllmVersion.parse


def test_every_format_has_facts() -> None:
    for format in FORMATS:
        assert format_facts(format).format == format


def test_the_rank_follows_the_width() -> None:
    for format in FORMATS:
        facts = format_facts(format)
        assert facts.rank == (0 if facts.bytes_per_parameter >= 2 else 1 if facts.activations else 2)


def test_a_published_awq_checkpoint_closes() -> None:
    """Mistral-7B-Instruct-v0.2-AWQ on the hub: 4.15 GB of SafeTensors."""
    embedding = 2 * 32_000 * 4096
    linear = 7_241_732_096 - embedding
    size = 2 * embedding + linear * format_facts("awq").bytes_per_parameter
    assert size == pytest.approx(4.15e9, rel=0.01)


@pytest.mark.parametrize(
    ("format", "card", "version", "how"),
    [
        ("fp8", "8.9", "0.5.5", "native"),
        ("fp8", "8.6", "0.5.5", "weight-only"),
        ("fp8", "7.5", "0.13.0", None),
        ("fp8", "7.5", "0.14", "weight-only"),
        ("int8", "8.6", "0.5.5", "native"),
        ("int8", "12.0", "0.24.0", None),
        ("w4a16", "8.6", "0.5.5", "weight-only"),
        ("w4a16", "7.5", "0.5.5", None),
        ("awq", "7.5", "0.5.5", "weight-only"),
        ("gptq", "7.0", "0.5.5", "weight-only"),
        ("bfloat16", "8.0", "0.5.5", "native"),
        ("bfloat16", "7.5", "0.24.0", None),
        ("float16", "7.0", "0.5.5", "native"),
        ("float32", "7.0", "0.5.5", "native"),
        ("bnb4", "8.6", "0.27.1", "weight-only"),
        ("bnb4", "8.6", "0.28.0", None),
    ],
)
def test_how_cards_multiply(format: Format, card: str, version: str, how: str | None) -> None:
    assert kernel(format, card, parse(version)) == how
    assert (supports(format, card, parse(version)) == "") is (how is not None)


@pytest.mark.parametrize(
    ("format", "card", "version", "reason"),
    [
        ("float16", "6.1", "0.5.5", "vLLM needs compute capability 7.0, the card has 6.1"),
        ("float16", None, "0.5.5", "vLLM needs compute capability 7.0, the card has none"),
        ("bfloat16", "7.5", "0.5.5", "bfloat16 needs compute capability 8.0 or higher, the card has 7.5"),
        ("fp8", "7.5", "0.5.5", "fp8 needs vLLM 0.14.0 on compute capability 7.5"),
        ("fp8", "7.0", "0.24", "fp8 needs compute capability 7.5 or higher, the card has 7.0"),
        ("int8", "12.0", "0.24", "int8 needs compute capability 7.5 to below 10.0, the card has 12.0"),
        ("bnb4", "8.6", "0.32.0", "vLLM has no bnb4 since 0.28.0, this is 0.32.0"),
    ],
)
def test_the_reason_has_the_number(format: Format, card: str | None, version: str, reason: str) -> None:
    assert supports(format, card, parse(version)) == reason


def test_only_bitsandbytes_needs_arguments_and_cannot_be_split() -> None:
    for format in FORMATS:
        facts = format_facts(format)
        own = format == "bnb4"
        assert (facts.quantization, facts.load_format) == (("bitsandbytes",) * 2 if own else (None, None))
        assert facts.tensor_parallel is not own
