"""What config.json says of quantized weights → Format. Pure.

Keys by https://huggingface.co/docs/transformers/main_classes/quantization and, for compressed-tensors,
https://github.com/neuralmagic/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.spec import Format

KEYS = ("quantization_config", "compression_config")
"""The second is the older name that compressed-tensors used."""

SCHEMES: tuple[tuple[tuple[int, str, bool], Format], ...] = (
    ((8, "float", True), "fp8"),
    ((8, "float", False), "fp8"),
    ((8, "int", True), "int8"),
    ((4, "int", False), "w4a16"),
)
"""Bits and type of the weights, and whether activations are quantized too."""


def read_format(config: Mapping[str, Any], where: str) -> Format | None:
    """The format; None for a checkpoint that is not quantized.

    Raises UnsupportedModel for a kind of quantization that is not one of spec.Format.
    """
    key = next((key for key in KEYS if config.get(key) is not None), None)
    if key is None:
        return None
    said = config[key]
    if not isinstance(said, Mapping):
        raise UnsupportedModel(f"{where}: `{key}` is {said!r}, not an object")
    found = _format(said)
    if found is None:
        raise UnsupportedModel(f"{where}: quantized with {_described(said)}, which is not known here")
    return found


def _format(said: Mapping[str, Any]) -> Format | None:
    method = said.get("quant_method", said.get("quant_algo"))
    if method in ("awq", "gptq"):
        bits = said.get("bits", said.get("w_bit"))
        return method if bits == 4 else None
    if method == "bitsandbytes":
        return "bnb4" if said.get("load_in_4bit", said.get("_load_in_4bit")) is True else None
    if method in ("fp8", "fbgemm_fp8", "FP8") or said.get("quant_algo") == "FP8":
        return "fp8"
    return _compressed(said.get("config_groups")) if method in ("compressed-tensors", None) else None


def _compressed(groups: Any) -> Format | None:
    """By the first group: the others are further layers of the same scheme in all known checkpoints."""
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    activations = group.get("input_activations") is not None
    scheme = (weights.get("num_bits"), weights.get("type"), activations)
    return next((format for known, format in SCHEMES if known == scheme), None)


def _described(said: Mapping[str, Any]) -> str:
    method = said.get("quant_method", said.get("quant_algo"))
    bits = said.get("bits", said.get("w_bit"))
    name = f"`{method}`" if isinstance(method, str) else "a method without a name"
    return f"{name} at {bits} bits" if isinstance(bits, int) else name
