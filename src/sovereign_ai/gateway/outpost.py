"""The worker's way to the door, which its coordinator keeps (see desk for the other end).

A request costs two questions: one when its key is known, one when its tokens are. Everything else is told and
not waited for; a request that is given up while it waits for an answer is told as well.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable

from sovereign_ai.gateway.journal import Clock, Journal, RequestRecord, usage_row
from sovereign_ai.gateway.limits import Rate
from sovereign_ai.gateway.link import Link
from sovereign_ai.gateway.messages import (
    Admit,
    Admitted,
    Enter,
    Entered,
    Happened,
    Health,
    Leave,
    Look,
    Message,
    Numbers,
    Ready,
    Refused,
    Release,
    Scrape,
    TakeBack,
    Totals,
    ToWorker,
    Used,
    error_of,
    from_coordinator,
)
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.queueing import Ticket
from sovereign_ai.gateway.sharing import SharedPool
from sovereign_ai.gateway.visit import Visit
from sovereign_ai.spec import Routes

_REQUEST = 0
"""The number of a request itself, beside those of its places."""

Answer = Entered | Admitted | Refused


class Place(Ticket):
    """A ticket that lies at the coordinator."""

    def __init__(self, visit: Visit, guest: Guest, part: int) -> None:
        super().__init__(visit.key.id, visit.key.priority, visit.deadline)
        self.guest, self.part = guest, part


class Guest:
    """What the coordinator knows of a request, seen from here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.parts = itertools.count(1)
        self.rates: list[Rate] = []
        self.heard = 0.0


class Outpost:
    """The door, the book of usage and the totals of all metrics, as far as a worker needs them.

    `share` a pool through it, then `connect` it inside the event loop. `lost` is called when the coordinator
    is gone.
    """

    def __init__(self, lost: Callable[[], None], *, clock: Clock = time.time) -> None:
        self._lost, self._clock = lost, clock
        self._guests: dict[Visit, Guest] = {}
        self._visits, self._scrapes = itertools.count(1), itertools.count(1)
        self._answers: dict[tuple[int, int], asyncio.Future[Answer]] = {}
        self._totals: dict[int, asyncio.Future[bytes]] = {}

    def share(self, routes: Routes, metrics: Metrics, journal: Journal) -> SharedPool:
        """The pool of this worker."""
        self._metrics = metrics
        self._pool = SharedPool(
            routes, metrics, journal, clock=time.monotonic, tell=self._send, chosen=lambda: self._link.hurry()
        )
        return self._pool

    async def connect(self, end: socket.socket) -> None:
        self._link: Link[ToWorker] = Link(
            from_coordinator, self._take, lambda: self._lost(), self._pool.changes
        )
        await asyncio.get_running_loop().create_unix_connection(lambda: self._link, sock=end)

    def ready(self) -> None:
        self._send(Ready())

    def tick(self) -> None:
        """To be called once a second: what is counted here is known there, should this process be killed."""
        self._send(Numbers(0, self._metrics.families()))

    async def farewell(self) -> None:
        """The last words, once nothing is under way."""
        self.tick()
        self._lost = lambda: None
        await self._link.close()

    def close(self) -> None:
        """Nothing: requests that end after this are told too."""

    async def look(self, visit: Visit) -> None:
        limits = visit.key.limits
        if limits.requests_per_minute is not None or limits.tokens_per_minute is not None:
            guest = self._guest(visit)
            await self._ask(guest, _REQUEST, Look(guest.number, visit.key))

    async def enter(self, visit: Visit) -> None:
        guest = self._guest(visit)
        answer = await self._ask(guest, _REQUEST, Enter(guest.number, visit.key))
        if isinstance(answer, Refused):
            raise error_of(answer.refusal)

    def leave(self, visit: Visit) -> None:
        if (guest := self._guests.pop(visit, None)) is not None:
            self._send(Leave(guest.number, visit.record.billed_tokens))

    def take_back(self, visit: Visit) -> None:
        visit.reserved.clear()
        if (guest := self._guests.get(visit)) is not None:
            self._send(TakeBack(guest.number))

    async def admit(self, visit: Visit, model: str, tokens: int) -> Ticket:
        guest = self._guest(visit)
        place = Place(visit, guest, next(guest.parts))
        visit.reserved.append([])  # at once: other parts of the request reserve without its prompt
        began = time.monotonic()
        try:
            answer = await self._ask(
                guest, place.part, Admit(guest.number, place.part, model, tokens, visit.deadline)
            )
        except BaseException:
            self.release(model, place)
            raise
        finally:
            visit.record.queue_s += time.monotonic() - began
        if isinstance(answer, Refused):
            if not answer.reserved:
                visit.reserved.pop()
            raise error_of(answer.refusal)
        if isinstance(answer, Admitted):
            self._pool.busy_elsewhere(model, answer.elsewhere)
        return place

    def release(self, model: str, ticket: Ticket) -> None:
        if isinstance(ticket, Place):
            self._send(Release(ticket.guest.number, ticket.part))

    def rates(self, visit: Visit) -> list[Rate]:
        """As the coordinator last said, with what has passed since."""
        guest = self._guests.get(visit)
        if guest is None or not guest.rates:
            return []
        passed_s = time.monotonic() - guest.heard
        return [Rate(one.kind, one.limit, one.left, max(0.0, one.reset_s - passed_s)) for one in guest.rates]

    def add(self, record: RequestRecord, duration_s: float) -> None:
        """For the ledger, which the coordinator alone writes."""
        self._send(Used(usage_row(record, duration_s, self._clock())))

    async def metrics_text(self) -> bytes:
        """Of all workers together."""
        number = next(self._scrapes)
        waiting = self._totals[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Scrape(number))
            text: bytes = await waiting
            return text
        finally:
            del self._totals[number]

    def _guest(self, visit: Visit) -> Guest:
        if (guest := self._guests.get(visit)) is None:
            guest = self._guests[visit] = Guest(next(self._visits))
        return guest

    async def _ask(self, guest: Guest, part: int, question: Message) -> Answer:
        place = guest.number, part
        waiting = self._answers[place] = asyncio.get_running_loop().create_future()
        try:
            self._send(question)
            answer: Answer = await waiting
        finally:
            del self._answers[place]
        guest.rates, guest.heard = answer.rates, time.monotonic()
        return answer

    def _send(self, message: Message) -> None:
        self._link.send(message)

    def _take(self, message: ToWorker) -> None:
        if isinstance(message, Entered):
            self._answer(message.visit, _REQUEST, message)
        elif isinstance(message, Admitted | Refused):
            self._answer(message.visit, message.part, message)
        elif isinstance(message, Happened):
            self._pool.take(message)
        elif isinstance(message, Health):
            self._pool.take_health(message)
        elif isinstance(message, Scrape):
            self._send(Numbers(message.scrape, self._metrics.families()))
        else:
            self._total(message)

    def _answer(self, visit: int, part: int, answer: Answer) -> None:
        """Nobody waits for the answer to a request that has left."""
        waiting = self._answers.get((visit, part))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _total(self, totals: Totals) -> None:
        waiting = self._totals.get(totals.scrape)
        if waiting is not None and not waiting.done():
            waiting.set_result(totals.text)
