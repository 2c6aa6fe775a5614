"""What a source hands over, ready to be made into a stored model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sovereign_ai.store.manifest import Origin

MODEL_FOLDER = "model"
"""Inside the staging folder: what will become the stored version."""
SOURCE_FOLDER = "source"
"""Inside the staging folder: what only the conversion needs."""


class Material(NamedTuple):
    """`gguf` still has to be converted; where it is None, the model's folder in staging is filled already.

    `source` is the source with its version filled in.
    """

    version: str
    source: str
    origin: Origin
    license: str | None
    gguf: Path | None
