"""YAML as a compose file uses it: anchors, merge keys and variables resolved, a place for every value.

All scalars stay the text they are: what a port or a `no` means is for the reader of that key to say. Pure.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.interpolation import fill

DEEPEST = 40
"""Levels. A compose file uses about eight."""

MERGED_CONFIG = "`docker compose config > merged.yml` writes a plain file: migrate that"


class Place(NamedTuple):
    """Where something stands."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class Scalar(NamedTuple):
    """A plain value; None where there is none. `rows` are the source's lines where it spans several."""

    text: str | None
    place: Place
    rows: tuple[str, ...] = ()


class Items(NamedTuple):
    """A list."""

    items: tuple[Tree, ...]
    place: Place


class Fields(NamedTuple):
    """A mapping: its values and the places of its keys."""

    entries: Mapping[str, Tree]
    keys: Mapping[str, Place]
    place: Place

    def get(self, key: str) -> Tree | None:
        """The value of `key`; None where it is not there or has no value."""
        found = self.entries.get(key)
        return None if isinstance(found, Scalar) and found.text is None else found


Tree = Scalar | Items | Fields


class Missing(NamedTuple):
    """A variable that has no value. `message` is what the file says where it insists on one."""

    name: str
    place: Place
    message: str


def read_tree(path: str, text: str, variables: Mapping[str, str] | None) -> tuple[Tree, list[Missing]]:
    """The file's tree with its variables filled in, and those that have no value. None: `$` means nothing.

    Raises ConfigError with file and line for what is not YAML, keys given twice, tags, and variables that
    cannot be read.
    """
    root = _compose(path, text)
    if root is None:
        raise ConfigError(f"{path}: the file is empty", "give a compose file, such as docker-compose.yml")
    reader = _Reader(path, text.splitlines(), variables)
    return reader.tree(root, 0), reader.missing


def _compose(path: str, text: str) -> Node | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            root: Node | None = YAML(typ="safe", pure=True).compose(text)
            return root
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{where}: not valid YAML: {problem}", "fix the syntax at that line") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except (LookupError, ValueError, ArithmeticError, AttributeError, TypeError, AssertionError) as error:
        # The parser lets these out for odd directives and escapes, with no place in them.
        raise ConfigError(f"{path}: not valid YAML ({type(error).__name__})") from error


class _Reader:
    def __init__(self, path: str, rows: list[str], variables: Mapping[str, str] | None) -> None:
        self.path, self.rows, self.variables = path, rows, variables
        self.missing: list[Missing] = []
        self._done: dict[int, Tree] = {}
        self._open: set[int] = set()

    def tree(self, node: Node, depth: int) -> Tree:
        """Each node once: an alias used a thousand times costs what it costs once."""
        if (known := self._done.get(id(node))) is not None:
            return known
        if id(node) in self._open:
            raise ConfigError(f"{self._place(node)}: an alias inside of what it stands for")
        if depth > DEEPEST:
            raise ConfigError(f"{self._place(node)}: nested too deeply")
        self._open.add(id(node))
        found = self._read(node, depth)
        self._open.discard(id(node))
        self._done[id(node)] = found
        return found

    def _place(self, node: Node) -> Place:
        return Place(self.path, node.start_mark.line + 1)

    def _read(self, node: Node, depth: int) -> Tree:
        if not str(node.tag).startswith("tag:yaml.org,2002:"):
            raise ConfigError(f"{self._place(node)}: the tag `{node.tag}` is not supported", MERGED_CONFIG)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, MappingNode):
            return self._fields(node, depth)
        return Items(tuple(self.tree(item, depth + 1) for item in node.value), self._place(node))

    def _scalar(self, node: ScalarNode) -> Scalar:
        place = self._place(node)
        if str(node.tag).endswith(":null"):
            return Scalar(None, place)
        text = self._text(node)
        if self.variables is not None:
            filled = fill(text, self.variables, str(place))
            self.missing += [Missing(name, place, message) for name, message in filled.missing]
            text = filled.text
        rows = self.rows[node.start_mark.line : node.end_mark.line + 1]
        return Scalar(text, place, tuple(rows) if len(rows) > 1 else ())

    def _text(self, node: ScalarNode) -> str:
        """Pairs of \\u escapes become the one character they mean."""
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._place(node)}: a \\u escape names half a character") from error

    def _fields(self, node: MappingNode, depth: int) -> Fields:
        own: dict[str, Tree] = {}
        keys: dict[str, Place] = {}
        merged: list[Fields] = []
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, ScalarNode):
                raise ConfigError(f"{place}: a key must be a word")
            if str(key_node.tag).endswith(":merge"):
                merged += self._merges(place, self.tree(value_node, depth + 1))
                continue
            key = self._text(key_node)
            if key in own:
                problem = f"`{key}` is given twice (first on line {keys[key].line})"
                raise ConfigError(f"{place}: {problem}", "keep one of the two")
            keys[key] = place
            own[key] = self.tree(value_node, depth + 1)
        return _with_merged(Fields(own, keys, self._place(node)), merged)

    def _merges(self, place: Place, tree: Tree) -> list[Fields]:
        parts = tree.items if isinstance(tree, Items) else (tree,)
        found = [part for part in parts if isinstance(part, Fields)]
        if len(found) < len(parts):
            raise ConfigError(f"{place}: `<<` takes a mapping, or a list of them")
        return found


def _with_merged(own: Fields, merged: list[Fields]) -> Fields:
    """The mapping's own keys win, then those of an earlier mapping."""
    if not merged:
        return own
    entries, keys = dict(own.entries), dict(own.keys)
    for other in merged:
        for key, value in other.entries.items():
            entries.setdefault(key, value)
            keys.setdefault(key, other.keys[key])
    return Fields(entries, keys, own.place)


def kind_of(tree: Tree) -> str:
    """The word for it in an error."""
    if isinstance(tree, Fields):
        return "a mapping"
    return "a list" if isinstance(tree, Items) else "nothing" if tree.text is None else "a text"
