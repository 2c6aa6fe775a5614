"""A stored model as one tar file, for machines without a network; and back, believing nothing.

The tar holds `manifest.json` first and then the files it names, by their paths in the model's folder. Only
plain entries: no links, no folders, no extended headers. So the reader needs nothing of tar's extensions,
which is where archives hide surprises, and any tar program can list and unpack it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from sovereign_ai.config import MODEL_NAME
from sovereign_ai.console import Console, Progress
from sovereign_ai.errors import (
    BadModelFile,
    DigestMismatch,
    SourceError,
    UnsupportedModel,
    UsageError,
    disk_errors,
)
from sovereign_ai.store.contents import is_safe, is_taken
from sovereign_ai.store.inspect import Facts, inspect
from sovereign_ai.store.layout import AGAIN, VERSION_NAME, Store
from sovereign_ai.store.manifest import MANIFEST_NAME, Manifest, StoredFile
from sovereign_ai.store.material import MODEL_FOLDER

BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 10_000
LONGEST_NAME = tarfile.LENGTH_NAME
"""Bytes of a name that a plain tar header holds."""
DAMAGED = "the archive is incomplete or damaged: copy it again"


def export(store: Store, manifest: Manifest, target: Path, console: Console, *, force: bool = False) -> None:
    """Write a model to the file `target`, checking every byte against the manifest on the way.

    The file appears when it is whole. Raises UsageError for a file that is there already, DigestMismatch for
    a damaged model, NoSpace.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", "choose another name, or add --force")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", "make it first")
    total = manifest.total_bytes
    store.require(target.parent, total + (len(manifest.files) + 4) * BLOCK, f"exporting {manifest.name}")
    passing = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with disk_errors(f"exporting {manifest.name}", target):
            with console.progress(f"Exporting {manifest.name}", total=total) as progress:
                _write(store.folder(manifest), manifest, passing, progress)
            passing.replace(target)
    finally:
        passing.unlink(missing_ok=True)


def _write(folder: Path, manifest: Manifest, passing: Path, progress: Progress) -> None:
    done = 0
    with passing.open("xb") as out:
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        _write_entry(out, MANIFEST_NAME, len(text), manifest.created, iter([text]))
        for file in manifest.files:
            path, digest = folder / file.path, hashlib.sha256()
            with path.open("rb") as source:
                _write_entry(
                    out, file.path, file.bytes, manifest.created, _hashed(source, digest, file.bytes)
                )
            if digest.hexdigest() != file.sha256 or path.stat().st_size != file.bytes:
                problem = f"{path}: SHA-256 is {digest.hexdigest()}, the manifest says {file.sha256}"
                raise DigestMismatch(problem, AGAIN)
            done += file.bytes
            progress.update(done, note=file.path)
        out.write(b"\0" * 2 * BLOCK)
        out.flush()
        os.fsync(out.fileno())


def _write_entry(out: BinaryIO, name: str, size: int, when: int, chunks: Iterator[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, when, 0o444
    if len(name.encode()) > LONGEST_NAME:
        raise UnsupportedModel(
            f"`{name}` is longer than the {LONGEST_NAME} bytes that a plain tar entry names"
        )
    out.write(info.tobuf(tarfile.GNU_FORMAT))
    for chunk in chunks:
        out.write(chunk)
    out.write(b"\0" * (-size % BLOCK))


def _hashed(source: BinaryIO, digest: hashlib._Hash, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := source.read(min(CHUNK_BYTES, size))):
        digest.update(chunk)
        size -= len(chunk)
        yield chunk


def import_archive(store: Store, archive: Path, console: Console, *, code: frozenset[str]) -> Manifest:
    """Bring in a model from a tar that `export` made; everything in it is checked first.

    `code` are the models that may bring Python code. Raises SourceError for a file that is not there,
    BadModelFile and DigestMismatch for anything that is not exactly what the manifest says, UnsupportedModel,
    NoSpace. Nothing of a bad archive stays.
    """
    try:
        with disk_errors("reading the archive", archive), archive.open("rb") as source:
            manifest = _manifest(archive, source)
            if manifest.remote_code and manifest.name not in code:
                raise UnsupportedModel(
                    f"{archive}: `{manifest.name}` brings code of its own, which is never run unasked",
                    "if you trust it, name the model in factory.yaml with `remote_code: true`, and give -f",
                )
            with store.writing(console), store.staging(manifest.name) as staging:
                store.require(store.models, manifest.total_bytes, f"importing {archive}")
                folder = staging / MODEL_FOLDER
                folder.mkdir()
                with console.progress(f"Importing {manifest.name}", total=manifest.total_bytes) as progress:
                    _extract(archive, source, manifest, folder, progress)
                _compare(archive, manifest, inspect(folder, code=manifest.remote_code))
                return store.install(folder, manifest)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SourceError(
            f"{archive}: no such file", "give the path of a tar that `models export` made"
        ) from error


def _manifest(archive: Path, source: BinaryIO) -> Manifest:
    """The manifest that the tar opens with, if it may be believed so far."""
    info = _entry(archive, source)
    if info is None or info.name != MANIFEST_NAME or info.size > MAX_MANIFEST_BYTES:
        raise BadModelFile(f"{archive}: does not begin with {MANIFEST_NAME}: not made by `models export`")
    text = source.read(info.size)
    _skip_padding(archive, source, info.size)
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadModelFile(f"{archive}: not a readable manifest: {error}", DAMAGED) from error
    if problem := _unbelievable(manifest):
        raise BadModelFile(f"{archive}: refused: {problem}")
    return manifest


def _unbelievable(manifest: Manifest) -> str | None:
    """What a manifest must not say, whoever wrote it."""
    if not MODEL_NAME.fullmatch(manifest.name):
        return f"`{manifest.name}` cannot be a model name"
    if not VERSION_NAME.fullmatch(manifest.version):
        return f"`{manifest.version}` cannot be a version"
    if not 0 < len(manifest.files) <= MAX_FILES:
        return f"it lists {len(manifest.files)} files"
    if len({file.path for file in manifest.files}) != len(manifest.files):
        return "it lists a file twice"
    return next((problem for file in manifest.files if (problem := _bad_file(file, manifest))), None)


def _bad_file(file: StoredFile, manifest: Manifest) -> str | None:
    path = PurePosixPath(file.path)
    if str(path) != file.path or not is_safe(path):
        return f"`{file.path}` is a path that leads outside"
    if path.name == MANIFEST_NAME or not is_taken(path, code=manifest.remote_code):
        return f"`{file.path}` is no file of a model"
    return f"`{file.path}` has {file.bytes} bytes" if file.bytes < 0 else None


def _extract(archive: Path, source: BinaryIO, manifest: Manifest, folder: Path, progress: Progress) -> None:
    done, wanted = 0, {file.path: file for file in manifest.files}
    while (info := _entry(archive, source)) is not None:
        file = wanted.pop(info.name, None)
        if file is None or info.size != file.bytes:
            raise BadModelFile(
                f"{archive}: `{info.name}` of {info.size} bytes is not what its manifest lists"
            )
        _extract_one(archive, source, file, folder / file.path)
        done += file.bytes
        progress.update(done, note=file.path)
    if wanted:
        raise BadModelFile(f"{archive}: `{min(wanted)}` is missing", DAMAGED)


def _extract_one(archive: Path, source: BinaryIO, file: StoredFile, target: Path) -> None:
    digest, left = hashlib.sha256(), file.bytes
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        for chunk in _hashed(source, digest, file.bytes):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise BadModelFile(f"{archive}: ends inside `{file.path}`: {left} bytes are missing", DAMAGED)
    if digest.hexdigest() != file.sha256:
        problem = (
            f"{archive}: `{file.path}` has SHA-256 {digest.hexdigest()}, its manifest says {file.sha256}"
        )
        raise DigestMismatch(problem, DAMAGED)
    _skip_padding(archive, source, file.bytes)


def _entry(archive: Path, source: BinaryIO) -> tarfile.TarInfo | None:
    """The next header; None at the end. Only plain files are let through."""
    block = source.read(BLOCK)
    if block == b"\0" * BLOCK:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise BadModelFile(f"{archive}: not a readable tar: {error}", DAMAGED) from error
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise BadModelFile(f"{archive}: refused: `{info.name}` is not a plain file")
    return info


def _skip_padding(archive: Path, source: BinaryIO, size: int) -> None:
    padding = -size % BLOCK
    if len(source.read(padding)) != padding:
        raise BadModelFile(f"{archive}: ends in the middle of a block", DAMAGED)


def _compare(archive: Path, manifest: Manifest, facts: Facts) -> None:
    """What the manifest says of the model must be what the files say: plans believe it."""
    model = manifest.model
    said = (model.dtype, model.weights_bytes, model.shape, model.format)
    if said != (facts.dtype, facts.weights_bytes, facts.shape, facts.format):
        raise BadModelFile(f"{archive}: refused: its manifest describes another model than its files")
