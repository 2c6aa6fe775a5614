"""factory.yaml → frozen structs, and where things live on disk. The only reader of the environment.

Every error names file and line, and the nearest right spelling where there is one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from sovereign_ai.errors import ConfigError, disk_errors
from sovereign_ai.spec import Task

MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
"""Names of models: they become folder names, Triton model names and Kubernetes labels (≤ 63 characters)."""

SOURCE_KINDS = ("pypi", "file")
LATER_SOURCE_KINDS = ("hf", "ollama", "oci")
MIN_CONTEXT = 16


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that factory.yaml (or the catalog) asks for."""

    name: str
    """The name clients use: lower-case letters, digits, `.`, `_`, `-`."""
    source: str
    """`pypi:NAME[==VERSION]` or `file:PATH` (relative to factory.yaml)."""
    context: int | None = None
    """Tokens of prompt and answer together; default: what the model was trained for."""
    task: Task | None = None
    """`chat` or `embed`; default: told from the model's own files."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address to listen on. The default serves this machine alone: opening it is a decision."""
    port: int = 8000
    """TCP port; 8000 because vLLM's own server and most examples use it."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body, in bytes. 4 MiB hold about a million tokens of English text."""


class Factory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of factory.yaml. Without a file: `Factory()`, and the catalog's default models."""

    models: tuple[ModelEntry, ...] = ()
    storage: Path | None = None
    """Folder for `models/`; default: SOVEREIGN_HOME/storage."""
    gateway: GatewaySettings = GatewaySettings()


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything lives. One home folder holds all of it."""

    home: Path
    storage: Path

    @property
    def models(self) -> Path:
        return self.storage / "models"

    @property
    def engines(self) -> Path:
        return self.home / "engines"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger.sqlite"


def environment() -> Mapping[str, str]:
    """A copy of the process environment: the only door to it."""
    return dict(os.environ)


def home_folder(environ: Mapping[str, str]) -> Path:
    """SOVEREIGN_HOME, else XDG_DATA_HOME/sovereign, else ~/.local/share/sovereign."""
    if chosen := environ.get("SOVEREIGN_HOME"):
        return Path(chosen).expanduser().absolute()
    data = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local/share")
    return Path(data).absolute() / "sovereign"


def paths(environ: Mapping[str, str], factory: Factory) -> Paths:
    home = home_folder(environ)
    return Paths(home=home, storage=factory.storage or home / "storage")


def load_factory(path: Path) -> Factory:
    """Read factory.yaml. Relative paths in it are relative to the file.

    Raises ConfigError for anything that is not exactly what the schema says.
    """
    text = _read(path)
    try:
        tree = YAML(typ="rt").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}", "fix the syntax at that line") from error
    if tree is None:
        return Factory()
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{path}:1: expected keys such as `models:`, got {_kind(tree)}")
    _refuse_unknown_keys(path, tree, Factory)
    factory = _convert(path, tree)
    _check_models(path, tree, factory)
    _check_gateway(path, tree, factory.gateway)
    return _resolve_paths(path, factory)


def _read(path: Path) -> str:
    try:
        with disk_errors("reading the factory file", path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "give the path of your factory.yaml with -f") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, not a file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _kind(value: object) -> str:
    names = {dict: "a mapping", CommentedMap: "a mapping", CommentedSeq: "a list", list: "a list", str: "a text"}
    return names.get(type(value), f"`{value}`")


def _line(tree: Any, key: object) -> int:
    """1-based line of a key of a mapping or an item of a list."""
    try:
        position = tree.lc.key(key) if isinstance(tree, CommentedMap) else tree.lc.item(key)
        return int(position[0]) + 1
    except (AttributeError, KeyError, TypeError):
        return 1


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _refuse_unknown_keys(path: Path, tree: Any, struct: type[msgspec.Struct]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(fields)}"
            raise ConfigError(f"{path}:{_line(tree, key)}: unknown key `{key}`", hint)
        inner = _struct_of(fields[key].type)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if inner and isinstance(item, CommentedMap):
                _refuse_unknown_keys(path, item, inner)


def _convert(path: Path, tree: CommentedMap) -> Factory:
    try:
        return msgspec.convert(tree, Factory, dec_hook=_decode)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `")
        steps = re.findall(r"\.(\w+)|\[(\d+)\]", where)
        node: Any = tree
        line = 1
        for name, number in steps:
            key: Any = name or int(number)
            line = _line(node, key)
            node = node[key] if isinstance(node, (dict, list)) and _has(node, key) else node
        spot = where.rstrip("`").removeprefix("$.")
        raise ConfigError(f"{path}:{line}: {problem}" + (f" (at `{spot}`)" if spot else "")) from error


def _has(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else isinstance(key, int) and key < len(node)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `path`, got `{type(value).__name__}`")


def _check_models(path: Path, tree: CommentedMap, factory: Factory) -> None:
    seen: dict[str, int] = {}
    for index, model in enumerate(factory.models):
        entry = tree["models"][index]
        if not MODEL_NAME.fullmatch(model.name):
            raise ConfigError(
                f"{path}:{_line(entry, 'name')}: `{model.name}` cannot be a model name",
                "use lower-case letters, digits, '.', '_' and '-', at most 63, beginning and ending with a letter or digit",
            )
        if model.name in seen:
            raise ConfigError(
                f"{path}:{_line(entry, 'name')}: model `{model.name}` is named twice (first on line {seen[model.name]})"
            )
        seen[model.name] = _line(entry, "name")
        check_source(model.source, where=f"{path}:{_line(entry, 'source')}: ")
        if model.context is not None and model.context < MIN_CONTEXT:
            raise ConfigError(f"{path}:{_line(entry, 'context')}: context {model.context} is below {MIN_CONTEXT} tokens")


def check_source(source: str, *, where: str = "") -> None:
    """Raise ConfigError unless `source` is of a kind that this version can bring in."""
    kind, colon, rest = source.partition(":")
    if kind in SOURCE_KINDS and colon and rest:
        return
    if kind in LATER_SOURCE_KINDS:
        raise ConfigError(f"{where}source kind `{kind}:` is not supported yet", "use pypi:NAME or file:PATH")
    near = difflib.get_close_matches(kind, SOURCE_KINDS, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}:`?" if near and colon else "write pypi:NAME or file:PATH"
    raise ConfigError(f"{where}`{source}` is not a model source", hint)


def _check_gateway(path: Path, tree: CommentedMap, gateway: GatewaySettings) -> None:
    section = tree.get("gateway", {})
    if not 0 < gateway.port < 65536:
        raise ConfigError(f"{path}:{_line(section, 'port')}: port {gateway.port} is not between 1 and 65535")
    if gateway.max_body_bytes < 1024:
        raise ConfigError(f"{path}:{_line(section, 'max_body_bytes')}: max_body_bytes must be at least 1024")


def _resolve_paths(path: Path, factory: Factory) -> Factory:
    base = path.absolute().parent
    models = tuple(_resolve_source(base, model) for model in factory.models)
    storage = (base / factory.storage.expanduser()) if factory.storage else None
    return msgspec.structs.replace(factory, models=models, storage=storage)


def _resolve_source(base: Path, model: ModelEntry) -> ModelEntry:
    kind, _, rest = model.source.partition(":")
    if kind != "file":
        return model
    return msgspec.structs.replace(model, source=f"file:{base / Path(rest).expanduser()}")
