"""One service of a compose file: what of it matters here, each with its place. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.dotenv import Setting
from sovereign_ai.migrate.tree import Fields, Items, Missing, Place, Scalar, Tree, kind_of

ROWS_SEARCHED = 100
"""Lines that are searched for the next word of a command: no command has so much space between two."""


class Word(NamedTuple):
    """A word of a command, or a value, and where it stands. `rows` are the lines of a block of text."""

    text: str
    place: Place
    rows: tuple[str, ...] = ()


class Mount(NamedTuple):
    """`source` is a path of the host, or a volume's name; empty for a volume without one."""

    source: str
    target: str
    place: Place


class Port(NamedTuple):
    """A published port. `host` is the address it listens on: empty for all; `port` is None where the system
    chooses."""

    host: str
    port: int | None
    target: int
    place: Place


class GpuRequest(NamedTuple):
    """What a service asks for: so many GPUs (None: all), or those of `ids`."""

    number: int | None
    ids: tuple[Word, ...]
    place: Place


class Service(NamedTuple):
    name: str
    place: Place
    image: str
    image_place: Place
    entrypoint: tuple[Word, ...]
    command: tuple[Word, ...]
    others: tuple[Word, ...]
    """Words of the health check and of hooks."""
    environment: Mapping[str, Word]
    mounts: tuple[Mount, ...]
    ports: tuple[Port, ...]
    gpus: GpuRequest | None
    profiles: tuple[str, ...]
    host_network: bool
    replicas: int
    built: bool

    @property
    def words(self) -> tuple[Word, ...]:
        return (*self.entrypoint, *self.command)

    def setting(self, *names: str) -> Word | None:
        """The first of the environment's variables that has a value."""
        found = (self.environment.get(name) for name in names)
        return next((word for word in found if word is not None and word.text.strip()), None)


class Around(NamedTuple):
    """What lies beside a service: its files' settings, the variables, named volumes that are host folders."""

    variables: Mapping[str, str]
    env_file: Callable[[str, Place, bool], Mapping[str, Setting]]
    missing: list[Missing]
    folders: Mapping[str, str]


def read_service(name: str, place: Place, fields: Fields, around: Around) -> Service:
    """Raises ConfigError with file and line for values of the wrong kind."""
    image = _text(fields, "image")
    hooks = _hooks(fields)
    health = fields.get("healthcheck")
    if isinstance(health, Fields):
        hooks += _test(health.get("test"))
    network = _text(fields, "network_mode")
    return Service(
        name=name,
        place=place,
        image=image.text if image else "",
        image_place=image.place if image else place,
        entrypoint=_words(fields.get("entrypoint"), "entrypoint"),
        command=_words(fields.get("command"), "command"),
        others=hooks,
        environment=_environment(fields, around),
        mounts=tuple(_mount(item, around.folders) for item in _list(fields, "volumes")),
        ports=tuple(port for item in _list(fields, "ports") for port in _ports(item)),
        gpus=_gpus(fields),
        profiles=tuple(word.text for word in _texts(fields, "profiles")),
        host_network=network is not None and network.text == "host",
        replicas=_copies(fields),
        built=fields.get("build") is not None,
    )


def _wrong(tree: Tree, what: str, expected: str) -> ConfigError:
    return ConfigError(f"{tree.place}: `{what}` takes {expected}, not {kind_of(tree)}")


def _text(fields: Fields, key: str) -> Word | None:
    found = fields.get(key)
    if found is None:
        return None
    if not isinstance(found, Scalar):
        raise _wrong(found, key, "a text")
    return Word(found.text or "", found.place)


def _list(fields: Fields, key: str) -> tuple[Tree, ...]:
    found = fields.get(key)
    if found is None:
        return ()
    if not isinstance(found, Items):
        raise _wrong(found, key, "a list")
    return found.items


def _texts(fields: Fields, key: str) -> tuple[Word, ...]:
    return tuple(_item(item, key) for item in _list(fields, key))


def _item(tree: Tree, what: str) -> Word:
    if not isinstance(tree, Scalar):
        raise _wrong(tree, what, "a list of texts")
    return Word(tree.text or "", tree.place, tree.rows)


def _fields(fields: Fields, *keys: str) -> Fields | None:
    """The mapping at the end of `keys`; None where any of them is not there."""
    at = fields
    for key in keys:
        found = at.get(key)
        if found is None:
            return None
        if not isinstance(found, Fields):
            raise _wrong(found, key, "a mapping")
        at = found
    return at


def _words(tree: Tree | None, what: str) -> tuple[Word, ...]:
    """A command as a list, or as a text that is split as a shell would."""
    if tree is None:
        return ()
    if isinstance(tree, Items):
        return tuple(_item(item, what) for item in tree.items)
    if not isinstance(tree, Scalar):
        raise _wrong(tree, what, "a text or a list")
    try:
        parts = shlex.split(tree.text or "")
    except ValueError as error:
        raise ConfigError(f"{tree.place}: `{what}` has a quote that is not closed") from error
    return tuple(placed(parts, tree.place, tree.rows))


def placed(parts: Sequence[str], place: Place, rows: Sequence[str]) -> list[Word]:
    """Words with the lines they stand on.

    A block of text has one place: its lines are searched, in order, for the words. One that is not found
    literally (a variable was filled in) is where the one before it is.
    """
    at = 0
    words: list[Word] = []
    for part in parts:
        first = part.splitlines()[0] if part.strip() else part
        near = range(at, min(len(rows), at + ROWS_SEARCHED))
        at = next((row for row in near if len(first) > 1 and first in rows[row]), at)
        words.append(Word(part, Place(place.path, place.line + at)))
    return words


def _hooks(fields: Fields) -> tuple[Word, ...]:
    hooks: tuple[Word, ...] = ()
    for item in _list(fields, "post_start"):
        if isinstance(item, Fields):
            hooks += _words(item.get("command"), "command")
    return hooks


def _test(tree: Tree | None) -> tuple[Word, ...]:
    """A health check as a text is a script."""
    if isinstance(tree, Scalar):
        return (Word("CMD-SHELL", tree.place), Word(tree.text or "", tree.place, tree.rows))
    return _words(tree, "test")


# Environment


def _environment(fields: Fields, around: Around) -> dict[str, Word]:
    found: dict[str, Word] = {}
    for path, required in _env_files(fields):
        settings = around.env_file(path.text, path.place, required)
        found |= {name: Word(setting.value, setting.place) for name, setting in settings.items()}
    for name, word in _pairs(fields.get("environment")):
        if word.text is not None:
            found[name] = Word(word.text, word.place)
        elif name in around.variables:
            found[name] = Word(around.variables[name], word.place)
        elif name not in found:
            around.missing.append(Missing(name, word.place, ""))
    return found


def _pairs(tree: Tree | None) -> list[tuple[str, Scalar]]:
    """NAME and value, from a mapping or from a list of NAME=value."""
    if tree is None:
        return []
    if isinstance(tree, Items):
        texts = [_item(item, "environment") for item in tree.items]
        return [_pair(word) for word in texts]
    if not isinstance(tree, Fields):
        raise _wrong(tree, "environment", "a mapping or a list")
    for value in tree.entries.values():
        if not isinstance(value, Scalar):
            raise _wrong(value, "environment", "a text for each variable")
    return [
        (name, value._replace(place=tree.keys[name]))
        for name, value in tree.entries.items()
        if isinstance(value, Scalar)
    ]


def _pair(word: Word) -> tuple[str, Scalar]:
    name, equals, value = word.text.partition("=")
    return name, Scalar(value if equals else None, word.place)


def _env_files(fields: Fields) -> list[tuple[Word, bool]]:
    found = fields.get("env_file")
    items = found.items if isinstance(found, Items) else () if found is None else (found,)
    files: list[tuple[Word, bool]] = []
    for item in items:
        if isinstance(item, Fields):
            path, required = _text(item, "path"), _text(item, "required")
            if path is not None:
                files.append((path, required is None or required.text.lower() != "false"))
        else:
            files.append((_item(item, "env_file"), True))
    return files


# Volumes and ports


def _mount(tree: Tree, folders: Mapping[str, str]) -> Mount:
    if isinstance(tree, Fields):
        source, target = _text(tree, "source"), _text(tree, "target")
        name = source.text if source else ""
        return Mount(folders.get(name, name), target.text if target else "", tree.place)
    word = _item(tree, "volumes")
    source_text, colon, rest = _split_drive(word.text)
    if not colon:
        return Mount("", source_text, word.place)
    return Mount(folders.get(source_text, source_text), rest.partition(":")[0], word.place)


def _split_drive(text: str) -> tuple[str, str, str]:
    """`C:\\models:/models` is one path and another, not three."""
    if re.match(r"[A-Za-z]:[\\/][^:]*:/", text):
        source, colon, rest = text[2:].partition(":")
        return text[:2] + source, colon, rest
    return text.partition(":")


_SHORT_PORT = re.compile(
    r"(?:(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]*):)?(?P<port>[0-9-]*):)?(?P<target>[0-9-]+)(?:/(?P<kind>\w+))?"
)


def _ports(tree: Tree) -> list[Port]:
    """A list: `8000-8002:8000-8002` publishes three."""
    if isinstance(tree, Fields):
        published, target = _text(tree, "published"), _text(tree, "target")
        host, kind = _text(tree, "host_ip"), _text(tree, "protocol")
        if target is None:
            raise ConfigError(f"{tree.place}: a port without its `target`")
        parts = (host.text if host else "", published.text if published else "", target.text)
        return _ranges(*parts, kind.text if kind else "tcp", tree.place)
    word = _item(tree, "ports")
    found = _SHORT_PORT.fullmatch(word.text.strip())
    if found is None:
        if not word.text.strip(": "):
            return []  # a variable without a value, which is told elsewhere
        raise ConfigError(f"{word.place}: `{word.text}` is not a port", 'write "HOST:CONTAINER", in quotes')
    host_text = (found["host"] or "").strip("[]")
    return _ranges(host_text, found["port"] or "", found["target"], found["kind"] or "tcp", word.place)


def _ranges(host: str, published: str, target: str, kind: str, place: Place) -> list[Port]:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]*", host):
        raise ConfigError(f"{place}: `{host}` is not an address to listen on")
    targets = _range(target, place)
    outside: list[int | None] = [*_range(published, place)] if published else [None] * len(targets)
    if len(outside) != len(targets) and len(targets) == 1:
        outside = outside[:1]
    if len(outside) != len(targets):
        raise ConfigError(f"{place}: {len(outside)} ports are published for {len(targets)}")
    pairs = zip(outside, targets, strict=True)
    return [Port(host, port, inside, place) for port, inside in pairs if kind == "tcp"]


def _range(text: str, place: Place) -> list[int]:
    first, dash, last = text.partition("-")
    numbers = [whole(part, "a port", place, 1, 65535) for part in ((first, last) if dash else (first,))]
    if numbers[-1] - numbers[0] > 1000:
        raise ConfigError(f"{place}: {numbers[-1] - numbers[0] + 1} ports are more than anything serves")
    if numbers[-1] < numbers[0]:
        raise ConfigError(f"{place}: the ports count backwards")
    return list(range(numbers[0], numbers[-1] + 1))


def whole(text: str, what: str, place: Place, least: int, most: int) -> int:
    """The whole number that `text` is. Raises ConfigError for none, or one out of bounds."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise ConfigError(f"{place}: `{text}` is not a whole number, as {what} is")
    number = int(text)
    if not least <= number <= most:
        raise ConfigError(f"{place}: {number} cannot be {what}: it is not between {least:,} and {most:,}")
    return number


# GPUs


def _gpus(fields: Fields) -> GpuRequest | None:
    """From `gpus`, `deploy.resources.reservations.devices` or `runtime: nvidia`, in this order."""
    asked = fields.get("gpus")
    if isinstance(asked, Scalar):
        return GpuRequest(_count(asked), (), asked.place)
    requests = _requests(_list(fields, "gpus") if asked is not None else _reserved(fields))
    if requests:
        counts = [request.number for request in requests]
        number = None if None in counts else sum(one for one in counts if one is not None)
        return GpuRequest(number, tuple(word for one in requests for word in one.ids), requests[0].place)
    runtime = _text(fields, "runtime")
    if runtime is not None and runtime.text == "nvidia":
        return GpuRequest(None, (), runtime.place)
    return None


def _reserved(fields: Fields) -> tuple[Tree, ...]:
    reservations = _fields(fields, "deploy", "resources", "reservations")
    return () if reservations is None else _list(reservations, "devices")


def _requests(items: Sequence[Tree]) -> list[GpuRequest]:
    requests = []
    for item in items:
        if not isinstance(item, Fields):
            raise _wrong(item, "devices", "a list of mappings")
        capabilities = [word.text for word in _texts(item, "capabilities")]
        driver = _text(item, "driver")
        if "gpu" in capabilities or (driver is not None and driver.text == "nvidia"):
            requests.append(_request(item))
    return requests


def _request(item: Fields) -> GpuRequest:
    ids, count = _texts(item, "device_ids"), item.get("count")
    if ids:
        return GpuRequest(len(ids), ids, item.keys["device_ids"])
    if count is not None and not isinstance(count, Scalar):
        raise _wrong(count, "count", "a number or `all`")
    return GpuRequest(_count(count) if isinstance(count, Scalar) else None, (), item.place)


def _count(scalar: Scalar) -> int | None:
    if (scalar.text or "").strip() in ("all", "-1", ""):
        return None
    return whole(scalar.text or "", "a number of GPUs", scalar.place, 0, 1024)


def _copies(fields: Fields) -> int:
    """`scale`, or `deploy.replicas`; 1 where neither is given."""
    found = _text(fields, "scale")
    if found is None and (deploy := _fields(fields, "deploy")) is not None:
        found = _text(deploy, "replicas")
    return (
        1
        if found is None or not found.text
        else whole(found.text, "a number of copies", found.place, 0, 1000)
    )
