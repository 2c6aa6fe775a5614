"""Where models live on disk, and the one way in.

    <storage>/models/<name>/<version>/    the files of one version, and manifest.json; never changed
    <storage>/models/<name>/current       a link to the version that new deployments take
    <storage>/models/.partial-<name>-…/   one being written, or being removed
    <storage>/models/.lock                held by the one writer

A version is written in full beside the others, flushed to disk and renamed into its place: whatever
interrupts that, readers see all of it or nothing, and need no lock. The lock is the kernel's, so it ends
with its process; what a dead writer left is removed by the next. Content that several versions share is
stored once, as hard links.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from sovereign_ai.config import MODEL_NAME
from sovereign_ai.console import Console, Progress, Silent, human_bytes
from sovereign_ai.errors import DigestMismatch, NoSpace, StoreError, disk_errors
from sovereign_ai.spec import Format
from sovereign_ai.store.digest import sha256_files
from sovereign_ai.store.manifest import MANIFEST_NAME, Manifest, StoredFile
from sovereign_ai.store.source import satisfies

PARTIAL = ".partial-"
LOCK_NAME = ".lock"
CURRENT = "current"
VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,127}")
"""Versions become folder names: those of packages (PEP 440), commits, digests."""
AGAIN = "remove it (`sovereign models remove`) and bring it in again"


def free_bytes(folder: Path) -> int:
    """Bytes this user can still write where `folder` is, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def writer_lock(folder: Path, console: Console) -> Iterator[None]:
    """Be the one writer of `folder`; waits for another, saying so."""
    with disk_errors("opening the model store", folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_NAME).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.note(f"another process is writing to {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def regular_files(folder: Path) -> dict[str, Path]:
    """Relative path → path of every file below `folder`; links count as files and are not followed."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


class Store:
    """The models below `models`, and downloads in progress below `cache`.

    `free_bytes` tells how much can be written to a folder's disk.
    """

    def __init__(self, models: Path, cache: Path, *, free_bytes: Callable[[Path], int] = free_bytes) -> None:
        self.models = models
        self.downloads = cache / "sources"
        self._free_bytes = free_bytes

    def folder(self, manifest: Manifest) -> Path:
        return self.models / manifest.name / manifest.version

    def list(self) -> tuple[Manifest, ...]:
        """All models, by name and version. Raises DigestMismatch for a manifest that cannot be read."""
        with disk_errors("reading the model store", self.models):
            return tuple(_read(path) for path in self._manifest_paths("*"))

    def readable(self) -> tuple[Manifest, ...]:
        """All models but those of `damaged`."""
        with disk_errors("reading the model store", self.models):
            return tuple(_read(path) for path in self._manifest_paths("*") if _problem(path) is None)

    def damaged(self) -> tuple[DigestMismatch, ...]:
        """What is wrong with the manifests that `list` would not read."""
        with disk_errors("reading the model store", self.models):
            return tuple(error for path in self._manifest_paths("*") if (error := _problem(path)))

    def _manifest_paths(self, name: str) -> tuple[Path, ...]:
        found = sorted(self.models.glob(f"{name}/*/{MANIFEST_NAME}"))
        # `current` is a link, or a folder in a copy that followed links; a kill may leave a `.current-…`
        # that was about to take its place. Neither is a version.
        return tuple(
            path
            for path in found
            if path.parts[-2] != CURRENT and not any(part.startswith(".") for part in path.parts[-3:-1])
        )

    def versions(self, name: str) -> tuple[Manifest, ...]:
        """Of one model, oldest first."""
        with disk_errors("reading the model store", self.models):
            found = [_read(path) for path in self._manifest_paths(name)] if MODEL_NAME.fullmatch(name) else []
        return tuple(sorted(found, key=lambda manifest: (manifest.created, manifest.version)))

    def current(self, name: str) -> str | None:
        """The version that `current` names; None where there is none, or it is gone."""
        link = self.models / name / CURRENT
        with disk_errors("reading the model store", self.models):
            return str(link.readlink()) if link.is_symlink() and (link / MANIFEST_NAME).is_file() else None

    def find(self, name: str, source: str) -> Manifest | None:
        """The version of `name` that came from `source`: the current one if it did, else the newest.

        Variants that were quantized here are not looked at: see `variant`.
        """
        fitting = [
            manifest
            for manifest in self.versions(name)
            if manifest.quantization is None and satisfies(manifest.source, source, manifest.origin.revision)
        ]
        now = self.current(name)
        return next(
            (manifest for manifest in fitting if manifest.version == now), fitting[-1] if fitting else None
        )

    def variant(self, base: Manifest, kind: Format) -> Manifest | None:
        """The newest variant of a version that was quantized to `kind` here."""
        made = [
            manifest
            for manifest in self.versions(base.name)
            if manifest.quantization
            and manifest.quantization.base == base.version
            and manifest.model.format == kind
        ]
        return made[-1] if made else None

    def formats(self, manifest: Manifest) -> tuple[Format, ...]:
        """The formats that are here of a version: its own, and those of the variants made from it."""
        base = manifest.quantization.base if manifest.quantization else manifest.version
        family = [one for one in self.versions(manifest.name) if base in (one.version, _base(one))]
        return tuple(dict.fromkeys(one.model.given_format for one in family))

    def verify(self, manifest: Manifest, progress: Progress) -> None:
        """Compare every byte with the manifest: names, sizes, SHA-256. Progress in bytes read.

        Raises DigestMismatch naming the first file that differs, what was expected and what is there.
        """
        folder = self.folder(manifest)
        with disk_errors(f"checking model {manifest.name}", folder):
            present = regular_files(folder)
            present.pop(MANIFEST_NAME, None)
            _check_names(folder, manifest, set(present))
            for file in manifest.files:
                _check_size(folder / file.path, file)
            digests = sha256_files([folder / file.path for file in manifest.files], progress)
        for file, digest in zip(manifest.files, digests, strict=True):
            if digest != file.sha256:
                path = folder / file.path
                raise DigestMismatch(f"{path}: SHA-256 is {digest}, the manifest says {file.sha256}", AGAIN)

    def require(self, folder: Path, needed: int, doing: str) -> None:
        """Raise NoSpace unless `needed` bytes can be written below `folder`. `doing` opens the message."""
        free = self._free_bytes(folder)
        if free < needed:
            raise NoSpace(
                f"{doing} needs {human_bytes(needed)} ({needed} bytes), "
                f"but only {human_bytes(free)} ({free} bytes) are free in {folder}",
                "free some space, or point `storage:` in factory.yaml at a larger disk",
            )

    @contextmanager
    def writing(self, console: Console) -> Iterator[None]:
        """Be the one writer, and remove what dead writers left."""
        with writer_lock(self.models, console), disk_errors("cleaning the model store", self.models):
            for left in self.models.glob(f"{PARTIAL}*"):
                shutil.rmtree(left)
            yield

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A folder on the models' disk that is gone afterwards, whatever happens. Only inside `writing`."""
        with disk_errors(f"bringing in model {name}", self.models):
            folder = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{name}-", dir=self.models))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def install(self, staged: Path, manifest: Manifest) -> Manifest:
        """Move a finished folder into its place, once and for all. Only inside `writing`.

        If that version is there already it stays as it is: returned when it came from the same content,
        StoreError when it did not.
        """
        if not VERSION_NAME.fullmatch(manifest.version) or manifest.version == CURRENT:
            raise StoreError(f"`{manifest.version}` cannot be the name of a version")
        target = self.folder(manifest)
        if target.exists():
            return _same(_read(target / MANIFEST_NAME), manifest, target)
        self._share(staged, manifest)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        (staged / MANIFEST_NAME).write_bytes(text + b"\n")
        _seal(staged)
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
        _flush(target.parent)
        _flush(self.models)
        if manifest.quantization is None:
            self.switch(manifest)
        return manifest

    def switch(self, manifest: Manifest) -> None:
        """Make a version the current one, at once for all readers. Only inside `writing`."""
        folder = self.models / manifest.name
        passing = folder / f".{CURRENT}-{os.getpid()}"
        passing.unlink(missing_ok=True)
        passing.symlink_to(manifest.version, target_is_directory=True)
        passing.replace(folder / CURRENT)
        _flush(folder)

    def remove(self, manifest: Manifest) -> None:
        """Take a version out of sight at once, then delete it. Only inside `writing`.

        Another version becomes the current one if this one was: the newest that is left.
        """
        with disk_errors(f"removing model {manifest.name}", self.models):
            folder = self.models / manifest.name
            left = [one for one in self.versions(manifest.name) if one.version != manifest.version]
            bases = [one for one in left if one.quantization is None]
            if self.current(manifest.name) in (manifest.version, None):
                if bases:
                    self.switch(bases[-1])
                else:
                    (folder / CURRENT).unlink(missing_ok=True)
            gone = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{manifest.name}-", dir=self.models))
            self.folder(manifest).rename(gone / manifest.version)
            if not left:
                shutil.rmtree(folder)
            _flush(self.models)
            shutil.rmtree(gone)

    def _share(self, staged: Path, manifest: Manifest) -> None:
        """Replace staged files by hard links to the same content elsewhere in the store.

        That content is read first: a damaged copy must not spread. Where the disk cannot link, both stay.
        """
        known = {
            (file.sha256, file.bytes): self.folder(other) / file.path
            for other in self.readable()
            for file in other.files
        }
        for file in manifest.files:
            there = known.get((file.sha256, file.bytes))
            if there and there.is_file() and sha256_files([there], Silent()) == (file.sha256,):
                with suppress(OSError):
                    _link_over(there, staged / file.path)


def _read(path: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, FileNotFoundError, UnicodeDecodeError) as error:
        raise DigestMismatch(f"{path}: not a readable manifest: {error}", AGAIN) from error
    if path.parts[-3:-1] != (manifest.name, manifest.version):
        raise DigestMismatch(
            f"{path}: describes {manifest.name} {manifest.version}, not what its folder says", AGAIN
        )
    return manifest


def _base(manifest: Manifest) -> str | None:
    return manifest.quantization.base if manifest.quantization else None


def _problem(path: Path) -> DigestMismatch | None:
    try:
        _read(path)
    except DigestMismatch as error:
        return error
    return None


def _link_over(there: Path, here: Path) -> None:
    """`here` becomes another name of `there`, without a moment in which it is missing."""
    passing = here.with_name(f"{here.name}.link")
    os.link(there, passing)
    passing.replace(here)


def _check_names(folder: Path, manifest: Manifest, present: set[str]) -> None:
    promised = {file.path for file in manifest.files}
    for name in sorted(promised - present):
        raise DigestMismatch(f"{folder / name}: missing, the manifest promises it", AGAIN)
    for name in sorted(present - promised):
        raise DigestMismatch(f"{folder / name}: not in the manifest", AGAIN)


def _check_size(path: Path, file: StoredFile) -> None:
    if path.is_symlink():
        raise DigestMismatch(f"{path}: is a link, the manifest promises a file", AGAIN)
    size = path.stat().st_size
    if size != file.bytes:
        raise DigestMismatch(f"{path}: {size} bytes long, the manifest says {file.bytes}", AGAIN)


def _same(existing: Manifest, manifest: Manifest, folder: Path) -> Manifest:
    if existing.origin.sha256 == manifest.origin.sha256:
        return existing
    raise StoreError(
        f"{folder} already holds {existing.name} {existing.version} from {existing.source}, "
        f"which is not what {manifest.source} holds",
        "give the new model another name; a stored version is never changed",
    )


def _seal(folder: Path) -> None:
    """Flush everything to disk and take the write permission away: a stored version never changes."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in regular_files(folder).values():
        _flush(path)
        path.chmod(0o444)
    for path in folders:
        path.chmod(0o755)
        _flush(path)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
