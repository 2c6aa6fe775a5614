"""The gateway as an ASGI application: paths, keys, and what happens around every request.

It is a raw ASGI callable because two things depend on it: a client that leaves is noticed at once, so that
its generation stops; and a token costs microseconds on its way through.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sovereign_ai.config import GatewaySettings
from sovereign_ai.errors import (
    ApiError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    RateLimited,
    RequestTimeout,
    Unauthenticated,
    UpstreamUnavailable,
)
from sovereign_ai.gateway import admission, cors, metrics
from sovereign_ai.gateway.door import Door, Entrance, Spent
from sovereign_ai.gateway.exchange import CLIENT_GONE, ClientGone, Exchange, Headers, Receive, Scope, Send
from sovereign_ai.gateway.fallback import Fallback
from sovereign_ai.gateway.flight import Flight, Interruption
from sovereign_ai.gateway.journal import Clock, Journal, RequestRecord, Write
from sovereign_ai.gateway.limits import Rate
from sovereign_ai.gateway.metrics import UNKNOWN, Metrics
from sovereign_ai.gateway.passing import Passer
from sovereign_ai.gateway.proxy import Proxy, Served, no_such_model
from sovereign_ai.gateway.templates import PromptBuilder, load_prompt_builder
from sovereign_ai.gateway.usher import AdmittingClient, CountedPool, PermittedModels, WayToDoor
from sovereign_ai.gateway.visit import CURRENT, Visit
from sovereign_ai.gateway.wire import openapi, responses
from sovereign_ai.spec import Routes

if TYPE_CHECKING:
    from sovereign_ai.gateway.tracing import Tracing

MODELS = "/v1/models"
OPENAPI = "/openapi.json"
HEALTHZ, READYZ, METRICS = OWN_PAGES = ("/healthz", "/readyz", "/metrics")

MIN_TIMEOUT_S = 0.001

KEYED = frozenset({"/v1", "/tokenize", "/detokenize"})
"""Paths for clients with a key, beside all below /v1/."""

Answer = Callable[[Exchange], Awaitable[None]]
AnswerBody = Callable[[Exchange, bytes], Awaitable[None]]


class KeyTable(Protocol):
    """Where keys are looked up: the ledger, or a fake."""

    def lookup(self, digest: str) -> admission.KeyRecord | None: ...


class UsageBook(Protocol):
    """Where usage is written down: the ledger's writer, or a fake."""

    def add(self, record: RequestRecord, duration_s: float) -> None: ...


class Gateway:
    """The ASGI callable. Its lifespan starts and closes the pool; `stop` ends what is under way."""

    def __init__(
        self,
        routes: Routes,
        keys: KeyTable,
        served: dict[str, Served],
        *,
        max_body_bytes: int,
        settings: GatewaySettings,
        spent: Mapping[str, Spent],
        usage: UsageBook | None,
        tracing: Tracing | None,
        write: Write,
        clock: Clock,
        monotonic: Clock,
        new_id: Callable[[], str],
        outpost: WayToDoor | None = None,
    ) -> None:
        self._outpost = outpost
        self._routes, self._keys, self._served = routes, keys, served
        self._max_body_bytes, self._settings = max_body_bytes, settings
        self._usage, self._tracing = usage, tracing
        self._clock, self._monotonic = clock, monotonic
        self._stopping = False
        self._flights: dict[Flight, Exchange] = {}
        self._kept = {limits.model for limits in settings.limits if limits.log_content}
        self.metrics = Metrics()
        self.journal = Journal(write, clock)
        self.pool: CountedPool
        self._door: Entrance
        if outpost is not None:
            self.pool, self._door = outpost.share(routes, self.metrics, self.journal), outpost
        else:
            self.pool = CountedPool(routes, self.metrics, self.journal, clock=monotonic)
            capacity = self.pool.capacity
            self._door = Door(settings, self.metrics, capacity, spent, clock=clock, monotonic=monotonic)
        client = AdmittingClient(self.pool, self.metrics, self.journal, self._door)
        models = PermittedModels(served)
        fallback = Fallback(models, lambda model: self.pool.capacity(model) > 0, self._door.take_back)
        proxy = Proxy(models, client, fallback, clock=clock, monotonic=monotonic, new_id=new_id)
        self._passed = {route.model: route for route in routes.routes if route.passed_on}
        passer = Passer(PermittedModels(self._passed), client, monotonic)
        self._posts: Mapping[str, AnswerBody] = {
            path: partial(passer.answer, answer) for path, answer in proxy.answers.items()
        }
        self._gets: dict[str, Answer] = {
            MODELS: self._models,
            HEALTHZ: self._healthz,
            READYZ: self._readyz,
            METRICS: self._metrics_text,
            OPENAPI: self._openapi,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send, started=self._monotonic()))

    def stop(self) -> None:
        """Refuse what comes now and interrupt what is under way, telling the clients why."""
        self._stopping = True
        for flight in tuple(self._flights):
            flight.interrupt(Interruption.STOPPING)

    def tick(self) -> None:
        """To be called once a second: clients that neither send nor read are given up."""
        for flight, exchange in tuple(self._flights.items()):
            if exchange.tick():
                flight.interrupt(Interruption.CLIENT_GONE)
                if exchange.sending:
                    exchange.abort()

    def prompts_for(self, routes: Routes) -> dict[str, PromptBuilder]:
        """The text side of each route's model: what is loaded already, else read from its folder. Takes
        seconds for a large vocabulary; to be called in a thread. Raises UnsupportedModel."""
        here = {one.route.folder: one.prompts for one in tuple(self._served.values())}
        return {
            route.model: here.get(route.folder) or load_prompt_builder(Path(route.folder))
            for route in routes.routes
            if not route.passed_on
        }

    async def replace(self, routes: Routes, prompts: Mapping[str, PromptBuilder]) -> None:
        """Serve other routes from now on; what is under way is not disturbed."""
        await self.pool.replace(routes)
        self._routes = routes
        self._served.clear()
        self._served.update(served_here(routes, prompts))
        self._passed.clear()
        self._passed.update({one.model: one for one in routes.routes if one.passed_on})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.pool.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                self.stop()
                self._door.close()
                await self.pool.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, exchange: Exchange) -> None:
        flight = Flight()
        self._flights[flight] = exchange
        if self._kept:
            exchange.content = ([], [])
        CURRENT.set(None)
        try:
            error = await self._outcome(exchange, flight)
            flight.land()
            if error is not None:
                await exchange.fail(error)
        finally:
            flight.land()
            exchange.unwatch()
            del self._flights[flight]
            self._close_record(exchange)

    async def _outcome(self, exchange: Exchange, flight: Flight) -> ApiError | None:
        """Answer, or return what the client is to be told instead."""
        try:
            await self._dispatch(exchange, flight)
        except ApiError as error:
            self._count_rejection(exchange.record, error)
            return error
        except ClientGone:
            exchange.record.status = CLIENT_GONE
        except asyncio.CancelledError:
            if flight.interruption is Interruption.STOPPING:
                return _stopping()
            if flight.interruption is None:
                raise
            if exchange.reading:
                return RequestTimeout("The body did not come in time", code="request_timeout")
            exchange.record.status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - a fault in one request must not end the others
            self.journal.fault(error)
            return ApiError("The gateway failed; its log says why", code="internal_error")
        return None

    async def _dispatch(self, exchange: Exchange, flight: Flight) -> None:
        if self._stopping:
            raise _stopping()
        if self._settings.cors and self._is_preflight(exchange):
            await self._answer_preflight(exchange)
            return
        if is_api(exchange.path):
            visit = self._begin_visit(exchange)
            if exchange.path not in self._posts:
                await self._door.look(visit)
        elif exchange.path == METRICS and self._settings.metrics_key:
            self._admit(exchange, "metrics")
        if (answer := self._get_for(exchange.path)) is not None:
            await (answer(exchange) if exchange.method == "GET" else _refuse_method(exchange, b"GET"))
        elif (answer_body := self._posts.get(exchange.path)) is not None:
            await self._post(exchange, flight, answer_body)
        else:
            raise ModelNotFound(f"There is no {exchange.path[:200]} here", code="unknown_url")

    async def _post(self, exchange: Exchange, flight: Flight, answer: AnswerBody) -> None:
        if exchange.method != "POST":
            await _refuse_method(exchange, b"POST")
            return
        if (visit := CURRENT.get()) is not None:
            await self._door.enter(visit)
        body = await exchange.body(self._max_body_bytes)
        if not exchange.watch(partial(flight.interrupt, Interruption.CLIENT_GONE)):
            flight.interrupt_after(exchange.gone)
        await answer(exchange, body)

    def _begin_visit(self, exchange: Exchange) -> Visit:
        key = self._admit(exchange, "inference")
        exchange.record.key = key.id
        deadline = exchange.record.started + self._patience_s(exchange)
        visit = Visit(exchange.record, key, deadline)
        if self._tracing is not None:
            visit.trace = self._tracing.begin(exchange.path, exchange.header)
        CURRENT.set(visit)
        # not of the exchange itself: a circle would leave every request to the garbage collector
        exchange.more_headers = partial(self._more_headers, exchange.header(b"origin"), visit)
        return visit

    def _patience_s(self, exchange: Exchange) -> float:
        """How long the client waits for a place at most. Raises InvalidRequest."""
        wanted = exchange.header(b"x-request-timeout")
        if wanted is None:
            return self._settings.queue_timeout_s
        try:
            seconds = float(wanted)
        except ValueError:
            seconds = 0.0
        if not seconds >= MIN_TIMEOUT_S:
            raise InvalidRequest("x-request-timeout needs a number of seconds above 0", code="invalid_value")
        return min(seconds, self._settings.queue_timeout_s)

    def _is_preflight(self, exchange: Exchange) -> bool:
        exchange.more_headers = partial(self._more_headers, exchange.header(b"origin"), None)
        asked = exchange.header(b"access-control-request-method")
        return exchange.method == "OPTIONS" and asked is not None

    async def _answer_preflight(self, exchange: Exchange) -> None:
        exchange.more_headers = None
        wanted = exchange.header(b"access-control-request-headers")
        headers = cors.preflight_headers(self._settings.cors, exchange.header(b"origin"), wanted)
        await exchange.answer(200 if headers else 403, b"", headers=headers)

    def _more_headers(self, origin: str | None, visit: Visit | None) -> Headers:
        headers = [] if visit is None else _rate_headers(self._door.rates(visit))
        if visit is not None and visit.record.asked is not None:
            headers.append((b"x-sovereign-fallback", (visit.record.model or UNKNOWN).encode()))
        if not self._settings.cors:
            return headers
        return [*cors.answer_headers(self._settings.cors, origin), *headers]

    def _get_for(self, path: str) -> Answer | None:
        return self._model if path.startswith(MODELS + "/") else self._gets.get(path)

    def _admit(self, exchange: Exchange, scope: admission.Scope) -> admission.KeyRecord:
        digest = admission.digest(admission.bearer(_authorization(exchange)))
        return admission.admit(self._keys.lookup(digest), digest, self._clock(), scope=scope)

    def _count_rejection(self, record: RequestRecord, error: ApiError) -> None:
        if isinstance(error, RateLimited):
            self.metrics.reject(record.model, error.reason)
        elif isinstance(error, Unauthenticated | UpstreamUnavailable):
            self.metrics.reject(record.model, error.code or UNKNOWN)

    async def _models(self, exchange: Exchange) -> None:
        visit = CURRENT.get()
        permitted = [route for route in self._routes.routes if visit is None or visit.key.allows(route.model)]
        await exchange.answer(200, responses.models_body(permitted))

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODELS + "/")
        route = next((route for route in self._routes.routes if route.model == name), None)
        if route is None:
            raise no_such_model(name)
        if (visit := CURRENT.get()) is not None:
            admission.check_model(visit.key, name)
        await exchange.answer(200, responses.model_body(route))

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.answer(200, responses.plain_body({"status": "ok"}))

    async def _readyz(self, exchange: Exchange) -> None:
        unready = self.pool.unready()
        body = {"status": "not ready", "models": unready} if unready else {"status": "ready"}
        await exchange.answer(503 if unready else 200, responses.plain_body(body))

    async def _openapi(self, exchange: Exchange) -> None:
        await exchange.answer(200, openapi.document())

    async def _metrics_text(self, exchange: Exchange) -> None:
        text = self.metrics.text() if self._outpost is None else await self._outpost.metrics_text()
        await exchange.answer(200, text, kind=metrics.CONTENT_TYPE.encode())

    def _close_record(self, exchange: Exchange) -> None:
        """Health checks and scrapes come every few seconds and tell nothing: they are not written down."""
        record = exchange.record
        if record.path in OWN_PAGES:
            return
        duration_s = self._monotonic() - record.started
        if (visit := CURRENT.get()) is not None:
            self._door.leave(visit)
            if visit.trace is not None:
                visit.trace.end(record)
            if self._usage is not None and record.answered:
                self._usage.add(record, duration_s)
        self.journal.request(record, duration_s)
        if exchange.content is not None and record.model in self._kept:
            self.journal.content(record, *map(b"".join, exchange.content))
        if is_api(record.path):
            self.metrics.observe(record, duration_s)


def served_here(routes: Routes, prompts: Mapping[str, PromptBuilder]) -> dict[str, Served]:
    """The models whose chats are rendered here."""
    return {one.model: Served(one, prompts[one.model]) for one in routes.routes if not one.passed_on}


def create_app(
    routes: Routes,
    keys: KeyTable,
    *,
    max_body_bytes: int,
    write: Write,
    settings: GatewaySettings | None = None,
    spent: Mapping[str, Spent] | None = None,
    usage: UsageBook | None = None,
    tracing: Tracing | None = None,
    prompts: Mapping[str, PromptBuilder] | None = None,
    clock: Clock = time.time,
    monotonic: Clock = time.monotonic,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    outpost: WayToDoor | None = None,
) -> Gateway:
    """The gateway for `routes`.

    `write` takes the log, a JSON line at a time; `prompts` maps models to their text side, which is otherwise
    read from the routes' folders (UnsupportedModel when that fails). `spent`: key id → what it has spent
    before; `usage` takes what each request spends, `tracing` makes its spans. `outpost`: to the door of
    several processes.
    """
    if prompts is None:
        prompts = {
            route.model: load_prompt_builder(Path(route.folder))
            for route in routes.routes
            if not route.passed_on
        }
    return Gateway(
        routes,
        keys,
        served_here(routes, prompts),
        max_body_bytes=max_body_bytes,
        settings=settings or GatewaySettings(),
        spent=spent or {},
        usage=usage,
        tracing=tracing,
        write=write,
        clock=clock,
        monotonic=monotonic,
        new_id=new_id,
        outpost=outpost,
    )


def is_api(path: str) -> bool:
    """Whether the path is for clients with a key."""
    return path in KEYED or path.startswith("/v1/")


def _authorization(exchange: Exchange) -> str | None:
    """The header of that name; Anthropic's clients send the key alone in one of their own."""
    given, key = exchange.header(b"authorization"), exchange.header(b"x-api-key")
    return given or (f"Bearer {key}" if key else None)


def _rate_headers(rates: Sequence[Rate]) -> Headers:
    """As OpenAI's API has them: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers."""
    return [
        (b"x-ratelimit-%s-%s" % (name, rate.kind.encode()), value)
        for rate in rates
        for name, value in (
            (b"limit", b"%d" % rate.limit),
            (b"remaining", b"%d" % rate.left),
            (b"reset", b"%dms" % (rate.reset_s * 1000)),
        )
    ]


def _stopping() -> UpstreamUnavailable:
    return UpstreamUnavailable("The gateway is shutting down", code="shutting_down")


async def _refuse_method(exchange: Exchange, allowed: bytes) -> None:
    error = MethodNotAllowed(f"{exchange.path} takes {allowed.decode()} only", code="method_not_allowed")
    headers: Headers = [(b"allow", allowed)]
    exchange.record.error = error.code
    body = responses.error_body(error, exchange.path)
    await exchange.answer(error.http_status, body, headers=headers)
