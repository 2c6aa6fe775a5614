"""Drafts → entries that load: unique names, copies as one entry, devices that nobody shares. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sovereign_ai.catalog.shapes import KnownShape, find_shape
from sovereign_ai.config import MAX_REPLICAS
from sovereign_ai.migrate.book import Book
from sovereign_ai.migrate.draft import Draft, Fact
from sovereign_ai.migrate.names import model_name, plain_name
from sovereign_ai.migrate.tree import Place

KEYS = ("name", "source", "task", "context", "concurrency", "replicas", "quantization", "devices")
"""In the order that they are written."""


class Entry(NamedTuple):
    """One model of factory.yaml."""

    service: str
    place: Place
    facts: Mapping[str, Fact]

    def value(self, key: str) -> Any:
        found = self.facts.get(key)
        return None if found is None else found.value


def entries_of(book: Book, drafts: Sequence[Draft]) -> list[Entry]:
    joined = _joined(book, [_within_the_model(book, draft) for draft in drafts])
    unshared = _unshared(book, joined)
    taken: set[str] = set()
    return [_entry(book, draft, taken) for draft in unshared]


def _shape(draft: Draft) -> KnownShape | None:
    kind, _, rest = draft.source.partition(":")
    if kind == "hf":
        return find_shape(rest.partition("@")[0])
    return find_shape(draft.called) or find_shape(plain_name(draft.called)[0])


def embeds(draft: Draft) -> bool:
    """Whether it only embeds, as far as that is known here."""
    task, known = draft.facts.get("task"), _shape(draft)
    return task.value == "embed" if task else known is not None and known.task == "embed"


def _within_the_model(book: Book, draft: Draft) -> Draft:
    """A context beyond the model's own is refused by the plan; an embedding model has no requests of full
    context."""
    known = _shape(draft)
    if known is None:
        return draft
    facts = dict(draft.facts)
    context = facts.get("context")
    if context is not None and context.value > known.context_max:
        del facts["context"]
        what = (
            f"context {context.value:,} of {draft.called} is left out: it was made for {known.context_max:,}"
        )
        book.changed(context.place, draft.service, what)
    if known.task == "embed" and "concurrency" in facts:
        del facts["concurrency"]
    return draft._replace(facts=facts)


def _joined(book: Book, drafts: Sequence[Draft]) -> list[Draft]:
    """The same model with the same settings in two services is two copies of one."""
    found: list[Draft] = []
    for draft in drafts:
        twin = next((at for at, one in enumerate(found) if _same(one, draft)), None)
        if twin is None:
            found.append(draft)
            continue
        first = found[twin]
        if first.optional or draft.optional:
            what = f"the same model as in `{first.service}`, by a profile: one entry, one copy"
            book.assumed(draft.place, draft.service, what, "write `replicas: 2` where both ran at once")
            continue
        copies = Fact(min(MAX_REPLICAS, _copies(first) + _copies(draft)), draft.place)
        facts = {key: fact for key, fact in first.facts.items() if key != "devices"}
        found[twin] = first._replace(facts=facts | {"replicas": copies})
        what = f"the same model as in `{first.service}`: one entry with replicas {copies.value}"
        book.changed(draft.place, draft.service, what, "the gateway spreads the requests over the copies")
        if {"devices"} & {*first.facts, *draft.facts}:
            what = "copies of one entry cannot be pinned: `devices` is not carried over"
            book.left(draft.place, draft.service, what, "leave it to the plan, or write two entries")
    return found


def _copies(draft: Draft) -> int:
    found = draft.facts.get("replicas")
    return 1 if found is None else int(found.value)


def _same(one: Draft, other: Draft) -> bool:
    keys = ("task", "context", "concurrency", "quantization")
    return (one.source, *_values(one, keys)) == (other.source, *_values(other, keys))


def _values(draft: Draft, keys: Sequence[str]) -> list[Any]:
    return [fact.value if (fact := draft.facts.get(key)) else None for key in keys]


def _unshared(book: Book, drafts: Sequence[Draft]) -> list[Draft]:
    """Two models cannot both insist on a card, nor several copies on the same."""
    used = Counter(device for draft in drafts for device in _devices(draft))
    found = []
    for draft in drafts:
        pinned = draft.facts.get("devices")
        shared = [device for device in _devices(draft) if used[device] > 1]
        if pinned is not None and (shared or _copies(draft) > 1):
            why = (
                f"{', '.join(shared)} is named by several models" if shared else "copies cannot all be there"
            )
            what = f"`devices` is not carried over: {why}"
            book.left(pinned.place, draft.service, what, "leave it to the plan")
            facts = {key: fact for key, fact in draft.facts.items() if key != "devices"}
            draft = draft._replace(facts=facts)
        found.append(draft)
    return found


def _devices(draft: Draft) -> list[str]:
    found = draft.facts.get("devices")
    return [] if found is None else list(found.value)


def _entry(book: Book, draft: Draft, taken: set[str]) -> Entry:
    wanted = model_name(plain_name(draft.asked.replace(":", "-"))[0] or draft.called)
    name = _free(wanted, draft.service, taken)
    taken.add(name)
    if draft.asked and draft.asked != name:
        what = f"clients asked for `{draft.asked}`: the model is called `{name}` now"
        book.changed(draft.place, draft.service, what, "change `model` in the clients")
    if name != wanted:
        what = f"another model is called `{wanted}` already: this one is `{name}`"
        book.changed(draft.place, draft.service, what)
    facts = {"name": Fact(name, draft.place), "source": Fact(draft.source, draft.place), **draft.facts}
    return Entry(draft.service, draft.place, {key: facts[key] for key in KEYS if key in facts})


def _free(wanted: str, service: str, taken: set[str]) -> str:
    if wanted not in taken:
        return wanted
    named = model_name(f"{wanted[:40]}-{service}")
    number, name = 1, named
    while name in taken:
        number += 1
        name = f"{named[:58]}-{number}"
    return name
