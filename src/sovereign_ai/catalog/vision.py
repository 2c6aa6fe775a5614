"""The image encoder that config.json describes → Vision. Pure.

Keys by the configuration classes in
https://github.com/huggingface/transformers/tree/main/src/transformers/models. The largest image is not in
config.json for encoders that take any size; it is the default of their processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.spec import Vision

MOST = 10_000_000
ANY_SIZE = {"Qwen2VL": 12_845_056, "Qwen2_5_VL": 12_845_056, "Qwen3VL": 16_777_216}
"""Pixels of the largest image: `max_pixels` (`longest_edge`) in preprocessor_config.json of Qwen2-VL-7B,
Qwen2.5-VL-7B and Qwen3-VL-8B on the hub."""
DEFAULTS: dict[str, dict[str, int]] = {
    "Qwen2VL": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2},
    "Qwen2_5_VL": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
    "Qwen3VL": {"patch_size": 16, "spatial_merge_size": 2},
    "Gemma3": {"image_size": 896, "patch_size": 14, "num_hidden_layers": 27},
}
"""What published files leave out."""


def read_vision(config: Mapping[str, Any], family: str, where: str) -> Vision | None:
    """None for a model without an image encoder. Raises UnsupportedModel for a value that cannot be."""
    said = config.get("vision_config")
    if said is None:
        return None
    if not isinstance(said, Mapping):
        raise UnsupportedModel(f"{where}: `vision_config` is {said!r}, not an object")
    values = DEFAULTS.get(family, {}) | {key: value for key, value in said.items() if value is not None}
    # Qwen2-VL calls the width of the language model `hidden_size` here, and its own `embed_dim`
    hidden = _integer(values, where, "embed_dim" if family == "Qwen2VL" else "hidden_size")
    inner = hidden * _integer(values, where, "mlp_ratio") if family == "Qwen2VL" else None
    patches = _patches(values, family, where)
    return Vision(
        layers=_integer(values, where, "depth" if "depth" in values else "num_hidden_layers"),
        hidden=hidden,
        intermediate=inner or _integer(values, where, "intermediate_size"),
        patches=patches,
        outputs=_outputs(config, values, where, patches),
    )


def _patches(values: Mapping[str, Any], family: str, where: str) -> int:
    side = _integer(values, where, "patch_size")
    if family in ANY_SIZE:
        return ANY_SIZE[family] // side**2
    return max(1, _integer(values, where, "image_size") // side) ** 2


def _outputs(config: Mapping[str, Any], values: Mapping[str, Any], where: str, patches: int) -> int:
    """Tokens of one image: told by the config, or patches merged in squares."""
    if config.get("mm_tokens_per_image") is not None:
        return _integer(config, where, "mm_tokens_per_image")
    merge = {"spatial_merge_size": 1} | {
        key: value for key, value in (*config.items(), *values.items()) if key == "spatial_merge_size"
    }
    return max(1, patches // _integer(merge, where, "spatial_merge_size") ** 2)


def _integer(values: Mapping[str, Any], where: str, key: str) -> int:
    value = values.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST:
        return value
    said = "missing" if value is None else f"{value!r}, not a plausible number"
    raise UnsupportedModel(f"{where}: `vision_config.{key}` is {said}")
