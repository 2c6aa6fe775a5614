"""docker-compose.yml → services, with `extends` within the file followed.

What is not a compose file is refused. It is kept as the file has it: nothing is started, nothing is written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sovereign_ai.errors import ConfigError, disk_errors
from sovereign_ai.migrate.book import Book
from sovereign_ai.migrate.dotenv import Setting, read_settings
from sovereign_ai.migrate.secrets import concealed, secrets_of
from sovereign_ai.migrate.service import Around, Service, read_service
from sovereign_ai.migrate.tree import (
    MERGED_CONFIG,
    Fields,
    Items,
    Missing,
    Place,
    Scalar,
    Tree,
    kind_of,
    read_tree,
)

LARGEST_BYTES = 1024 * 1024
"""No compose file or `.env` is that large; a model that is named by mistake is larger."""

SERVICE_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
VERSION = re.compile(r"[23](\.[0-9]+){0,2}")
CONCATENATED = ("ports", "volumes", "env_file", "profiles", "devices", "expose")
"""Lists of which a service that extends another has both; all other lists it replaces."""

MOST_SERVICES = 500


class Stack(NamedTuple):
    """A compose file that was read."""

    path: Path
    services: tuple[Service, ...]
    variables: Mapping[str, str]

    @property
    def place(self) -> Place:
        return Place(str(self.path), 1)


def read_stack(path: Path, book: Book) -> Stack:
    """The services, and in the book what could not be followed. Raises ConfigError with file and line."""
    variables = _dotenv(path, book)
    try:
        return _read(path, variables, book)
    except ConfigError as error:
        raise concealed(error, secrets_of((), variables)) from error.__cause__


def _read(path: Path, variables: Mapping[str, str], book: Book) -> Stack:
    root, missing = read_tree(str(path), read_text(path), variables)
    top = _checked(path, root)
    services = _services(top)
    around = Around(variables, _EnvFiles(path, variables, book, missing), missing, _folders(top))
    _tell_includes(top, book)
    found = []
    for name, tree in services.entries.items():
        fields = _extended(services, name, tree, book)
        found.append(read_service(name, services.keys[name], fields, around))
    _tell_missing(missing, book)
    return Stack(path, tuple(found), variables)


def read_text(path: Path) -> str:
    """A file's text. Raises ConfigError where it cannot be read as one."""
    try:
        with disk_errors("reading", path), path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB, no compose file is", "is it the right file?")
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "give the path of your docker-compose.yml") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, not a file", "name the compose file in it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError(f"{path}: cannot be read: {problem}") from error


def _dotenv(path: Path, book: Book) -> dict[str, str]:
    """The variables of `.env` beside the file; none where there is no such file."""
    beside = path.with_name(".env")
    if not beside.is_file():
        return {}
    settings, missing = read_settings(str(beside), read_text(beside), {})
    _tell_missing(missing, book)
    return {name: setting.value for name, setting in settings.items()}


class _EnvFiles:
    """Reads each `env_file` once, relative to the compose file's folder."""

    def __init__(self, path: Path, variables: Mapping[str, str], book: Book, missing: list[Missing]) -> None:
        self.path, self.variables, self.book, self.missing = path, variables, book, missing
        self._read: dict[str, Mapping[str, Setting]] = {}

    def __call__(self, name: str, place: Place, required: bool) -> Mapping[str, Setting]:
        if name not in self._read:
            self._read[name] = self._settings(name, place, required)
        return self._read[name]

    def _settings(self, name: str, place: Place, required: bool) -> Mapping[str, Setting]:
        file = self.path.parent / name
        if not name or "\0" in name or not file.is_file():
            if required and name:
                todo = "run this where the file is, or write what it sets into the compose file"
                self.book.left(place, "", f"env_file `{name}` is not there: what it sets is not known", todo)
            return {}
        settings, missing = read_settings(str(file), read_text(file), self.variables)
        self.missing += missing
        return settings


def _checked(path: Path, root: Tree) -> Fields:
    hint = "give a compose file: one with a `services:` key"
    if not isinstance(root, Fields):
        raise ConfigError(f"{root.place}: not a compose file: {kind_of(root)} at its top", hint)
    if "services" not in root.entries:
        found = next((key for key in ("kind", "apiVersion", "models", "jobs") if key in root.entries), None)
        line = root.keys[found] if found else root.place
        raise ConfigError(f"{line}: not a compose file: it has no `services`", hint)
    version = root.get("version")
    if version is not None and not (isinstance(version, Scalar) and VERSION.fullmatch(version.text or "")):
        said = version.text if isinstance(version, Scalar) else kind_of(version)
        raise ConfigError(f"{root.keys['version']}: unknown version `{said}`", "compose files are 2.x or 3.x")
    return root


def _services(top: Fields) -> Fields:
    place = top.keys["services"]
    services = top.get("services")
    if services is None or (isinstance(services, Fields) and not services.entries):
        raise ConfigError(f"{place}: there are no services", "name the file that has them")
    if not isinstance(services, Fields):
        raise ConfigError(f"{place}: `services` takes a mapping, not {kind_of(services)}")
    if len(services.entries) > MOST_SERVICES:
        raise ConfigError(f"{place}: {len(services.entries)} services are more than any stack has")
    for name, tree in services.entries.items():
        if not SERVICE_NAME.fullmatch(name):
            raise ConfigError(f"{services.keys[name]}: `{name}` cannot be a service's name")
        if not isinstance(tree, Fields):
            raise ConfigError(f"{services.keys[name]}: service `{name}` is {kind_of(tree)}, not a mapping")
    return services


def _folders(top: Fields) -> dict[str, str]:
    """Named volumes that are folders of the host: `driver_opts: {o: bind, device: PATH}`."""
    volumes = top.get("volumes")
    found: dict[str, str] = {}
    for name, volume in volumes.entries.items() if isinstance(volumes, Fields) else ():
        options = volume.get("driver_opts") if isinstance(volume, Fields) else None
        device = options.get("device") if isinstance(options, Fields) else None
        if isinstance(device, Scalar) and (device.text or "").startswith(("/", "./", "../", "~")):
            found[name] = device.text or ""
    return found


def _tell_includes(top: Fields, book: Book) -> None:
    if top.get("include") is not None:
        book.left(top.keys["include"], "", "files of `include` are not read", MERGED_CONFIG)
    if top.get("models") is not None:
        what = "models of Docker's model runner are not read"
        book.left(top.keys["models"], "", what, "add them to factory.yaml by hand: hf:ORG/NAME or file:PATH")


def _tell_missing(missing: list[Missing], book: Book) -> None:
    """One line a variable, however often it is used."""
    first: dict[str, Missing] = {}
    for one in missing:
        first.setdefault(one.name, one)
    for name, one in first.items():
        lines = sorted({other.place.line for other in missing if other.name == name})
        more = f" (also line {', '.join(map(str, lines[1:]))})" if len(lines) > 1 else ""
        insists = ", and the file insists on one" if one.message else ""
        what = f"variable `{name}` has no value{more}{insists}: it counts as empty"
        todo = f"give it one in `.env` beside the file ({name}=…) and run this again, where it matters"
        book.assumed(one.place, "", what, todo)


# extends


def _extended(services: Fields, name: str, tree: Tree, book: Book, seen: tuple[str, ...] = ()) -> Fields:
    """The service with what it takes from another one of the file."""
    assert isinstance(tree, Fields)  # noqa: S101  _services has checked all of them
    extends = tree.get("extends")
    if extends is None:
        return tree
    place = tree.keys["extends"]
    if name in seen:
        raise ConfigError(f"{place}: `{name}` extends itself, by way of {', '.join(seen)}")
    other = _extends_what(extends, name, place, book)
    if other is None:
        return tree
    if other not in services.entries:
        near = difflib.get_close_matches(other, services.entries, n=1)
        raise ConfigError(
            f"{place}: there is no service `{other}` to extend", f"did you mean `{near[0]}`?" if near else ""
        )
    base = _extended(services, other, services.entries[other], book, (*seen, name))
    return _joined_fields(base, tree)


def _extends_what(extends: Tree, name: str, place: Place, book: Book) -> str | None:
    """The service's name; None where it is in another file, which is told."""
    if isinstance(extends, Scalar):
        return extends.text
    service = extends.get("service") if isinstance(extends, Fields) else None
    if not isinstance(extends, Fields) or not isinstance(service, Scalar):
        raise ConfigError(f"{place}: `extends` takes a service's name")
    if extends.get("file") is not None:
        what = "extends a service of another file: what it takes from there is not read"
        book.left(place, name, what, MERGED_CONFIG)
        return None
    return service.text


def _joined_fields(base: Fields, own: Fields) -> Fields:
    entries, keys = dict(base.entries), {**base.keys, **own.keys}
    for key, value in own.entries.items():
        entries[key] = _joined(key, entries[key], value) if key in entries else value
    return Fields(entries, keys, own.place)


def _joined(key: str, base: Tree, own: Tree) -> Tree:
    if key == "environment":
        base, own = _as_fields(base), _as_fields(own)
    if isinstance(base, Fields) and isinstance(own, Fields):
        return _joined_fields(base, own)
    if isinstance(base, Items) and isinstance(own, Items) and key in CONCATENATED:
        return Items((*base.items, *own.items), own.place)
    return own


def _as_fields(tree: Tree) -> Tree:
    """`- NAME=value` as `NAME: value`; what is neither stays for the reader to refuse."""
    scalars = [item for item in tree.items if isinstance(item, Scalar)] if isinstance(tree, Items) else []
    if not isinstance(tree, Items) or len(scalars) < len(tree.items):
        return tree
    entries: dict[str, Tree] = {}
    keys: dict[str, Place] = {}
    for item in scalars:
        name, equals, value = (item.text or "").partition("=")
        entries[name], keys[name] = Scalar(value if equals else None, item.place), item.place
    return Fields(entries, keys, tree.place)
