"""What the store knows of a model: the file `manifest.json` beside its weights."""

from __future__ import annotations

from typing import Literal

from sovereign_ai.spec import Format, Model, Noun, Task

MANIFEST_NAME = "manifest.json"


class StoredFile(Noun, frozen=True, kw_only=True):
    """One file of a model. `path` is relative to the model's folder, `sha256` in hex."""

    path: str
    bytes: int
    sha256: str


class Origin(Noun, frozen=True, kw_only=True):
    """The file or folder a model came from, and the SHA-256 of its content.

    `stamp` is set for sources on this machine: sizes and times of the files as they were, which tells
    without reading them whether they have changed since. `revision` is the commit of a hub model.
    """

    file: str
    bytes: int
    sha256: str
    stamp: str | None = None
    revision: str | None = None


class Conversion(Noun, frozen=True, kw_only=True):
    """How the weights were made into SafeTensors: from which file of the origin, to which type."""

    file: str
    bytes: int
    sha256: str
    dtype: str


class Quantization(Noun, frozen=True, kw_only=True):
    """How a variant was made from a version of the same model: `base` is that version, `tools` are the
    library's own versions. `calibration` is the name of the user's file, where one was used."""

    scheme: Format
    base: str
    tools: dict[str, str]
    ignored: tuple[str, ...] = ()
    group_size: int | None = None
    calibration: str | None = None
    calibration_sha256: str | None = None
    calibration_samples: int = 0


class Manifest(Noun, frozen=True, kw_only=True):
    """A model in the store. `created` in seconds since 1970, `tools` name → version.

    `format` is the layout of this file: a later one must not be mistaken for a damaged one. `remote_code`: it
    holds Python code that factory.yaml allows to run.
    """

    format: Literal[1] = 1
    model: Model
    created: int
    license: str | None
    tools: dict[str, str]
    origin: Origin
    conversion: Conversion | None
    files: tuple[StoredFile, ...]
    remote_code: bool = False
    quantization: Quantization | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def version(self) -> str:
        return self.model.version

    @property
    def task(self) -> Task:
        return self.model.task

    @property
    def source(self) -> str:
        return self.model.source

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)
