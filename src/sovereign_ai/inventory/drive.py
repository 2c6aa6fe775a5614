"""Where the models of a cluster lie on this machine, as its mount table tells. Reading only; doctor_drive.py
judges. `root` stands for `/` in tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from sovereign_ai.inventory.system import text_of
from sovereign_ai.spec import Noun

SENTINEL = ".sovereign-storage"
"""A file that only the drive has: an empty folder where it should be mounted does not."""


class Mount(Noun, frozen=True, kw_only=True):
    """A line of /proc/self/mountinfo. `device` is major:minor; `part` the folder of the file system that is
    mounted, `/` for all of it."""

    point: str
    device: str
    part: str
    kind: str
    source: str
    read_only: bool


class Drive(Noun, frozen=True, kw_only=True):
    """`mounts`: the whole table, in order; None where it cannot be read. Bytes."""

    path: str = ""
    there: bool = False
    mounts: tuple[Mount, ...] | None = None
    sentinel: bool = False
    free_bytes: int | None = None

    @property
    def mount(self) -> Mount | None:
        """What the path lies on: the last of the deepest mount points."""
        around = [one for one in self.mounts or () if _below(self.path, one.point)]
        return max(enumerate(around), key=lambda pair: (len(pair[1].point), pair[0]))[1] if around else None

    @property
    def below(self) -> tuple[Mount, ...]:
        """Mounts inside the path."""
        return tuple(
            one for one in self.mounts or () if one.point != self.path and _below(one.point, self.path)
        )


def _below(path: str, point: str) -> bool:
    return PurePosixPath(path).is_relative_to(point)


def read_drive(root: Path, path: Path) -> Drive:
    here = root / path.relative_to("/") if path.is_absolute() else root / path
    text = text_of(root / "proc/self/mountinfo")
    try:
        free = shutil.disk_usage(here).free
    except OSError:
        free = None
    return Drive(
        path=os.fspath(path),
        there=here.is_dir(),
        mounts=None if text is None else tuple(parse_mounts(text)),
        sentinel=(here / SENTINEL).exists(),
        free_bytes=free,
    )


def parse_mounts(text: str) -> list[Mount]:
    """proc_pid_mountinfo(5): fields up to `-`, then type, source and the file system's own options."""
    found = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        options = {*fields[5].split(","), *rest[2].split(",")}
        found.append(
            Mount(
                point=_plain(fields[4]),
                device=fields[2],
                part=_plain(fields[3]),
                kind=rest[0],
                source=_plain(rest[1]),
                read_only="ro" in options,
            )
        )
    return found


def _plain(text: str) -> str:
    """Spaces and the like stand there in octal."""
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, sign)
    return text
