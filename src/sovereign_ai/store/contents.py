"""Which files of a package or folder make a model. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.store.manifest import MANIFEST_NAME

TAKEN = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
"""What a model folder may hold: weights, configuration, vocabularies, chat templates. No code."""
PICKLES = frozenset({".bin", ".pt", ".ckpt", ".pth", ".pkl"})


class Contents(NamedTuple):
    """The files to take. `gguf` is set for a GGUF (the first part, where it is split: `files` are all of
    them); else `root` is the model's folder, and `files` are below it."""

    gguf: PurePosixPath | None
    root: PurePosixPath
    files: tuple[PurePosixPath, ...]


def choose(
    names: Iterable[PurePosixPath], where: str, *, code: bool = False, gguf: PurePosixPath | None = None
) -> Contents:
    """The one model among `names`: a folder with config.json and SafeTensors, else a single GGUF.

    Of nested folders the outermost counts. Hidden files and names that lead elsewhere are never taken; `code`
    takes *.py too; `gguf` names the one to take. Raises UnsupportedModel where there is no model or more than
    one; `where` is what holds the files, for the message.
    """
    paths = [name for name in names if is_safe(name)]
    if gguf is not None:
        return _gguf(gguf, paths, where)
    roots = _model_folders(paths)
    if roots:
        root = _only(roots, where, "model folders")
        return Contents(None, root, tuple(path for path in paths if _taken(path, root, code=code)))
    ggufs = [path for path in paths if path.suffix.lower() == ".gguf" and not _is_later_part(path)]
    if ggufs:
        return _gguf(_only(ggufs, where, "GGUF files"), paths, where)
    raise _nothing(paths, where)


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
"""How `gguf-split` names the parts of a model."""


def _is_later_part(path: PurePosixPath) -> bool:
    part = _PART.fullmatch(path.name)
    return part is not None and int(part[2]) > 1


def _gguf(chosen: PurePosixPath, paths: list[PurePosixPath], where: str) -> Contents:
    """A GGUF with all of its parts."""
    if chosen not in paths:
        raise UnsupportedModel(f"{where} holds no file {chosen}", "check its name")
    return Contents(chosen, chosen.parent, tuple(path for path in paths if path in parts_of(chosen)))


def parts_of(chosen: PurePosixPath) -> frozenset[PurePosixPath]:
    """The names of all parts of a GGUF; its own, where it is not split."""
    part = _PART.fullmatch(chosen.name)
    if part is None or int(part[3]) > MOST_PARTS:
        return frozenset({chosen})
    names = (f"{part[1]}-{number:05d}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1))
    return frozenset(chosen.with_name(name) for name in names)


MOST_PARTS = 1000


def _model_folders(paths: list[PurePosixPath]) -> list[PurePosixPath]:
    configured = {path.parent for path in paths if path.name == "config.json"}
    found = {path.parent for path in paths if path.suffix == ".safetensors"} & configured
    return sorted(folder for folder in found if not found.intersection(folder.parents))


def is_safe(path: PurePosixPath) -> bool:
    """Whether a name that a stranger chose stays inside the folder it is put into, and in sight."""
    text = str(path)
    parts = path.parts
    return (
        not path.is_absolute()
        and not any(part.startswith(".") for part in parts)
        and not any(character in text for character in UNSAFE)
        and 0 < len(parts) <= DEEPEST
        and max(len(part.encode(errors="replace")) for part in parts) <= LONGEST_NAME
    )


UNSAFE = frozenset("\\\0\n\r")
DEEPEST, LONGEST_NAME = 8, 255
"""Folders in one another, and bytes in a name: what file systems take."""


def is_taken(path: PurePosixPath, *, code: bool = False) -> bool:
    """Whether a file of this name may be part of a stored model. `code` allows *.py."""
    kept = path.suffix in TAKEN or path.stem.upper() in ("LICENSE", "NOTICE")
    return kept or (code and path.suffix == ".py")


def _taken(path: PurePosixPath, root: PurePosixPath, *, code: bool) -> bool:
    if not path.is_relative_to(root) or path == root / MANIFEST_NAME:
        return False  # a folder of a store brings its manifest along; the copy gets one of its own
    return is_taken(path, code=code)


def _only(found: list[PurePosixPath], where: str, what: str) -> PurePosixPath:
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(path) for path in found[:5])
    raise UnsupportedModel(
        f"{where} holds {len(found)} {what}: {names}",
        "name one of them: file:PATH, or hf:ORG/NAME/FILE.gguf on a hub",
    )


def _nothing(paths: list[PurePosixPath], where: str) -> UnsupportedModel:
    pickles = [path for path in paths if path.suffix in PICKLES]
    if pickles:
        return UnsupportedModel(
            f"{where} holds its weights only as pickles ({pickles[0]}); loading a pickle can run any program",
            "look for the same model as SafeTensors or GGUF",
        )
    return UnsupportedModel(
        f"{where} holds no model: neither config.json with *.safetensors nor a .gguf file",
        "check the name, or point file:PATH at the folder with config.json",
    )
