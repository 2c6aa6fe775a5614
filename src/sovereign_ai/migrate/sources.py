"""Where a model came from, in the words of factory.yaml: container paths become paths of the host. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple

from sovereign_ai.config import HUB_SOURCE
from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.names import original, plain_name
from sovereign_ai.migrate.service import Mount, Service, Word

CONVERTED = (
    "the GGUF{quant} becomes SafeTensors when it is brought in: its values are written out at 16 bit, and "
    "the plan quantizes anew only where that does not fit"
)


class Origin(NamedTuple):
    """A source and the name that goes with it."""

    source: str
    called: str


def origin_of(service: Service, page: Page, word: Word, *, folder: str, revision: str = "") -> Origin | None:
    """A path of the container or a hub name; None, told in the book, for what is neither.

    `folder` is where relative paths begin in the container.
    """
    text = word.text.strip()
    if is_path(text) or _mounted(service, posixpath.join(folder, text)):
        return from_path(service, page, word, folder=folder)
    return from_hub(page, word, revision=revision)


def is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf")


def from_path(service: Service, page: Page, word: Word, *, folder: str) -> Origin | None:
    """The model at a path of the container, by the volumes. The host's path is as the compose file has it."""
    inside = posixpath.normpath(posixpath.join(folder, word.text.strip()))
    mount = _mounted(service, inside)
    if mount is None:
        what = f"`{inside}` is in no volume: the model is inside the image, or was never there"
        page.left(word.place, what, "find the file and add the model: source: file:PATH")
        return None
    if not is_host_path(mount.source):
        volume = f"volume `{mount.source}`" if mount.source else "a volume without a name"
        what = f"`{inside}` is in Docker's {volume}, not in a folder of the host"
        todo = (
            f"copy it out (docker compose cp {service.name}:{inside} .) and add the model: source: file:PATH"
        )
        page.left(word.place, what, todo)
        return None
    if "\0" in inside or "\0" in mount.source:
        page.left(word.place, "the model's path holds a NUL character")
        return None
    if inside.lower().endswith(".gguf"):
        tell_conversion(page, word)
    rest = posixpath.relpath(inside, posixpath.normpath(mount.target))
    host = mount.source.rstrip("/") if rest == "." else posixpath.join(mount.source, rest)
    return Origin(f"file:{_tidy(host)}", plain_name(inside)[0])


def is_host_path(source: str) -> bool:
    return (
        source.startswith(("/", ".", "~/"))
        or source == "~"
        or re.match(r"[A-Za-z]:[\\/]", source) is not None
    )


def _tidy(path: str) -> str:
    return path if path.startswith("~") else posixpath.normpath(path)


def _mounted(service: Service, inside: str) -> Mount | None:
    """The innermost volume that holds `inside`; the later one of two at the same place."""
    best: Mount | None = None
    for mount in service.mounts:
        target = posixpath.normpath(mount.target)
        holds = mount.target and (inside == target or inside.startswith(target.rstrip("/") + "/"))
        if holds and (best is None or len(target) >= len(posixpath.normpath(best.target))):
            best = mount
    return best


def tell_conversion(page: Page, word: Word) -> None:
    """What becomes of a GGUF, and the better source where the catalog knows it."""
    bare, quant = plain_name(word.text)
    known = original(bare)
    todo = f"the original is better than a copy that was quantized twice: source: hf:{known}" if known else ""
    page.changed(word.place, CONVERTED.format(quant=f" ({quant})" if quant else ""), todo)


def from_hub(page: Page, word: Word, *, revision: str = "") -> Origin | None:
    """ORG/NAME, as Hugging Face has it."""
    name = word.text.strip()
    source = f"{name}@{revision}" if revision else name
    if not HUB_SOURCE.fullmatch(source):
        what = f"`{name}` is not a hub name of the form ORG/NAME, nor a path in a volume"
        page.left(word.place, what, "add the model by hand: source: hf:ORG/NAME or file:PATH")
        return None
    return Origin(f"hf:{source}", plain_name(name)[0])


def from_gguf_repository(page: Page, word: Word, quant: str) -> Origin | None:
    """A repository of GGUFs: the original where the catalog knows which it is."""
    name = word.text.strip().removesuffix("/")
    known = original(name)
    if known is None:
        found = from_hub(page, Word(name, word.place))
        if found is not None:
            todo = "name the repository that has the original's SafeTensors, if there is one"
            page.changed(word.place, CONVERTED.format(quant=f" ({quant})" if quant else ""), todo)
        return found
    held = f"{name}:{quant}" if quant else name
    what = f"`{held}` holds GGUF: the original's SafeTensors take its place"
    what += ", and the plan quantizes them only where they do not fit"
    page.changed(word.place, what)
    return Origin(f"hf:{known}", plain_name(known)[0])
