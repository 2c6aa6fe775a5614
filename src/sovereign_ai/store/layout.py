"""Where models live on disk, and the one way in.

    <storage>/models/<name>/<version>/    the files of one version, and manifest.json; never changed
    <storage>/models/.partial-<name>-…/   one being written
    <storage>/models/.lock                held by the one writer

A version is written in full beside the others, flushed to disk and renamed into its place: whatever
interrupts that, readers see all of it or nothing, and need no lock. The lock is the kernel's, so it ends
with its process; what a dead writer left is removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sovereign_ai.console import Console, Progress, human_bytes
from sovereign_ai.errors import DigestMismatch, NoSpace, StoreError, disk_errors
from sovereign_ai.store.digest import sha256_files
from sovereign_ai.store.manifest import MANIFEST_NAME, Manifest, StoredFile
from sovereign_ai.store.source import satisfies

PARTIAL = ".partial-"
LOCK_NAME = ".lock"
AGAIN = "remove that folder and run `up` again"


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
            found = sorted(self.models.glob(f"*/*/{MANIFEST_NAME}"))
            return tuple(_read(path) for path in found if not path.parts[-3].startswith("."))

    def find(self, name: str, source: str) -> Manifest | None:
        """The newest version of `name` that came from `source`."""
        with disk_errors("reading the model store", self.models):
            found = [_read(path) for path in sorted((self.models / name).glob(f"*/{MANIFEST_NAME}"))]
        fitting = (manifest for manifest in found if satisfies(manifest.source, source))
        return max(fitting, key=lambda manifest: manifest.created, default=None)

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
        target = self.folder(manifest)
        if target.exists():
            return _same(_read(target / MANIFEST_NAME), manifest, target)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        (staged / MANIFEST_NAME).write_bytes(text + b"\n")
        _seal(staged)
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
        _flush(target.parent)
        _flush(self.models)
        return manifest


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
