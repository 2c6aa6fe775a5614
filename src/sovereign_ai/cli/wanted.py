"""Entries of factory.yaml → wishes: what each model is, from the store, its own files, or the catalog."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sovereign_ai import catalog
from sovereign_ai.catalog.shapes import KnownShape, find_shape, nearest_shapes
from sovereign_ai.config import FALLBACK_HINT, ModelEntry, fallback_problem
from sovereign_ai.errors import ConfigError, StoreError
from sovereign_ai.planner import Wish, wish_for
from sovereign_ai.spec import Format, Model
from sovereign_ai.store import Store
from sovereign_ai.store.inspect import describe

FORMATS: tuple[tuple[str, Format], ...] = (
    (r"bnb-?4bit|nf4", "bnb4"),
    (r"awq", "awq"),
    (r"gptq-?int8|w8a8|int8", "int8"),
    (r"gptq", "gptq"),
    (r"w4a16|int4", "w4a16"),
    (r"fp8", "fp8"),
)
"""How a hub name tells that its weights are quantized. The model's own config wins once it is here."""


def wishes_for(entries: Sequence[ModelEntry], store: Store) -> list[Wish]:
    """Raises ConfigError for a model of which nothing is known yet, StoreError for broken files."""
    models = [model_of(entry, store) for entry in entries]
    check_fallbacks(entries, models)
    return [
        wish_for(model, entry, stored=stored_formats(entry, store))
        for model, entry in zip(models, entries, strict=True)
    ]


def check_fallbacks(entries: Sequence[ModelEntry], models: Sequence[Model]) -> None:
    """Raises ConfigError for a model that falls back to one of another task, now that tasks are known."""
    tasks = {entry.name: model.task for entry, model in zip(entries, models, strict=True)}
    for entry in entries:
        for name in entry.fallback:
            if problem := fallback_problem(entry.name, tasks[entry.name], name, tasks[name]):
                raise ConfigError(f"{_at(entry)}{problem}", FALLBACK_HINT)


def stored_formats(entry: ModelEntry, store: Store) -> tuple[Format, ...]:
    """The formats of the entry's model that the store has; none where it does not have it."""
    found = store.find(entry.name, entry.source)
    return store.formats(found) if found else ()


def model_of(entry: ModelEntry, store: Store) -> Model:
    """What is known of an entry's model. Raises ConfigError where nothing is before it is brought in."""
    found = known_model(entry, store)
    if found is None:
        kind, _, rest = entry.source.partition(":")
        raise _unknown(entry, kind, rest)
    return found


def known_model(entry: ModelEntry, store: Store) -> Model | None:
    """What the store, the model's own folder or the catalog say of it; None where none of them knows it.

    Raises ConfigError for a task that the model cannot do or a folder that is not there, StoreError for
    broken files.
    """
    found = _found(entry, store)
    if found is None:
        return None
    if entry.task == "chat" and found.task == "embed":
        raise ConfigError(
            f"{_at(entry)}`{entry.name}` cannot chat: {found.shape.architecture} is an embedding model",
            "leave `task` out, or write `task: embed`",
        )
    return msgspec.structs.replace(found, name=entry.name, source=entry.source, task=entry.task or found.task)


def _found(entry: ModelEntry, store: Store) -> Model | None:
    if stored := store.find(entry.name, entry.source):
        return stored.model
    if entry.source in {default.source for default in catalog.default_entries()}:
        known = catalog.known_source(entry.source)
        assert known is not None  # noqa: S101  default entries are known by their source
        return known.model
    kind, _, rest = entry.source.partition(":")
    if kind == "file":
        return _from_path(entry, Path(rest))
    if kind == "hf" and (shape := find_shape(rest.partition("@")[0])):
        return _from_catalog(entry, shape, rest)
    return None


def _from_path(entry: ModelEntry, path: Path) -> Model | None:
    """A folder tells everything, a single file only once it is brought in."""
    if not path.exists():
        raise ConfigError(f"{_at(entry)}{path}: no such file or folder")
    if not path.is_dir():
        return None
    try:
        facts = describe(path, code=entry.remote_code)
    except StoreError as error:
        raise type(error)(f"{_at(entry)}{error.message}", error.hint) from error
    return Model(
        name=entry.name,
        version="given",
        task=facts.task,
        source=entry.source,
        weights_bytes=facts.weights_bytes,
        dtype=facts.dtype,
        shape=facts.shape,
        format=facts.format,
    )


def _from_catalog(entry: ModelEntry, known: KnownShape, hub: str) -> Model:
    name, _, revision = hub.partition("@")
    return Model(
        name=entry.name,
        version=revision or "main",
        task=known.task,
        source=entry.source,
        weights_bytes=2 * known.shape.parameters,
        dtype=known.dtype,
        shape=known.shape,
        format=format_in_name(name),
    )


def format_in_name(hub: str) -> Format | None:
    """`Qwen/Qwen2.5-7B-Instruct-AWQ` → awq; None where the name tells of nothing."""
    return next((form for pattern, form in FORMATS if re.search(pattern, hub.lower())), None)


def _at(entry: ModelEntry) -> str:
    return f"{entry.where}: " if entry.where else ""


def _unknown(entry: ModelEntry, kind: str, rest: str) -> ConfigError:
    where = _at(entry)
    if kind == "hf":
        near = nearest_shapes(rest)
        hint = f"the catalog has {', '.join(near)}; or " if near else ""
        return ConfigError(
            f"{where}nothing is known of `{rest}` before it is here",
            f"{hint}bring it in: sovereign models pull {kind}:{rest} --name {entry.name}",
        )
    return ConfigError(
        f"{where}nothing is known of `{entry.name}` before it is here ({entry.source})",
        f"bring it in: sovereign models pull {entry.source} --name {entry.name}; "
        "`sovereign up` does so itself",
    )
