"""A model entry on its way from a compose file to factory.yaml. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sovereign_ai.config import MAX_CONCURRENCY, MIN_CONTEXT
from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.settings import LONGEST_CONTEXT, Settings
from sovereign_ai.migrate.sources import Origin
from sovereign_ai.migrate.tree import Place


class Fact(NamedTuple):
    """A value of factory.yaml and where the compose file says it."""

    value: Any
    place: Place


class Draft(NamedTuple):
    """`asked` is what clients called the model, empty where any name would do; `called` is what it came as.
    `facts` are further keys of the entry; `optional`: only started with a profile."""

    service: str
    place: Place
    source: str
    called: str
    asked: str
    facts: Mapping[str, Fact]
    optional: bool = False


def draft_of(page: Page, place: Place, origin: Origin, facts: Mapping[str, Fact], asked: str = "") -> Draft:
    page.carried(place, f"model {origin.source}")
    return Draft(page.service, place, origin.source, origin.called, asked, facts)


def shared_context(page: Page, settings: Settings, place: Place, *, unified: bool = False) -> dict[str, Fact]:
    """llama.cpp's `context` and `parallel`: one cache of so many tokens, in equal parts unless `unified`.

    A part is the context of one request, and the parts are requests of full context at the same time. `place`
    is where the model stands.
    """
    parallel = settings.whole("parallel", "a number of requests", -1, MAX_CONCURRENCY)
    slots = max(1, parallel[0]) if parallel else 1
    facts = _part(page, settings, place, 1 if unified else slots)
    if parallel and slots > 1 and unified:
        what = f"{slots} requests shared one cache: the engine does so too, as many as there is room for"
        page.changed(parallel[1], what)
    elif parallel and slots > 1:
        facts["concurrency"] = Fact(slots, parallel[1])
        page.carried(parallel[1], f"concurrency {slots}: as many requests of full context at once")
    return facts


def _part(page: Page, settings: Settings, place: Place, slots: int) -> dict[str, Fact]:
    context = settings.whole("context", "a context in tokens", 0, LONGEST_CONTEXT)
    if context is None:
        page.assumed(place, "no context is given: it is left to the plan, the longest that fits")
        return {}
    total, where = context
    if total == 0:
        page.changed(where, "context 0 was the model's own: without `context` it is the longest that fits")
        return {}
    if total // slots < MIN_CONTEXT:
        page.left(where, f"a context of {total // slots} tokens is too small for any model")
        return {}
    divided = f" ({total:,} in {slots} equal parts)" if slots > 1 else ""
    page.carried(where, f"context {total // slots:,}{divided}")
    return {"context": Fact(total // slots, where)}
