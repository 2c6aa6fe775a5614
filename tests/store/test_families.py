from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import MODEL_ARCH_NAMES, GGMLQuantizationType
from safetensors.numpy import load_file

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store import gemma, phi3
from sovereign_ai.store.convert import Conversion, read_conversion
from sovereign_ai.store.families import FAMILIES
from sovereign_ai.store.inspect import inspect
from tests.store.families import CONFIGS, metadata, random_tensors, to_gguf, tokenizer, write_family
from tests.store.tiny import keys, write_gguf

GAINS = {"torch_dtype", "head_dim", "attention_bias", "mlp_bias", "use_sliding_window"}
"""Fields that a config may say although the original leaves them to its class."""


def converted(tmp_path: Path, name: str, **changes: Any) -> Conversion:
    return read_conversion(write_family(tmp_path / "m.gguf", name, **changes))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_comes_out_as_it_was(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name).write(tmp_path / "out", Silent())
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = random_tensors(CONFIGS[name])
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert found[tensor].shape == values.shape
        assert np.array_equal(found[tensor], values), tensor


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_the_config_comes_out_as_it_was(tmp_path: Path, name: str) -> None:
    converted(tmp_path, name).write(tmp_path / "out", Silent())
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = CONFIGS[name]
    assert {key: found.get(key) for key in expected} == expected
    usual = {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "original_max_position_embeddings": 128,
        "partial_rotary_factor": 1.0,
        "position_embedding_type": "absolute",
    }
    more = found.keys() - expected.keys() - GAINS
    assert {key: found[key] for key in more} == {key: usual[key] for key in more}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_store_can_read_what_was_made(tmp_path: Path, name: str) -> None:
    conversion = converted(tmp_path, name)
    conversion.write(tmp_path / "out", Silent())
    facts = inspect(tmp_path / "out")
    assert facts.task == ("embed" if name == "bert" else "chat")
    assert facts.shape.architecture == CONFIGS[name]["architectures"][0]
    assert facts.shape.parameters == sum(values.size for values in random_tensors(CONFIGS[name]).values())
    assert conversion.license == "mit"


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "phi3", "bert"])
def test_quantised_weights_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    path = write_family(tmp_path / "m.gguf", name, kind=GGMLQuantizationType.Q8_0)
    read_conversion(path).write(tmp_path / "out", Silent())
    found = load_file(tmp_path / "out" / "model.safetensors")
    for tensor, values in random_tensors(CONFIGS[name]).items():
        assert np.allclose(found[tensor], values, atol=0.01), tensor


def test_every_name_is_one_of_gguf() -> None:
    assert set(FAMILIES) <= set(MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        ("qwen3moe", "`qwen3moe`, a mixture of experts, cannot be converted"),
        ("clip", "the vision part of a model"),
        ("nomic-bert", "`nomic-bert`, a BERT with rotary positions"),
        ("jina-bert-v2", "`jina-bert-v2`, a BERT with ALiBi"),
        ("mamba", r"architecture `mamba` cannot be converted yet \(can be: llama, qwen2"),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, architecture: str, problem: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture=architecture, fields=keys())
    with pytest.raises(UnsupportedModel, match=problem) as caught:
        read_conversion(path)
    assert caught.value.hint == "look for the same model as SafeTensors"


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("qwen2", {"qwen2__expert_count": 8}, "a mixture of experts"),
        ("qwen2", {"qwen2__rope__dimension_count": 8}, "`qwen2.rope.dimension_count` differs"),
        ("qwen2", {"qwen2__attention__value_length": 8}, "`qwen2.attention.value_length` differs"),
        ("qwen2", {"qwen2__pooling_type": 4}, "a reranker"),
        ("qwen2", {"qwen2__rope__scaling__type": "longrope"}, "RoPE scaling `longrope`"),
        ("qwen2-long", {"qwen2__rope__scaling__attn_factor": 1.5}, "YaRN with `qwen2.rope.scaling.attn_fac"),
        ("llama-3", {"llama__rope__scaling__type": "linear"}, "RoPE scaling `linear` and"),
        ("llama-3", {"llama__rope__freq_base": 1e4}, "are not those of Llama 3"),
        ("gemma3", {"gemma3__rope__scaling__type": "yarn"}, "RoPE scaling `yarn`"),
        ("gemma3", {"gemma3__attention__sliding_window_pattern": 0}, "`sliding_window_pattern` is 0"),
        ("phi3", {"phi3__attention__sliding_window": None}, "how far attention reaches"),
        ("phi3", {"phi3__rope__scaling__type": "yarn"}, "RoPE scaling `yarn`"),
        ("phi3-long", {"phi3__rope__scaling__attn_factor": 2.5}, "attention is scaled by 2.5"),
        ("bert", {"tokenizer__ggml__model": "t5"}, r"a RoBERTa or XLM-RoBERTa \(tokenizer `t5`\)"),
        ("bert", {"bert__pooling_type": 4}, "a reranker"),
    ],
)
def test_relatives_are_refused(tmp_path: Path, name: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem.replace("`sliding", "sliding")):
        converted(tmp_path, name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("qwen2", {"qwen2__pooling_type": 9}, "`qwen2.pooling_type` is 9"),
        ("qwen2", {"qwen2__rope__freq_base": 0.0}, "`qwen2.rope.freq_base` is 0.0"),
        ("qwen2", {"qwen2__rope__dimension_count": 7}, "`qwen2.rope.dimension_count` is 7 of 16"),
        ("qwen2", {"qwen2__attention__layer_norm_rms_epsilon": float("nan")}, "is not a number"),
        ("qwen2-long", {"qwen2__rope__scaling__factor": None}, "`qwen2.rope.scaling.factor` is missing"),
        ("phi3-long", {"phi3__rope__scaling__original_context_length": 1}, "an original context of 1 tokens"),
        ("bert", {"bert__block_count": 0}, "`num_hidden_layers` is 0"),
        ("bert", {"bert__embedding_length": 0}, "`bert.embedding_length` is 0"),
        ("bert", {"bert__context_length": 33}, r"`position_embd.weight` has shape \[32, 64\]"),
    ],
)
def test_contradictions_are_bad_files(
    tmp_path: Path, name: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadModelFile, match=problem):
        converted(tmp_path, name, **changes)


def test_a_biased_qwen3_is_refused(tmp_path: Path) -> None:
    weights = random_tensors(CONFIGS["qwen3"])
    weights["model.layers.0.self_attn.q_proj.bias"] = np.zeros(128, np.float32)
    path = write_family(tmp_path / "m.gguf", "qwen3", weights)
    with pytest.raises(UnsupportedModel, match=r"`blk.0.attn_q.bias` has no place in Qwen3ForCausalLM"):
        read_conversion(path)


def test_a_qwen_that_embeds(tmp_path: Path) -> None:
    converted(tmp_path, "qwen3", qwen3__pooling_type=3).write(tmp_path / "out", Silent())
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_lasttoken"] is True
    assert pooling["pooling_mode_mean_tokens"] is False
    assert pooling["word_embedding_dimension"] == 64
    assert inspect(tmp_path / "out").task == "embed"
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_the_files_of_sentence_transformers(tmp_path: Path) -> None:
    files = converted(tmp_path, "bert").blueprint.files
    assert [module["type"] for module in files["modules.json"]] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Normalize",
    ]
    assert files["1_Pooling/config.json"]["pooling_mode_mean_tokens"] is True
    assert files["sentence_bert_config.json"]["max_seq_length"] == 32
    assert converted(tmp_path, "bert", bert__pooling_type=None).blueprint.files == {}


def test_a_bert_with_one_token_type(tmp_path: Path) -> None:
    weights = random_tensors(CONFIGS["bert"])
    weights["embeddings.token_type_embeddings.weight"] = np.ones(64, np.float32)
    read_conversion(write_family(tmp_path / "m.gguf", "bert", weights)).write(tmp_path / "out", Silent())
    found = load_file(tmp_path / "out" / "model.safetensors")["embeddings.token_type_embeddings.weight"]
    assert found.shape == (1, 64)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["type_vocab_size"] == 1


@pytest.mark.parametrize(
    ("removed", "added", "problem"),
    [
        ("embeddings.token_type_embeddings.weight", None, "without token types"),
        (None, "classifier.out_proj.weight", "classifies or ranks"),
    ],
)
def test_berts_of_other_kinds(tmp_path: Path, removed: str | None, added: str | None, problem: str) -> None:
    weights = random_tensors(CONFIGS["bert"])
    if removed:
        del weights[removed]
    if added:
        weights[added] = np.ones((2, 64), np.float32)
    with pytest.raises(UnsupportedModel, match=problem):
        read_conversion(write_family(tmp_path / "m.gguf", "bert", weights))


def test_the_largest_gemmas_divide_by_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemma, "GEMMA2_27B_LAYERS", 2)
    assert converted(tmp_path, "gemma2").config["query_pre_attn_scalar"] == 64 // 4
    monkeypatch.setattr(gemma, "GEMMA3_27B_LAYERS", 7)
    assert converted(tmp_path, "gemma3").config["query_pre_attn_scalar"] == 64 // 4


def test_what_old_files_of_gemma2_leave_out(tmp_path: Path) -> None:
    config = converted(
        tmp_path,
        "gemma2",
        gemma2__attn_logit_softcapping=None,
        gemma2__final_logit_softcapping=None,
        gemma2__attention__sliding_window=None,
    ).config
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert config["sliding_window"] == 4096


def test_patterns_of_gemma3(tmp_path: Path) -> None:
    key = "gemma3__attention__sliding_window_pattern"
    every = converted(tmp_path, "gemma3", **{key: 2}).config["layer_types"]
    assert every == ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    listed = converted(tmp_path, "gemma3", **{key: [True] * 6 + [False]}).config["layer_types"]
    assert listed == ["sliding_attention"] * 6 + ["full_attention"]
    with pytest.raises(BadModelFile, match="lists 2 of 7 layers"):
        converted(tmp_path, "gemma3", **{key: [True, False]})


def test_the_first_files_of_phi3_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phi3, "MINI_4K", (2, 64, 128))
    config = converted(tmp_path, "phi3", phi3__attention__sliding_window=None).config
    assert config["sliding_window"] == 2047


def test_a_phi3_with_one_list_of_factors(tmp_path: Path) -> None:
    weights = random_tensors(CONFIGS["phi3"])
    config = CONFIGS["phi3"]
    weights = to_gguf(config, weights) | {"rope_factors_long.weight": np.ones(8, np.float32)}
    fields = metadata(config) | tokenizer(config)
    path = write_gguf(tmp_path / "m.gguf", weights, fields, architecture="phi3")
    with pytest.raises(BadModelFile, match=r"`rope_factors_short.weight` is missing"):
        read_conversion(path)


def test_answers_end_where_a_turn_ends(tmp_path: Path) -> None:
    conversion = converted(tmp_path, "phi3")
    conversion.write(tmp_path / "out", Silent())
    end = conversion.file.texts("tokenizer.ggml.tokens").index("<|end|>")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, end]
    assert conversion.config["eos_token_id"] == 2
    more = converted(tmp_path, "phi3", tokenizer__ggml__eot_token_id=0, tokenizer__ggml__eos_token_id=5)
    more.write(tmp_path / "more", Silent())
    generation = json.loads((tmp_path / "more" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 0, end]
