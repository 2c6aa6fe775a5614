"""RoPE scaling of Llama 3.1 and later, told from the factors that a GGUF stores instead of the parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LOW_FREQUENCY_FACTOR = 1.0
HIGH_FREQUENCY_FACTOR = 4.0
ORIGINAL_CONTEXT = 8192
"""The three are the same in every released Llama 3.1, 3.2 and 3.3 (their config.json, `rope_scaling`)."""


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
