"""Facts that ship with the package, each with its source beside it in the data file.

`models.toml` holds the default models: what factory.yaml falls back to, with their shapes, so that a plan
can be made before anything is downloaded.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

import msgspec

from sovereign_ai.config import ModelEntry
from sovereign_ai.spec import Model, Noun, Shape, Task


class KnownModel(Noun, frozen=True, kw_only=True):
    """One entry of models.toml. `wheel_*` describe the file that `source` must deliver."""

    name: str
    source: str
    version: str
    task: Task
    license: str
    wheel_sha256: str
    wheel_bytes: int
    dtype: str
    weights_bytes: int
    shape: Shape

    @property
    def model(self) -> Model:
        """The model as the store will hold it."""
        return Model(
            name=self.name,
            version=self.version,
            task=self.task,
            source=self.source,
            weights_bytes=self.weights_bytes,
            dtype=self.dtype,
            shape=self.shape,
        )


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All entries of models.toml, in its order."""
    text = resources.files(__name__).joinpath("models.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text)["models"], tuple[KnownModel, ...])


def default_entries() -> tuple[ModelEntry, ...]:
    """What to serve when factory.yaml names no model: one that chats and one that embeds."""
    return tuple(
        ModelEntry(name=known.name, source=known.source, task=known.task) for known in known_models()
    )


def default_model(name: str) -> Model:
    """The expected model behind a default entry: shape and weights after conversion, in bytes.

    Raises KeyError for a name that is not in `default_entries()`.
    """
    return {known.name: known.model for known in known_models()}[name]


def known_source(source: str) -> KnownModel | None:
    """The entry that has exactly this source, whatever name the factory gives the model."""
    return next((known for known in known_models() if known.source == source), None)


def pinned_digest(source: str) -> str | None:
    """SHA-256 (hex) of the file that `source` must deliver; None where nothing is pinned."""
    known = known_source(source)
    return known.wheel_sha256 if known else None
