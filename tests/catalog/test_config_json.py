from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.catalog.config_json import parameter_count, read_config
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.errors import UnsupportedModel
from tests.catalog.configs import PUBLISHED, Config

WHERE = "m/config.json"
LLAMA = PUBLISHED["llama-3.1-8b"]
QWEN = PUBLISHED["qwen2.5-7b"]
MOE = PUBLISHED["qwen3-30b-a3b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_give_the_shapes_of_the_catalog(name: str) -> None:
    known = find_shape(name)
    facts = read_config(PUBLISHED[name], WHERE)
    assert known is not None
    assert facts.shape == known.shape
    assert (facts.task, facts.format, facts.dtype) == (known.task, None, known.dtype)


def test_the_sum_is_that_of_the_shape() -> None:
    assert parameter_count(read_config(LLAMA, WHERE).shape) == 8_030_261_248


def test_biases_that_a_config_asks_for_are_counted() -> None:
    plain = read_config(LLAMA, WHERE).shape.parameters
    biased = read_config(LLAMA | {"attention_bias": True, "mlp_bias": True}, WHERE).shape.parameters
    assert biased - plain == 32 * ((4096 + 2 * 1024 + 4096) + (2 * 14336 + 4096))


def test_what_a_config_may_leave_out() -> None:
    shape = read_config({key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}, WHERE).shape
    assert (shape.kv_heads, shape.tied_head) == (32, False)
    gpt = {"architectures": ["NomicBertModel"], "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32}
    assert read_config(gpt | {"vocab_size": 100}, WHERE).shape.intermediate == 256


def test_the_dtype_by_its_newer_name_or_the_usual_one() -> None:
    assert read_config(LLAMA | {"torch_dtype": None, "dtype": "float16"}, WHERE).dtype == "float16"
    assert read_config(LLAMA | {"torch_dtype": ["auto"]}, WHERE).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("architecture", "embeds", "task"),
    [
        ("LlamaForCausalLM", False, "chat"),
        ("LlamaForCausalLM", True, "embed"),
        ("MistralModel", False, "embed"),
        ("BertForMaskedLM", False, "embed"),
        ("SomethingNewForCausalLM", False, "chat"),
    ],
)
def test_what_a_model_is_for(architecture: str, embeds: bool, task: str) -> None:
    facts = read_config(LLAMA | {"architectures": [architecture]}, WHERE, embeds=embeds)
    assert facts.task == task
    assert facts.shape.tied_head is (task == "embed")


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        (QWEN | {"use_sliding_window": True, "sliding_window": 4096}, 0, 0),
        (QWEN | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 8}, 4096, 20),
        (QWEN | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": None}, 0, 0),
        (LLAMA | {"sliding_window": 4096}, 0, 0),
        (LLAMA | {"sliding_window": 0}, 0, 0),
        (
            LLAMA
            | {"sliding_window": 64, "layer_types": ["sliding_attention"] * 8 + ["full_attention"] * 24},
            64,
            8,
        ),
        (LLAMA | {"sliding_window": None, "layer_types": ["full_attention"] * 32}, 0, 0),
        (LLAMA | {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 64, "head_dim": 128}, 64, 16),
        (
            LLAMA
            | {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 64, "_sliding_window_pattern": 4},
            64,
            24,
        ),
    ],
)
def test_which_layers_see_a_window_only(config: Config, window: int, layers: int) -> None:
    shape = read_config(config, WHERE).shape
    assert (shape.sliding_window, shape.sliding_layers) == (window, layers)


def test_shared_experts_and_dense_first_layers() -> None:
    shape = read_config(
        MOE | {"n_shared_experts": 2, "first_k_dense_replace": 3, "n_routed_experts": 128}, WHERE
    ).shape
    assert (shape.shared_intermediate, shape.dense_layers) == (2 * 768, 3)
    shape = read_config(
        MOE | {"shared_expert_intermediate_size": 5632, "mlp_only_layers": [0, 1]}, WHERE
    ).shape
    assert (shape.shared_intermediate, shape.dense_layers) == (5632, 2)


def test_a_model_of_experts_only_needs_no_dense_width() -> None:
    config = {key: MOE[key] for key in MOE if key != "intermediate_size"}
    assert read_config(config, WHERE).shape.intermediate == 768


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": None}, "does not name its architecture"),
        ({"architectures": [1]}, "does not name its architecture"),
        ({"architectures": ["ViTModel"]}, "ViTModel is neither a language model nor an embedding model"),
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "T5ForConditionalGeneration is an encoder-decoder",
        ),
        ({"is_encoder_decoder": True}, "LlamaForCausalLM is an encoder-decoder"),
        ({"kv_lora_rank": 512}, r"has multi-head latent attention \(`kv_lora_rank`\)"),
        ({"mamba_d_state": 128}, r"has state-space layers \(`mamba_d_state`\)"),
        ({"state_size": 16}, "has state-space layers"),
        ({"text_config": {"linear_num_key_heads": 16}}, r"has linear attention \(`linear_num_key_heads`\)"),
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"hidden_size": "64"}, "`hidden_size` is '64', not a positive number"),
        ({"hidden_size": -64}, "`hidden_size` is -64, not a positive number"),
        ({"hidden_size": 64.0}, "`hidden_size` is 64.0, not a positive number"),
        ({"hidden_size": 10**8}, "`hidden_size` is 100000000, not a plausible number"),
        ({"vocab_size": 10**12}, "`vocab_size` is 1000000000000, not a plausible number"),
        ({"max_position_embeddings": 10**9}, "not a plausible number"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        (
            {"num_attention_heads": 24},
            "`num_attention_heads` is 24, which does not divide `hidden_size` 4096",
        ),
        ({"num_key_value_heads": 5}, "`num_key_value_heads` is 5, which does not divide the 32 heads"),
        ({"num_key_value_heads": True}, "`num_key_value_heads` is True"),
        ({"tie_word_embeddings": "yes"}, "`tie_word_embeddings` is 'yes', neither true nor false"),
        ({"layer_types": ["full_attention"]}, "`layer_types` does not list 32 layers"),
        ({"layer_types": "full_attention"}, "`layer_types` does not list 32 layers"),
        ({"layer_types": ["conv"] * 32}, "`layer_types` has 'conv', which cannot be planned for"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized with `mxfp4`, which is not known"),
    ],
)
def test_what_cannot_be_planned_for_is_named(changes: Config, problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem) as caught:
        read_config(LLAMA | changes, WHERE)
    assert caught.value.message.startswith(f"{WHERE}: ")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoder_sparse_step": 2}, "`decoder_sparse_step` is not 1"),
        ({"mlp_only_layers": [3]}, r"`mlp_only_layers` is \[3\], not the first layers"),
        ({"mlp_only_layers": 3}, "`mlp_only_layers` is 3"),
        ({"num_experts_per_tok": None}, "`num_experts_per_tok` is missing"),
        ({"num_experts_per_tok": 200}, "`num_experts_per_tok` is 200, not a plausible number"),
        ({"first_k_dense_replace": 49}, "`first_k_dense_replace` is 49"),
    ],
)
def test_experts_that_cannot_be_planned_for_are_named(changes: Config, problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_config(MOE | changes, WHERE)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted({key for config in PUBLISHED.values() for key in config} | {"quantization_config", "n_embd"})


@given(st.sampled_from(sorted(PUBLISHED)), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3))
def test_any_value_is_read_or_refused(name: str, changes: dict[str, Any]) -> None:
    try:
        facts = read_config(PUBLISHED[name] | changes, WHERE)
    except UnsupportedModel as error:
        assert error.message.startswith(f"{WHERE}: ")
    else:
        assert facts.shape.parameters > 0
        assert facts.shape.heads % facts.shape.kv_heads == 0
