"""The coordinator's side of one worker: its messages become calls of the door.

What a worker holds is kept here, so that all of it can be given back should it die.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from sovereign_ai.errors import ApiError
from sovereign_ai.gateway.admission import KeyRecord
from sovereign_ai.gateway.door import Door
from sovereign_ai.gateway.journal import Journal, RequestRecord, UsageRow
from sovereign_ai.gateway.messages import (
    Admit,
    Admitted,
    Broken,
    Busy,
    Enter,
    Entered,
    Happened,
    Leave,
    Look,
    Message,
    Numbers,
    Ready,
    Refused,
    Release,
    Scrape,
    TakeBack,
    ToCoordinator,
    Used,
    refusal_of,
)
from sovereign_ai.gateway.queueing import Ticket
from sovereign_ai.gateway.totals import Family
from sovereign_ai.gateway.visit import Visit

Place = tuple[str, str]
"""A model and one of its endpoints."""


class Books(Protocol):
    """Where rows of usage are written down."""

    def add_row(self, row: UsageRow) -> None: ...


class House(Protocol):
    """What a worker tells that is not for the door."""

    def ready(self, desk: Desk) -> None: ...
    def broken(self, desk: Desk, why: Broken) -> None: ...
    def happened(self, desk: Desk, told: Happened) -> None: ...
    def numbers(self, desk: Desk, scrape: int, families: list[Family]) -> None: ...
    def scrape(self, desk: Desk, scrape: int) -> None: ...
    def elsewhere(self, desk: Desk, model: str) -> dict[str, int]: ...


class Guest:
    """A request of the worker: what it has at the door."""

    def __init__(self, key: KeyRecord) -> None:
        self.visit = Visit(RequestRecord(method="", path="", started=0.0), key, 0.0)
        self.waiting: dict[int, asyncio.Task[None]] = {}
        self.places: dict[int, tuple[str, Ticket]] = {}


class Desk:
    """`say` sends to the worker."""

    def __init__(
        self,
        worker: int,
        door: Door,
        books: Books,
        house: House,
        journal: Journal,
        say: Callable[[Message], None],
    ) -> None:
        self.worker, self.say = worker, say
        self._door, self._books, self._house, self._journal = door, books, house, journal
        self._guests: dict[int, Guest] = {}
        self._busy: dict[Place, int] = {}
        self._calls: Mapping[type, Callable[..., None]] = {
            Look: self._look,
            Enter: self._enter,
            Leave: self._leave,
            TakeBack: self._take_back,
            Admit: self._admit,
            Release: self._release,
            Used: lambda told: books.add_row(told.row),
            Busy: self._note_busy,
            Happened: lambda told: house.happened(self, told),
            Numbers: lambda told: house.numbers(self, told.scrape, told.families),
            Scrape: lambda told: house.scrape(self, told.scrape),
            Ready: lambda told: house.ready(self),
            Broken: lambda told: house.broken(self, told),
        }

    def take(self, message: ToCoordinator) -> None:
        self._calls[type(message)](message)

    def abandon(self) -> None:
        """The worker is gone: its places are free now, what it reserved is taken for spent."""
        for guest in self._guests.values():
            self._clear(guest)
            self._door.abandon(guest.visit)
        self._guests.clear()
        self._busy.clear()

    def busy(self, model: str) -> Counter[str]:
        """How many requests of this worker the model's endpoints have."""
        return Counter({name: count for (its, name), count in self._busy.items() if its == model})

    def _look(self, asked: Look) -> None:
        guest = self._guests.setdefault(asked.visit, Guest(asked.key))
        self.say(Entered(asked.visit, self._door.rates(guest.visit)))

    def _enter(self, asked: Enter) -> None:
        guest = self._guests[asked.visit] = Guest(asked.key)
        try:
            self._door.count_in(guest.visit)
        except ApiError as error:
            self._refuse(asked.visit, guest, 0, error)
        else:
            self.say(Entered(asked.visit, self._door.rates(guest.visit)))

    def _leave(self, told: Leave) -> None:
        if (guest := self._guests.pop(told.visit, None)) is None:
            return
        self._clear(guest)
        record = guest.visit.record
        record.answered, record.prompt_tokens = True, told.tokens
        self._door.leave(guest.visit)

    def _take_back(self, told: TakeBack) -> None:
        if (guest := self._guests.get(told.visit)) is not None:
            self._door.take_back(guest.visit)

    def _admit(self, asked: Admit) -> None:
        guest = self._guests[asked.visit]
        guest.visit.deadline = asked.deadline
        guest.waiting[asked.part] = asyncio.create_task(self._wait(guest, asked))

    async def _wait(self, guest: Guest, asked: Admit) -> None:
        visit = guest.visit
        visit.record.model = asked.model
        before = len(visit.reserved)
        try:
            ticket = await self._door.admit(visit, asked.model, asked.tokens)
        except ApiError as error:
            self._refuse(asked.visit, guest, asked.part, error, reserved=len(visit.reserved) > before)
        except Exception as error:  # noqa: BLE001 - a fault in one request must not end the others
            self._journal.fault(error)
            failed = ApiError("The gateway failed; its log says why", code="internal_error")
            self._refuse(asked.visit, guest, asked.part, failed)
        else:
            guest.places[asked.part] = asked.model, ticket
            elsewhere = self._house.elsewhere(self, asked.model)
            rates = self._door.rates(visit)
            self.say(Admitted(asked.visit, asked.part, rates, elsewhere))
        finally:
            guest.waiting.pop(asked.part, None)

    def _release(self, told: Release) -> None:
        if (guest := self._guests.get(told.visit)) is None:
            return
        if (task := guest.waiting.pop(told.part, None)) is not None:
            task.cancel()
        if (place := guest.places.pop(told.part, None)) is not None:
            self._door.release(*place)

    def _clear(self, guest: Guest) -> None:
        for task in guest.waiting.values():
            task.cancel()
        for place in guest.places.values():
            self._door.release(*place)
        guest.waiting.clear()
        guest.places.clear()

    def _refuse(
        self, visit: int, guest: Guest, part: int, error: ApiError, *, reserved: bool = False
    ) -> None:
        self.say(Refused(visit, part, refusal_of(error), reserved, self._door.rates(guest.visit)))

    def _note_busy(self, told: Busy) -> None:
        place = told.model, told.endpoint
        if told.outstanding:
            self._busy[place] = told.outstanding
        else:
            self._busy.pop(place, None)
