"""What the reader of one kind of service is given, and what it finds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.draft import Draft
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import Known, Settings


class Job(NamedTuple):
    """A service, the page to write on, all services. `yaml_files` reads those of a folder of the host:
    path → text, nothing where it is not there."""

    service: Service
    page: Page
    services: tuple[Service, ...]
    yaml_files: Callable[[str], Mapping[str, str]]


class Reading(NamedTuple):
    """`port` is the API's in the container. `split` is how the weights were split over cards, `cards` over
    how many."""

    drafts: list[Draft]
    port: int
    split: Word | None = None
    cards: Word | None = None


class Reader(NamedTuple):
    """One kind of service."""

    kind: str
    recognises: Callable[[Service], bool]
    read: Callable[[Job], Reading]


API_KEY = "the gateway has keys of its own"
CREATE_KEY = "make a new one: sovereign keys create NAME"
ENGINE_DOES = "the engine decides it"
PLAN_DOES = "the plan decides it"


def tell_settings(page: Page, settings: Settings, known: Mapping[str, Known]) -> None:
    """What takes the place of settings that are not carried over; and those that nobody here knows, by their
    names alone: their values may be secrets."""
    for name, spelled in settings.spelled.items():
        if name == "api_key":
            what = f"API key (`{spelled.text}`) is not copied: {API_KEY}"
            page.changed(spelled.place, what, CREATE_KEY)
        elif why := known[name].why:
            page.changed(spelled.place, f"`{spelled.text}`: {why}")
    for first, later in settings.overridden:
        what = f"`{first.text}` and `{later.text}` say different things: the later one counts"
        page.assumed(first.place, what)
    tell_unknown(page, settings.others)


def tell_unknown(page: Page, options: Sequence[Word]) -> None:
    if options:
        names = ", ".join(dict.fromkeys(f"`{option.text}`" for option in options))
        todo = "nothing, unless answers depend on it: then see docs/how-to/from-compose.md"
        page.left(options[0].place, f"not carried over: {names}", todo)


def tell_more_models(page: Page, words: Sequence[Word], kept: str) -> None:
    """Two models in one service: one is carried, the others are told."""
    for word in words:
        what = f"a second model `{word.text}` in the same service: only `{kept}` is carried over"
        page.left(word.place, what, "add an entry of its own to factory.yaml")


def image_is(service: Service, *parts: str) -> bool:
    image = service.image.lower()
    return any(part in image for part in parts)
