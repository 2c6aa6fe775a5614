from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.catalog.quantization import read_format
from sovereign_ai.errors import UnsupportedModel


def compressed(bits: int, kind: str, activations: bool) -> dict[str, Any]:
    """As llm-compressor writes it."""
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": bits, "type": kind, "strategy": "channel"},
        "input_activations": {"num_bits": bits, "type": kind} if activations else None,
    }
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("said", "format"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq"),
        ({"quant_method": "awq", "w_bit": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4, "desc_act": True}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb4"),
        ({"quant_method": "bitsandbytes", "_load_in_4bit": True}, "bnb4"),
        (compressed(8, "float", True), "fp8"),
        (compressed(8, "float", False), "fp8"),
        (compressed(8, "int", True), "int8"),
        (compressed(4, "int", False), "w4a16"),
    ],
)
def test_what_checkpoints_say(said: dict[str, Any], format: str) -> None:
    assert read_format({"quantization_config": said}, "c") == format


def test_the_older_key_of_compressed_tensors() -> None:
    said = compressed(8, "int", True)
    del said["quant_method"]
    assert read_format({"compression_config": said}, "c") == "int8"


def test_nothing_said_is_not_quantized() -> None:
    assert read_format({"quantization_config": None}, "c") is None


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"quant_method": "gptq", "bits": 8}, "c: quantized with `gptq` at 8 bits, which is not known here"),
        ({"quant_method": "awq"}, "quantized with `awq`, which is not known here"),
        ({"quant_method": "mxfp4"}, "quantized with `mxfp4`"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized with `bitsandbytes`"),
        (compressed(4, "float", True), "quantized with `compressed-tensors`"),
        ({"quant_method": "compressed-tensors"}, "quantized with `compressed-tensors`"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 1}}, "quantized with"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "quantized with"),
        ({}, "a method without a name"),
        ("awq", "`quantization_config` is 'awq', not an object"),
    ],
)
def test_other_kinds_are_refused_by_name(said: Any, problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_format({"quantization_config": said}, "c")
