"""Objects to apply, from YAML or rendered: checked before a cluster hears of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sovereign_ai.deploy.kubernetes.kinds import NAMESPACE, SECRET, is_ours, kind_of, labels_of, title
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes.labels import STACK, Object
from sovereign_ai.render.kubernetes.text import KUSTOMIZATION

RENDER_HINT = "make them: sovereign render -o FOLDER"
KUSTOMIZE_HINT = "let kustomize do that, and give its output: kubectl kustomize FOLDER > stack.yaml"
PLAIN_KEYS = {"apiVersion", "kind", "resources"}
"""Of a kustomization that only lists."""


class Wanted(NamedTuple):
    """What a cluster is to have, in the order of its application, all of one stack."""

    namespace: str
    objects: tuple[Object, ...]


def wanted(objects: Sequence[Object]) -> Wanted:
    """Raises ConfigError where an object is not ours, of an unknown kind, in another namespace than the
    stack's, or there twice."""
    if not objects:
        raise ConfigError("there are no objects to apply", RENDER_HINT)
    namespace = str(labels_of(_headed(objects[0])).get(STACK))
    seen: set[str] = set()
    for one in objects:
        _check(_headed(one), namespace)
        if title(one) in seen:
            raise ConfigError(f"{title(one)} is there twice")
        seen.add(title(one))
    return Wanted(namespace, tuple(_sent(one) for one in objects))


def _headed(one: Any) -> Object:
    if not isinstance(one, dict) or not isinstance(one.get("metadata"), dict):
        raise ConfigError(f"not a Kubernetes object: {str(one)[:80]}", RENDER_HINT)
    return one


def _check(one: Object, namespace: str) -> None:
    kind = kind_of(one)
    if not is_ours(one, namespace):
        problem = f"lacks the labels of the stack `{namespace}`: it would never be found again"
        raise ConfigError(f"{title(one)} {problem}", RENDER_HINT)
    where = one["metadata"].get("name") if kind == NAMESPACE else one["metadata"].get("namespace")
    expected = namespace if kind.namespaced or kind == NAMESPACE else None
    if where != expected and (kind.namespaced or kind == NAMESPACE):
        raise ConfigError(f"{title(one)} is of namespace `{where}`, its stack of `{namespace}`")


def _sent(one: Object) -> Object:
    """As it is sent. A Secret's `stringData` is written only: what leaves it would stay in the cluster."""
    texts = one.get("stringData")
    if one["kind"] != SECRET.name or not texts:
        return one
    encoded = {key: base64.b64encode(str(text).encode()).decode() for key, text in texts.items()}
    kept = {key: value for key, value in one.items() if key != "stringData"}
    return {**kept, "data": {**(one.get("data") or {}), **encoded}}


def read_manifests(path: Path) -> list[Object]:
    """All objects of a file, or of a folder: in the order of its kustomization, else of its files' names.

    Raises ConfigError naming the file and the line.
    """
    if not path.exists():
        raise ConfigError(f"{path} is not there", RENDER_HINT)
    files = _files(path) if path.is_dir() else [path]
    return [one for file in files for one in _documents(file)]


def _files(folder: Path) -> list[Path]:
    listing = folder / KUSTOMIZATION
    if not listing.exists():
        return sorted(folder.glob("*.yaml"))
    document = next(_load(listing), None)
    if not isinstance(document, dict) or document.keys() - PLAIN_KEYS:
        raise ConfigError(f"{listing} does more than list resources", KUSTOMIZE_HINT)
    return [folder / str(name) for name in document.get("resources") or ()]


def _documents(file: Path) -> Iterator[Object]:
    for document in _load(file):
        if isinstance(document, dict) and str(document.get("kind")).endswith("List"):
            yield from document.get("items") or ()
        elif document is not None:
            yield document


def _load(file: Path) -> Iterator[Any]:
    try:
        yield from yaml.load_all(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
