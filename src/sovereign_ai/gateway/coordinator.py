"""The gateway as several processes: workers answer at one port, this one keeps what they have to agree on.

It has the door (limits and queues), the ledger's one writer and the sums of all metrics, and answers no
client itself. Workers ask it over a socket each. One that dies closes its socket, whereupon all it held is
free; when this process dies the workers end, because nobody counts any more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import uvloop

from sovereign_ai.config import GatewaySettings, encode_gateway
from sovereign_ai.gateway.crew import Crew, Orders, start_command
from sovereign_ai.gateway.desk import Desk
from sovereign_ai.gateway.door import Door, Spent
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.listening import reserve
from sovereign_ai.gateway.loglines import LogLines
from sovereign_ai.gateway.messages import Broken, Happened, Message, Scrape
from sovereign_ai.gateway.messages import Totals as TotalsMessage
from sovereign_ai.gateway.metrics import LEAST, Metrics
from sovereign_ai.gateway.reloading import Reloader, read_routes
from sovereign_ai.gateway.sharing import LeadingPool
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.tls import Certificate
from sovereign_ai.gateway.totals import Family, Totals
from sovereign_ai.gateway.usage import UsageWriter, spent_this_month
from sovereign_ai.spec import Routes

STDERR = 2
SCRAPE_S = 1.0
"""How long a scrape waits for the workers' numbers; then those of their last second are taken."""
TICK_S = 1.0
_OWN = 0
"""This process among the sources of metrics."""


class Start(NamedTuple):
    """What workers are started with. `host` and `port` are reserved for them, `lock` is the log's."""

    routes_file: Path
    ledger_file: Path
    settings: GatewaySettings
    family: int
    host: str
    port: int
    lock: int

    def command(self, worker: int, link: int) -> list[str]:
        orders = Orders(
            worker=worker,
            link=link,
            lock=self.lock,
            family=self.family,
            host=self.host,
            port=self.port,
            routes=str(self.routes_file),
            ledger=str(self.ledger_file),
            settings=encode_gateway(self.settings),
        )
        return start_command(orders)


class Scrapes:
    """Asks all workers for their numbers, and adds them up."""

    def __init__(self, own: Metrics) -> None:
        self._own = own
        self._totals = Totals(LEAST)
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[set[int], asyncio.Event]] = {}

    async def text(self, desks: Collection[Desk]) -> bytes:
        """Of all processes now; of one that does not answer, as it last was."""
        number, missing, complete = next(self._numbers), {desk.worker for desk in desks}, asyncio.Event()
        self._open[number] = missing, complete
        for desk in desks:
            desk.say(Scrape(number))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(SCRAPE_S):
                    await complete.wait()
        finally:
            del self._open[number]
        self._totals.put(_OWN, self._own.families())
        return self._totals.text()

    def put(self, worker: int, scrape: int, families: list[Family]) -> None:
        self._totals.put(worker, families)
        if scrape in self._open:
            self._note(worker, *self._open[scrape])

    def retire(self, worker: int) -> None:
        self._totals.retire(worker)
        for missing, complete in self._open.values():
            self._note(worker, missing, complete)

    def _note(self, worker: int, missing: set[int], complete: asyncio.Event) -> None:
        missing.discard(worker)
        if not missing:
            complete.set()


class Coordinator:
    """To be made and `run` inside the event loop."""

    def __init__(
        self,
        start: Start,
        routes: Routes,
        metrics: Metrics,
        journal: Journal,
        books: UsageWriter,
        spent: Mapping[str, Spent],
    ) -> None:
        self.metrics, self.journal, self._books = metrics, journal, books
        self._start, self._routes = start, routes
        self._pool = LeadingPool(routes, metrics, journal, clock=time.monotonic, changed=self._tell_health)
        settings, capacity = start.settings, self._pool.capacity
        self._door = Door(settings, metrics, capacity, spent, clock=time.time, monotonic=time.monotonic)
        self._scrapes = Scrapes(metrics)
        self._crew = Crew(
            settings.workers, start.command, (start.lock,), self._make_desk, self._gone, journal
        )
        self._reloader = Reloader(self, start.routes_file)
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what keeps workers from starting."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        await self._pool.start()
        ticks = asyncio.create_task(self._tick())
        try:
            if await self._crew.start():
                self._tell_where()
            await self._crew.watch()
        finally:
            await self._crew.stop()
            ticks.cancel()
            self._door.close()
            await self._pool.close()

    def _on_signal(self) -> None:
        """The second one makes the workers hurry, as it does a gateway of one process."""
        self._crew.signal(signal.SIGTERM)

    def _tell_where(self) -> None:
        models = [route.model for route in self._routes.routes]
        host, port, workers = self._start.host, self._start.port, self._start.settings.workers
        self.journal.event("listening", host=host, port=port, workers=workers, models=models)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._reloader.look()
            self._tell_health()

    def _tell_health(self) -> None:
        health = self._pool.health()
        for desk in self._crew.desks:
            desk.say(health)

    def prompts_for(self, routes: Routes) -> dict[str, PromptBuilder]:
        """None: the workers read prompts, this process counts."""
        return {}

    async def replace(self, routes: Routes, prompts: Mapping[str, PromptBuilder]) -> None:
        await self._pool.replace(routes)

    def ready(self, desk: Desk) -> None:
        self._crew.ready(desk)
        desk.say(self._pool.health())

    def broken(self, desk: Desk, why: Broken) -> None:
        self._crew.broken(desk, why)

    def happened(self, desk: Desk, told: Happened) -> None:
        self._pool.take(told)
        for other in self._others(desk):
            other.say(told)

    def numbers(self, desk: Desk, scrape: int, families: list[Family]) -> None:
        self._scrapes.put(desk.worker, scrape, families)

    def scrape(self, desk: Desk, scrape: int) -> None:
        task = asyncio.create_task(self._answer(desk, scrape))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def elsewhere(self, desk: Desk, model: str) -> dict[str, int]:
        return sum((other.busy(model) for other in self._others(desk)), Counter[str]())

    async def _answer(self, desk: Desk, scrape: int) -> None:
        desk.say(TotalsMessage(scrape, await self._scrapes.text(list(self._crew.desks))))

    def _others(self, desk: Desk) -> list[Desk]:
        return [other for other in self._crew.desks if other is not desk]

    def _make_desk(self, worker: int, say: Callable[[Message], None]) -> Desk:
        return Desk(worker, self._door, self._books, self, self.journal, say)

    def _gone(self, desk: Desk) -> None:
        desk.abandon()
        self._scrapes.retire(desk.worker)


def coordinate(*, routes_file: Path, ledger_file: Path, settings: GatewaySettings) -> None:
    """Run the gateway in `settings.workers` processes until SIGTERM or SIGINT. Raises as `server.serve`."""
    routes, lock = read_routes(routes_file), os.memfd_create("log")
    metrics, journal = Metrics(), Journal(LogLines(STDERR, lock).write, time.time)
    if settings.tls:
        Certificate(settings.tls, journal.event)
    Ledger(ledger_file).close()
    usage = UsageWriter(
        ledger_file,
        keep_days=settings.usage_days,
        lost=lambda count: metrics.usage_lost.inc(count),
        failed=lambda reason: journal.event("usage_unwritten", error=reason),
    )
    with reserve(settings.host, settings.port) as held:
        host, port = held.getsockname()[:2]
        start = Start(routes_file, ledger_file, settings, held.family, host, port, lock)
        spent = spent_this_month(ledger_file, time.time())
        usage.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(lambda: Coordinator(start, routes, metrics, journal, usage, spent)))
        finally:
            usage.close()
    journal.event("stopped")


async def _run(make: Callable[[], Coordinator]) -> None:
    await make().run()
