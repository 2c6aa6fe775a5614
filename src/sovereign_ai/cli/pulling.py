"""`sovereign models pull` and `convert`: from what a person types to entries that the store brings in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sovereign_ai import catalog
from sovereign_ai.cli.stored import say_more
from sovereign_ai.config import MODEL_NAME, Factory, ModelEntry, Paths, check_source
from sovereign_ai.console import Console, human_bytes
from sovereign_ai.errors import UsageError
from sovereign_ai.store import Manifest, Options, Store, ensure
from sovereign_ai.store.source import hub_model, kind, ollama_model, package

if TYPE_CHECKING:
    from sovereign_ai.store.convert import Dtype


def pull(
    console: Console,
    factory: Factory,
    paths: Paths,
    source: str | None,
    *,
    name: str | None,
    revision: str | None,
    dtype: str,
) -> None:
    """Bring in what is asked for. Raises UsageError, ConfigError and the store's errors."""
    entries = _entries(factory, source, name, revision)
    _bring(console, paths, entries, dtype)


def convert(
    console: Console, factory: Factory, paths: Paths, gguf: Path, *, name: str | None, dtype: str
) -> None:
    if gguf.suffix.lower() != ".gguf" and not gguf.is_file():
        raise UsageError(f"{gguf} is not a GGUF file", "other sources: sovereign models pull")
    _bring(console, paths, _entries(factory, f"file:{gguf}", name, None), dtype)


def _bring(console: Console, paths: Paths, entries: Sequence[ModelEntry], dtype: str) -> None:
    store, options = Store(paths.models, paths.cache), Options(dtype=_dtype(dtype), latest=True)
    brought = []
    for entry in entries:
        before = {manifest.version for manifest in store.versions(entry.name)}
        manifest = ensure(store, entry, console, options)
        if manifest.version in before and store.current(entry.name) != manifest.version:
            with store.writing(console):
                store.switch(manifest)
        brought.append(manifest)
        _tell(console, store, manifest, is_new=manifest.version not in before)
    if console.json:
        console.data(brought)


def _tell(console: Console, store: Store, manifest: Manifest, *, is_new: bool) -> None:
    size = human_bytes(manifest.total_bytes)
    state = "is in the store now" if is_new else "was in the store already"
    console.say(f"{manifest.name} {manifest.version} {state}: {size} in {store.folder(manifest)}")
    if is_new:
        say_more(console, manifest)


def _dtype(text: str) -> Dtype:
    from sovereign_ai.store.convert import Dtype

    known = get_args(Dtype)
    if text not in known:
        raise UsageError(f"--dtype {text} is not one of {', '.join(known)}")
    return text  # type: ignore[return-value]


def _entries(
    factory: Factory, source: str | None, name: str | None, revision: str | None
) -> tuple[ModelEntry, ...]:
    """What to bring in. An entry of factory.yaml wins where its name or source is what was typed."""
    if source is None:
        if not factory.models:
            raise UsageError("nothing to pull", "give a source, or -f factory.yaml for all of its models")
        if name or revision:
            raise UsageError("--name and --revision need one source", "give it before them")
        return factory.models
    for entry in factory.models:
        if source in (entry.name, entry.source) and not revision:
            return (entry,)
    if ":" not in source:
        raise UsageError(
            f"`{source}` is not a source", "write hf:ORG/NAME, pypi:NAME, file:PATH or ollama:NAME[:TAG]"
        )
    check_source(source)
    pinned = _absolute(_with_revision(source, revision))
    entry = ModelEntry(name=name or name_for(pinned), source=pinned)
    if not MODEL_NAME.fullmatch(entry.name):
        raise UsageError(f"`{entry.name}` cannot be a model name", "give another with --name")
    return (entry,)


def _with_revision(source: str, revision: str | None) -> str:
    if revision is None:
        return source
    marks = {"hf": "@", "pypi": "=="}
    mark = marks.get(kind(source))
    if mark is None:
        raise UsageError(f"--revision means nothing for `{source}`", "it is for hf: and pypi: sources")
    if mark in source:
        raise UsageError(f"`{source}` names a revision already", "leave --revision out")
    pinned = f"{source}{mark}{revision}"
    check_source(pinned)
    return pinned


def _absolute(source: str) -> str:
    if kind(source) != "file":
        return source
    return f"file:{Path(source.removeprefix('file:')).expanduser().absolute()}"


def name_for(source: str) -> str:
    """The name a model gets where none was given: what its source calls it, in letters that names have."""
    text = {
        "hf": lambda: (
            (hub_model(source).file or hub_model(source).repo).rpartition("/")[2].removesuffix(".gguf")
        ),
        "ollama": lambda: "-".join(ollama_model(source)[2:]).removesuffix("-latest"),
        "pypi": lambda: package(source).name,
        "file": lambda: Path(source.removeprefix("file:")).name.removesuffix(".gguf"),
    }[kind(source)]()
    known = catalog.known_source(source)
    plain = re.sub(r"[^a-z0-9._-]+", "-", (known.name if known else text).lower())
    return re.sub(r"^[^a-z0-9]+|[^a-z0-9]+$", "", plain)[:63] or "model"
