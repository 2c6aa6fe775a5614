"""Bring a model into the store: fetch, convert, check, install. The one call behind `up` and `pull`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sovereign_ai.config import MODEL_NAME, ModelEntry, check_source
from sovereign_ai.console import Console
from sovereign_ai.errors import UnsupportedModel, UsageError, disk_errors
from sovereign_ai.spec import Model
from sovereign_ai.store import files, ollama, pypi
from sovereign_ai.store.digest import list_digest, sha256_files
from sovereign_ai.store.inspect import inspect
from sovereign_ai.store.layout import Store, regular_files
from sovereign_ai.store.manifest import Conversion, Manifest, StoredFile
from sovereign_ai.store.material import MODEL_FOLDER, Material
from sovereign_ai.store.source import kind

if TYPE_CHECKING:
    from sovereign_ai.store.convert import Dtype

_Source = Callable[[Store, ModelEntry, Path, Console], AbstractContextManager[Material]]


@contextmanager
def _from_hub(store: Store, entry: ModelEntry, staging: Path, console: Console) -> Iterator[Material]:
    from sovereign_ai.store import hub  # 0.2 s, and only hub sources need it

    with hub.material(store, entry, staging, console) as material:
        yield material


def _commit_of(source: str) -> str:
    from sovereign_ai.store import hub

    return hub.commit_of(source)


_SOURCES: dict[str, _Source] = {
    "pypi": pypi.material,
    "file": files.material,
    "hf": _from_hub,
    "ollama": ollama.material,
}
_STAMPS: dict[str, Callable[[str], str | None]] = {"file": files.stamp, "ollama": ollama.stamp}
"""Sources on this machine, and what tells whether they have changed."""
_ASKS: dict[str, Callable[[str], object]] = {"hf": _commit_of, "ollama": ollama.digest_of}
_TOOLS = ("sovereign-ai", "gguf", "safetensors", "tokenizers", "numpy")


class Options(NamedTuple):
    """`dtype`: what GGUF becomes. `latest`: a hub is asked what the revision means now, in place of taking
    any commit of it that is here."""

    dtype: Dtype = "float32"
    latest: bool = False


def ensure(store: Store, entry: ModelEntry, console: Console, options: Options | None = None) -> Manifest:
    """The stored model that `entry` asks for, brought in if it is not there yet.

    Downloads nothing when it is. Two processes asking at once bring it in once. Whatever fails or
    interrupts this leaves nothing visible behind. Raises StoreError's branches, NoSpace, NoPermission.
    """
    if not MODEL_NAME.fullmatch(entry.name):
        raise UsageError(f"`{entry.name}` cannot be a model name")
    check_source(entry.source)
    options = options or Options()
    manifest = _stored(store, entry, options)
    if manifest is None:
        with store.writing(console):
            manifest = _stored(store, entry, options) or _bring_in(store, entry, options, console)
    return _as_asked(manifest, entry)


def check_reachable(store: Store, entry: ModelEntry) -> None:
    """Ask a source whose model is not here yet whether it has it: before anything large is fetched.

    Packages are not asked about: pip cannot without downloading. Raises SourceError, UnsupportedModel.
    """
    if store.find(entry.name, entry.source) is None and (asks := _ASKS.get(kind(entry.source))):
        asks(entry.source)


def _stored(store: Store, entry: ModelEntry, options: Options) -> Manifest | None:
    """What the store has, unless what it came from has changed since."""
    manifest = store.find(entry.name, entry.source)
    if manifest is None:
        return None
    if options.latest and kind(entry.source) == "hf":
        commit = _commit_of(entry.source)
        return next((one for one in store.versions(entry.name) if one.origin.revision == commit), None)
    if stamp := _STAMPS.get(kind(entry.source)):
        with disk_errors("looking at the source", store.models):
            now = stamp(entry.source)
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


def _bring_in(store: Store, entry: ModelEntry, options: Options, console: Console) -> Manifest:
    bring = _SOURCES[kind(entry.source)]
    with store.staging(entry.name) as staging, bring(store, entry, staging, console) as material:
        folder = staging / MODEL_FOLDER
        conversion, found = (None, None)
        if material.gguf:
            conversion, found = _convert(store, material, material.gguf, options.dtype, folder, console)
        license_name = material.license or found
        manifest = _describe(entry, folder, material, conversion, license_name, console)
        return store.install(folder, manifest)


def _convert(
    store: Store, material: Material, path: Path, dtype: Dtype, folder: Path, console: Console
) -> tuple[Conversion, str | None]:
    """Convert a GGUF into `folder`; also the license that it states."""
    from sovereign_ai.store.convert import read_conversion  # 0.3 s, and only conversions need it

    conversion = read_conversion(path, dtype)
    store.require(store.models, conversion.weights_bytes, f"converting {path.name}")
    with console.progress(f"Converting {path.name}", total=conversion.weights_bytes) as progress:
        conversion.write(folder, progress)
    size = sum(part.stat().st_size for part in conversion.sources)
    is_origin = material.origin.file == str(path)
    digest = material.origin.sha256 if is_origin else _digest(conversion.sources, size, console)
    made = Conversion(file=path.name, bytes=size, sha256=digest, dtype=conversion.dtype)
    return made, conversion.license


def _digest(paths: Sequence[Path], size: int, console: Console) -> str:
    """Of the parts of a split file: over the list of them, as files.py has it."""
    with console.progress(f"Checking {paths[0].name}", total=size) as progress:
        digests = sha256_files(paths, progress)
    return digests[0] if len(paths) == 1 else list_digest([path.name for path in paths], digests)


def _describe(
    entry: ModelEntry,
    folder: Path,
    material: Material,
    conversion: Conversion | None,
    license_name: str | None,
    console: Console,
) -> Manifest:
    facts = inspect(folder, code=entry.remote_code)
    return Manifest(
        model=Model(
            name=entry.name,
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
        files=stored_files(folder, console),
        remote_code=entry.remote_code and any(folder.rglob("*.py")),
    )


def stored_files(folder: Path, console: Console) -> tuple[StoredFile, ...]:
    """What a manifest lists of a finished folder."""
    found = regular_files(folder)
    sizes = [path.stat().st_size for path in found.values()]
    with console.progress(f"Recording {len(found)} files", total=sum(sizes)) as progress:
        digests = sha256_files(list(found.values()), progress)
    return tuple(
        StoredFile(path=path, bytes=size, sha256=digest)
        for path, size, digest in zip(found, sizes, digests, strict=True)
    )
