from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.catalog.parameters import family, layout, parameter_count
from sovereign_ai.spec import Shape, Vision

TINY = Shape(
    architecture="LlamaForCausalLM",
    parameters=0,
    layers=2,
    hidden=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    intermediate=16,
    vocabulary=10,
    context_max=32,
)
LLAMA = 2 * 10 * 8 + 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16 + 2 * 8) + 8


def counted(architecture: str, **changes: object) -> int:
    return parameter_count(msgspec.structs.replace(TINY, architecture=architecture, **changes))


@pytest.mark.parametrize(
    ("architecture", "beside"),
    [
        ("LlamaForCausalLM", 0),
        ("SomethingNewForCausalLM", 0),
        ("Qwen2ForCausalLM", 2 * (8 + 4 + 4)),
        ("Qwen3ForCausalLM", 2 * (4 + 4)),
        ("Olmo2ForCausalLM", 2 * (8 + 4)),
        ("Gemma2ForCausalLM", 2 * (2 * 8)),
        ("OlmoForCausalLM", -2 * (2 * 8) - 8),
    ],
)
def test_what_architectures_have_beside_llamas_matrices(architecture: str, beside: int) -> None:
    assert counted(architecture) == LLAMA + beside


def test_experts_take_the_place_of_the_dense_layer() -> None:
    experts = {"experts": 4, "experts_per_token": 2, "expert_intermediate": 16}
    moe = counted("MixtralForCausalLM", **experts)
    assert moe == LLAMA + 2 * (3 * 3 * 8 * 16 + 4 * 8)
    assert counted("MixtralForCausalLM", **experts, dense_layers=2) == LLAMA
    shared = counted("Qwen2MoeForCausalLM", **experts, shared_intermediate=32)
    assert shared == moe + 2 * (8 + 4 + 4) + 2 * (3 * 8 * 32 + 8)


def test_a_table_of_positions_may_be_longer_than_the_context() -> None:
    bert = msgspec.structs.replace(TINY, architecture="BertModel", gated_mlp=False, tied_head=True)
    assert parameter_count(bert, positions=64) - parameter_count(bert) == 32 * 8
    roberta = msgspec.structs.replace(bert, architecture="XLMRobertaModel")
    assert parameter_count(roberta) - parameter_count(bert) == 2 * 8 - 8


def test_extras_of_a_config_go_before_those_of_the_architecture() -> None:
    biased = layout("LlamaForCausalLM")._replace(o_bias=True)
    assert parameter_count(TINY, extras=biased) == LLAMA + 2 * 8


def test_an_encoder_that_is_not_known_is_a_plain_one() -> None:
    vision = Vision(layers=3, hidden=4, intermediate=16, patches=9, outputs=9)
    seen = counted("LlavaForConditionalGeneration", vision=vision)
    assert seen == LLAMA + 3 * (4 * 4 * 4 + 2 * 4 * 16) + (4 + 8) * 8


def test_families() -> None:
    names = ("LlamaForCausalLM", "BertModel", "BertForMaskedLM", "Gemma3ForConditionalGeneration", "Odd")
    assert [family(name) for name in names] == ["Llama", "Bert", "Bert", "Gemma3", "Odd"]
