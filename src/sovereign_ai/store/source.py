"""What a source names, and when two sources mean the same thing. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from sovereign_ai.config import PYPI_SOURCE
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


def kind(source: str) -> str:
    """`pypi` or `file`."""
    return source.partition(":")[0]


def canonical(source: str) -> str:
    """One spelling for every way to write the same source."""
    return f"pypi:{package(source).requirement}" if kind(source) == "pypi" else source


def satisfies(stored: str, asked: str) -> bool:
    """Whether what was brought in from `stored` is what `asked` asks for.

    A package without a version is satisfied by any version of it, so that nothing is downloaded again
    because a newer one exists.
    """
    asked = canonical(asked)
    return stored == asked or (kind(asked) == "pypi" and stored.partition("==")[0] == asked)
