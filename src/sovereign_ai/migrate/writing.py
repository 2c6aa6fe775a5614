"""Entries → the text of factory.yaml, with the line of the compose file that each value came from. Pure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from sovereign_ai.migrate.book import printable
from sovereign_ai.migrate.draft import Fact
from sovereign_ai.migrate.finish import Entry
from sovereign_ai.migrate.tree import Place

WIDTH = 1 << 20
"""Characters. A value that is folded is still right, but its comment would be in the wrong place."""

HEADER = "Made from {file} by `sovereign migrate compose`: lines without a file are of that one."


def factory_text(compose: Path, called: str, entries: Sequence[Entry], gateway: Mapping[str, Fact]) -> str:
    """`called` is the compose file as a reader of factory.yaml would call it."""
    document = CommentedMap()
    document.yaml_set_start_comment(printable(HEADER.format(file=called)))
    document["models"] = CommentedSeq()
    for at, entry in enumerate(entries):
        document["models"].append(_mapping(compose, entry.facts))
        document["models"].yaml_set_comment_before_after_key(
            at, before=f"service {entry.service}, {_spot(entry.place)}", indent=2
        )
    if gateway:
        document["gateway"] = _mapping(compose, gateway)
    return _dumped(document)


def _mapping(compose: Path, facts: Mapping[str, Fact]) -> CommentedMap:
    mapping = CommentedMap()
    for key, fact in facts.items():
        mapping[key] = _plain(fact.value)
        mapping.yaml_add_eol_comment(_line(compose, fact.place), key)
    return mapping


def _spot(place: Place) -> str:
    return printable(f"{Path(place.path).name}:{place.line}")


def _line(compose: Path, place: Place) -> str:
    """Other files are named."""
    if place.path == str(compose):
        return f"line {place.line}"
    return _spot(place)


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    items = CommentedSeq(value)
    items.fa.set_flow_style()
    return items


def _dumped(document: CommentedMap) -> str:
    yaml = YAML()
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
