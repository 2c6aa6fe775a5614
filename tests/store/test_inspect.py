from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.spec import Shape
from sovereign_ai.store.convert import read_conversion
from sovereign_ai.store.inspect import inspect, weight_files
from tests.store.tiny import (
    BERT,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    tensors,
    write_folder,
)

LLAMA = {**BERT, "architectures": ["LlamaForCausalLM"]}


def plain(folder: Path, config: Any) -> Path:
    """A folder without any mark of sentence-transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file({"x": np.ones(6, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_converted_llama(tiny_gguf: Path, tmp_path: Path) -> None:
    read_conversion(tiny_gguf).write(tmp_path / "m", Silent())
    facts = inspect(tmp_path / "m")
    parameters = sum(array.size for array in tensors().values())
    assert (facts.task, facts.dtype, facts.weights_bytes) == ("chat", "float32", 4 * parameters)
    assert facts.shape == Shape(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate=INNER,
        vocabulary=VOCABULARY,
        context_max=128,
        tied_head=True,
    )
    assert facts.format is None


def test_an_embedding_model(tiny_folder: Path) -> None:
    facts = inspect(tiny_folder)
    assert facts.task == "embed"
    assert facts.weights_bytes == 10 * 32 * 4 + 64 * 8
    assert facts.shape.parameters == 320
    assert (facts.shape.kv_heads, facts.shape.head_dim) == (4, 8)
    assert facts.shape.context_max == 16


def test_a_bert_without_marks_embeds_by_its_position_table(tmp_path: Path) -> None:
    facts = inspect(plain(tmp_path / "m", BERT))
    assert (facts.task, facts.shape.context_max) == ("embed", 64)


def test_the_head_size_is_what_the_config_says(tmp_path: Path) -> None:
    assert inspect(plain(tmp_path / "m", {**LLAMA, "head_dim": 128})).shape.head_dim == 128


def test_most_of_the_weights_decide_the_dtype(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA)
    save_file({"x": np.ones(6, np.float16), "n": np.ones(2, np.float32)}, folder / "model.safetensors")
    assert inspect(folder).dtype == "float16"


def test_an_index_decides_which_files_count(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA)
    for name in ("a.safetensors", "b.safetensors", "consolidated.safetensors"):
        save_file({name: np.ones(3, np.float32)}, folder / name)
    index = {"weight_map": {"a.safetensors": "a.safetensors", "b.safetensors": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect(folder).shape.parameters == 6


def test_all_files_count_where_nothing_says_which(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {"x": 1}}', '{"weight_map": {"x": "gone.safetensors"}}', "["]
)
def test_a_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadModelFile):
        weight_files(tmp_path)


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA)
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}')
    with pytest.raises(BadModelFile, match="missing"):
        inspect(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"holds no \*.safetensors"):
        weight_files(tmp_path)


def test_weights_without_numbers(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA)
    save_file({"x": np.arange(3)}, folder / "model.safetensors")
    with pytest.raises(BadModelFile, match="the weights hold no numbers"):
        inspect(folder)


@pytest.mark.parametrize("config", ["", "[]", "{", "null", '"\\ud800"', "[" * 5000])
def test_a_config_that_is_no_object(tmp_path: Path, config: str) -> None:
    with pytest.raises(BadModelFile, match=r"config.json: not a JSON object"):
        inspect(plain(tmp_path / "m", config))


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"config.json: missing"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": None}, "does not name its architecture"),
        ({"architectures": []}, "does not name its architecture"),
        ({"architectures": ["ViTModel"]}, "ViTModel is neither a language model nor"),
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"hidden_size": "64"}, "`hidden_size` is '64', not a positive number"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        ({"num_key_value_heads": True}, "`num_key_value_heads` is True"),
        ({"auto_map": {"AutoModel": "x.y"}}, r"config.json: the model needs code of its own"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        inspect(plain(tmp_path / "m", LLAMA | changes))


def test_code_for_the_tokenizer_is_refused_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(UnsupportedModel, match=r"tokenizer_config.json: the model needs code"):
        inspect(folder)


def test_a_window_and_its_layers_are_read(tmp_path: Path) -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 16}
    shape = inspect(plain(tmp_path / "m", mistral)).shape
    assert (shape.sliding_window, shape.sliding_layers) == (16, 1)


def test_a_stored_copy_of_a_tied_head_is_not_counted(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA | {"tie_word_embeddings": True})
    arrays = {"model.embed_tokens.weight": np.ones(6, np.float32), "lm_head.weight": np.ones(6, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    facts = inspect(folder)
    assert (facts.shape.parameters, facts.weights_bytes) == (6, 48)


AWQ = {"quant_method": "awq", "bits": 4}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
INT8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {}}},
}
W4A16 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "input_activations": None}},
}


@pytest.mark.parametrize(
    ("said", "format", "arrays", "parameters"),
    [
        (
            AWQ,
            "awq",
            {
                "q.qweight": np.ones((16, 2), np.int32),
                "q.qzeros": np.ones((1, 2), np.int32),
                "q.scales": np.ones((1, 16), np.float16),
                "embed.weight": np.ones((4, 5), np.float16),
            },
            16 * 16 + 20,
        ),
        (
            BNB,
            "bnb4",
            {
                "q.weight": np.ones((32, 1), np.uint8),
                "q.weight.absmax": np.ones(1, np.float32),
                "q.weight.quant_map": np.ones(16, np.float32),
                "norm.weight": np.ones(3, np.float16),
            },
            64 + 3,
        ),
        (
            INT8,
            "int8",
            {
                "q.weight": np.ones((4, 4), np.int8),
                "q.weight_scale": np.ones((4, 1), np.float32),
                "q.bias": np.ones(4, np.float16),
            },
            16 + 4,
        ),
        (
            W4A16,
            "w4a16",
            {
                "q.weight_packed": np.ones((4, 2), np.int32),
                "q.weight_shape": np.ones(2, np.int64),
                "q.weight_scale": np.ones((4, 1), np.float16),
            },
            4 * 16,
        ),
    ],
)
def test_packed_weights_count_and_their_scales_do_not(
    tmp_path: Path, said: Any, format: str, arrays: dict[str, np.ndarray[Any, Any]], parameters: int
) -> None:
    folder = plain(tmp_path / "m", LLAMA | {"quantization_config": said})
    save_file(arrays, folder / "model.safetensors")
    facts = inspect(folder)
    assert (facts.format, facts.shape.parameters) == (format, parameters)
    assert facts.weights_bytes == sum(array.nbytes for array in arrays.values())


def test_the_config_names_the_dtype_where_all_is_quantized(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", LLAMA | {"quantization_config": INT8, "torch_dtype": "float16"})
    save_file({"q.weight": np.ones((4, 4), np.int8)}, folder / "model.safetensors")
    assert inspect(folder).dtype == "float16"


@pytest.mark.parametrize(("limit", "context"), [("null", 64), ("512", 64), ("32", 32)])
def test_an_embedding_model_keeps_to_the_shorter_limit(tmp_path: Path, limit: str, context: int) -> None:
    folder = plain(tmp_path / "m", BERT)
    (folder / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {limit}}}')
    assert inspect(folder).shape.context_max == context


@pytest.mark.parametrize("limit", ["0", "true", '"long"'])
def test_a_limit_that_cannot_be(tmp_path: Path, limit: str) -> None:
    folder = plain(tmp_path / "m", BERT)
    (folder / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {limit}}}')
    with pytest.raises(UnsupportedModel, match=r"sentence_bert_config.json: `max_seq_length` is"):
        inspect(folder)
