"""Sovereign AI Factory: mismatched GPUs become one dependable OpenAI-compatible endpoint."""

from __future__ import annotations

__version__ = "0.1.0"
