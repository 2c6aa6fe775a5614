"""Models from this machine: `file:PATH`, a .gguf file or a folder with config.json and SafeTensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Progress
from sovereign_ai.errors import SourceError, UnsupportedModel
from sovereign_ai.store.contents import Contents, choose, parts_of
from sovereign_ai.store.digest import list_digest, sha256_files
from sovereign_ai.store.layout import Store, regular_files
from sovereign_ai.store.manifest import Origin
from sovereign_ai.store.material import MODEL_FOLDER, Material

VERSION_DIGITS = 12
"""Hex digits of the content's digest that make a version: 48 bits, no collision among a person's models."""
CHUNK_BYTES = 1 << 20


@contextmanager
def material(store: Store, entry: ModelEntry, staging: Path, console: Console) -> Iterator[Material]:
    """The model at `entry.source`, copied into `staging` unless it is a GGUF, which is read where it is.

    Raises SourceError where there is nothing, UnsupportedModel where there is no model.
    """
    root, contents = _contents(entry.source, code=entry.remote_code)
    paths = [root / path for path in contents.files]
    size = sum(_stat(path).st_size for path in paths)
    gguf = root / contents.gguf if contents.gguf else None
    before = stamp(entry.source)
    with console.progress(f"Reading {gguf or root}", total=size) as progress:
        digest = _digest(contents, paths, progress)
    origin = Origin(file=str(gguf or root), bytes=size, sha256=digest, stamp=before)
    if not gguf:
        store.require(store.models, size, f"copying {root}")
        with console.progress(f"Copying {root}", total=size) as progress:
            _copy(root, contents, staging / MODEL_FOLDER, progress)
    yield Material(origin.sha256[:VERSION_DIGITS], entry.source, origin, None, gguf)


def stamp(source: str) -> str | None:
    """Sizes and change times of the model's files, as one digest; None where the source is gone."""
    try:
        root, contents = _contents(source, code=False)
        facts = [(path, _stat(root / path)) for path in contents.files]
    except (SourceError, UnsupportedModel):
        return None
    lines = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in facts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _contents(source: str, *, code: bool) -> tuple[Path, Contents]:
    """The folder that holds the files, and which of them to take, relative to it."""
    path = Path(source.removeprefix("file:")).expanduser().absolute()
    if path.is_dir():
        return path, choose(map(PurePosixPath, regular_files(path)), str(path), code=code)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", "check the path behind `file:`")
    name = PurePosixPath(path.name)
    there = [part for part in parts_of(name) if (path.parent / part).exists()]
    return path.parent, choose(sorted(there), str(path), gguf=name if len(there) > 1 else None)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise SourceError(f"{path}: is a link to a file that is not there") from error


def _digest(contents: Contents, paths: list[Path], progress: Progress) -> str:
    """Of one file its SHA-256; of several, the SHA-256 of the list of their names and digests."""
    digests = sha256_files(paths, progress)
    if contents.gguf and len(digests) == 1:
        return digests[0]
    return list_digest([str(path) for path in contents.files], digests)


def _copy(root: Path, contents: Contents, folder: Path, progress: Progress) -> None:
    done = 0
    for path in contents.files:
        target = folder / path.relative_to(contents.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (root / path).open("rb") as source, target.open("xb") as file:
            for chunk in _chunks(source):
                file.write(chunk)
                done += len(chunk)
                progress.update(done, note=target.name)


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
