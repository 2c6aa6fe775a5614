"""RoPE in config.json: theta, and what stretches it for long contexts.

Llama 3.1 and later store the stretched frequencies as factors instead of the parameters they come from; the
parameters are told from them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import ELSEWHERE, Sizes
from sovereign_ai.store.dequantize import Floats, dequantise, readable
from sovereign_ai.store.gguf_file import GgufFile

DEFAULT_THETA = 10_000.0
"""Of the first Llama; files made before `rope.freq_base` existed do not say it."""
FACTORS = "rope_freqs.weight"

LOW_FREQUENCY_FACTOR = 1.0
HIGH_FREQUENCY_FACTOR = 4.0
ORIGINAL_CONTEXT = 8192
"""The three are the same in every released Llama 3.1, 3.2 and 3.3 (their config.json, `rope_scaling`)."""
YARN_KEYS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
"""Keys of GGUF below `rope.scaling` → fields of `rope_scaling`."""
YARN_REFUSED = ("attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier")
"""Parameters of YaRN that config.json has no field for, or that mean something else there."""


def rope_fields(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    """`rope_theta`, and `rope_scaling` where there is one. Raises UnsupportedModel for other schemes."""
    theta = read_theta(file, DEFAULT_THETA)
    scaling = _scaling(file, sizes, theta)
    return {"rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})}


def read_theta(file: GgufFile, default: float) -> float:
    key = f"{file.architecture}.rope.freq_base"
    theta = file.number(key, default)
    if theta < 1:
        raise BadModelFile(f"{file.path}: `{key}` is {theta}")
    return theta


def linear_scaling(file: GgufFile) -> dict[str, Any] | None:
    """None where nothing is stretched. Raises UnsupportedModel for other schemes."""
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.text(f"{prefix}.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise UnsupportedModel(f"{file.path}: RoPE scaling `{kind}` cannot be converted yet", ELSEWHERE)
    return {"rope_type": "linear", "factor": file.number(f"{prefix}.factor")}


def _scaling(file: GgufFile, sizes: Sizes, theta: float) -> dict[str, Any] | None:
    kind = file.text(f"{file.architecture}.rope.scaling.type", "none")
    if file.tensor(FACTORS) is None:
        return _yarn(file) if kind == "yarn" else linear_scaling(file)
    if kind != "none":
        raise UnsupportedModel(f"{file.path}: RoPE scaling `{kind}` and `{FACTORS}` at once", ELSEWHERE)
    factors = read_factors(file, FACTORS, sizes.head_dim // 2)
    scaling = llama3_scaling(factors, theta, sizes.head_dim)
    if scaling is None:
        raise UnsupportedModel(
            f"{file.path}: the RoPE factors in `{FACTORS}` are not those of Llama 3", ELSEWHERE
        )
    return scaling


def _yarn(file: GgufFile) -> dict[str, Any]:
    prefix = f"{file.architecture}.rope.scaling"
    for key in YARN_REFUSED:
        if f"{prefix}.{key}" in file.metadata:
            raise UnsupportedModel(f"{file.path}: YaRN with `{prefix}.{key}` cannot be converted", ELSEWHERE)
    more = {
        field: file.number(f"{prefix}.{key}")
        for key, field in YARN_KEYS.items()
        if f"{prefix}.{key}" in file.metadata
    }
    return {
        "rope_type": "yarn",
        "factor": file.number(f"{prefix}.factor"),
        "original_max_position_embeddings": file.integer(f"{prefix}.original_context_length"),
        **more,
    }


def read_factors(file: GgufFile, name: str, count: int) -> Floats:
    """The factors in a tensor, one for each frequency. Raises BadModelFile unless there are `count`."""
    info = file.tensor(name)
    if info is None:
        raise BadModelFile(f"{file.path}: tensor `{name}` is missing")
    if math.prod(info.shape) != count:
        raise BadModelFile(f"{file.path}: tensor `{name}` has shape {list(info.shape)}, expected [{count}]")
    if not readable(info.type):
        raise UnsupportedModel(
            f"{file.path}: weights of type {info.type.name} cannot be converted", ELSEWHERE
        )
    with info.path.open("rb") as source:
        source.seek(info.offset)
        raw = np.frombuffer(source.read(info.size), np.uint8)
    factors = dequantise(raw, info.type)
    if not np.isfinite(factors).all():
        raise BadModelFile(f"{file.path}: tensor `{name}` has values that are no numbers")
    return factors


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What each of the head_dim/2 frequencies is divided by.

    Waves longer than the original context are stretched by `factor`, short ones not at all, those between
    in proportion (Llama 3.1 model card and its reference code, `apply_scaling`).
    """
    longest = ORIGINAL_CONTEXT / LOW_FREQUENCY_FACTOR
    shortest = ORIGINAL_CONTEXT / HIGH_FREQUENCY_FACTOR
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    span = HIGH_FREQUENCY_FACTOR - LOW_FREQUENCY_FACTOR
    smooth = (ORIGINAL_CONTEXT / wavelength - LOW_FREQUENCY_FACTOR) / span
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength > longest, factor, np.where(wavelength < shortest, 1.0, between))
    return factors.astype(np.float32)


def llama3_scaling(
    stored: np.ndarray[Any, np.dtype[np.float32]], theta: float, head_dim: int
) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json that produces exactly these factors; None if it is another scheme."""
    factor = float(stored.max())
    if stored.shape != (head_dim // 2,) or not np.allclose(
        stored, llama3_factors(theta, head_dim, factor), rtol=1e-4
    ):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQUENCY_FACTOR,
        "high_freq_factor": HIGH_FREQUENCY_FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    }
