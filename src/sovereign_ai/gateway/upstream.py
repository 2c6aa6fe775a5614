"""Talking to Triton: one request to one endpoint, and every way in which that fails.

Whatever goes wrong leaves here as an ApiError that a client may see; what an operator should know as well
goes to journal and metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing
from functools import partial
from typing import TypeVar

from sovereign_ai.errors import ApiError, UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.client import JSON_HEADERS, Broken, CannotConnect, Response
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.journal import MAX_REASON_CHARACTERS, Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Pool, Upstream
from sovereign_ai.gateway.wire import triton
from sovereign_ai.gateway.wire.sse import EventSplitter
from sovereign_ai.spec import Route

DRAIN_S = 1.0
"""How long the end of an answered stream is waited for, so that its connection can be used again."""

_T = TypeVar("_T")


class TokenStream:
    """An answer being generated at one endpoint, which it keeps busy until it is closed. Its first events are
    already here: it did not fail at once."""

    def __init__(self, upstream: Upstream, response: Response, broken: Callable[[str], ApiError]) -> None:
        self._upstream, self._response, self._broken = upstream, response, broken
        self._splitter = EventSplitter()
        self._ahead: list[triton.Event] = []
        self._open = True
        self._failure: ApiError | None = None
        self.on_close: Callable[[ApiError | None], None] | None = None
        """Told once that it is closed, and what it failed by."""

    def close(self) -> None:
        """Before the end of the answer this closes the connection, which makes Triton stop generating."""
        if self._open:
            self._open = False
            self._response.close()
            self._upstream.end()
            if self.on_close is not None:
                self.on_close(self._failure)

    async def read_ahead(self) -> None:
        self._ahead = await self.read()

    async def read(self) -> list[triton.Event]:
        """The events of one network read; [] at the end. Raises UpstreamFailed."""
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            return ahead
        while data := await self._data():
            self._upstream.heard()
            if payloads := self._splitter.feed(data):
                return [self._event(payload) for payload in payloads]
        return []

    async def drain(self) -> None:
        """Wait for the end of a stream that has said all it had to say."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self._response.readany():
                    pass
        except (Broken, TimeoutError):
            return  # the answer is complete; only the connection is lost

    async def _data(self) -> bytes:
        try:
            return await self._response.readany()
        except Broken as error:
            raise self._failed(repr(error)) from error

    def _failed(self, reason: str) -> ApiError:
        self._failure = self._broken(reason)
        return self._failure

    def _event(self, payload: bytes) -> triton.Event:
        event = triton.read_event(payload)
        if event.error is not None:
            raise self._failed(event.error)
        return event


class TritonClient:
    """Requests to the endpoints in `pool`."""

    def __init__(self, pool: Pool, metrics: Metrics, journal: Journal) -> None:
        self._pool, self._metrics, self._journal = pool, metrics, journal

    @asynccontextmanager
    async def place(self, model: str, tokens: int) -> AsyncIterator[None]:
        """Within it an endpoint of `model` may be asked for so many tokens."""
        yield

    @asynccontextmanager
    async def answer(self, route: Route, order: Order, *, tokens: int) -> AsyncIterator[Answer]:
        """Generate; leaving the block early cancels in the engine. `tokens`: what prompt and answer need of a
        context at least. Raises ApiError."""
        failed: list[Upstream] = []

        async def open_(order: Order) -> TokenStream:
            # Where an answer broke off it is not continued.
            stream, upstream = await self.with_second_try(
                route.model, partial(self._open, order.body), order.text, tokens, failed
            )
            failed.append(upstream)
            return stream

        def again(error: ApiError) -> None:
            self.note_continuation(route.model, failed[-1], error)

        with self.running(route.model):
            async with Answer(order, open_, continuations=route.continuations, again=again) as answer:
                yield answer

    async def embed(self, model: str, texts: Sequence[str]) -> triton.Embeddings:
        """Embeddings of at most MAX_INFER_TEXTS texts. Raises ApiError."""
        with self.running(model):
            return (await self.with_second_try(model, partial(self._infer, texts)))[0]

    async def with_second_try(
        self,
        model: str,
        attempt: Callable[[Upstream], Awaitable[_T]],
        text: str = "",
        tokens: int = 0,
        but: Collection[Upstream] = (),
    ) -> tuple[_T, Upstream]:
        """What `attempt` gives, and where. Once more elsewhere where it fails, as the client has seen
        nothing; only once: the request may be the cause."""
        first = self._pool.choose(model, text=text, tokens=tokens, but=but)
        try:
            return await self._tried(first, attempt), first
        except (UpstreamFailed, UpstreamUnavailable):
            try:
                second = self._pool.choose(model, text=text, tokens=tokens, but=[*but, first])
            except UpstreamUnavailable:
                second = None
            if second is None:
                raise
        self._metrics.retries.labels(model).inc()
        return await self._tried(second, attempt), second

    async def _tried(self, upstream: Upstream, attempt: Callable[[Upstream], Awaitable[_T]]) -> _T:
        """Tell the pool how it went."""
        try:
            result = await attempt(upstream)
        except (UpstreamFailed, UpstreamUnavailable):
            self._pool.failed(upstream)
            raise
        self._pool.succeeded(upstream)
        return result

    async def _open(self, body: bytes, upstream: Upstream) -> TokenStream:
        upstream.begin()
        try:
            response = await self._post(upstream, upstream.generate_path, body)
        except BaseException:
            upstream.end()
            raise
        stream = TokenStream(upstream, response, partial(self.broken, upstream))
        try:
            await stream.read_ahead()
        except BaseException:
            stream.close()
            raise
        return stream

    async def _infer(self, texts: Sequence[str], upstream: Upstream) -> triton.Embeddings:
        with upstream.occupied():
            response = await self._post(upstream, upstream.infer_path, triton.infer_body(texts))
            with closing(response):
                try:
                    body = await response.read()
                except Broken as error:
                    raise self.broken(upstream, repr(error)) from error
            head_length = int(response.headers.get(b"inference-header-content-length", len(body)))
            return triton.read_embeddings(body, head_length, len(texts))

    def headers(self) -> bytes:
        """The header lines of a request to an endpoint."""
        return JSON_HEADERS

    async def _post(self, upstream: Upstream, path: str, body: bytes) -> Response:
        """An answer with status 200, of which only the head was read."""
        try:
            response = await upstream.client.post(path, body, self.headers())
            if response.status == 200:
                return response
            with closing(response):
                message = triton.error_message(await response.read())
        except OSError as error:
            raise self.lost(upstream, error) from error
        raise self._refused(upstream, response.status, message)

    def _refused(self, upstream: Upstream, status: int, message: str) -> ApiError:
        error = triton.refusal(status, message)
        if isinstance(error, UpstreamFailed):
            self._note(upstream, f"status {status}: {message}")
        return error

    def lost(self, upstream: Upstream, error: OSError) -> ApiError:
        """What a client is told when there is no connection, or none any more."""
        if not isinstance(error, CannotConnect):
            return self.broken(upstream, repr(error))
        self._pool.mark_down(upstream)
        self._report(upstream, repr(error))
        return UpstreamUnavailable("the engine cannot be reached", code="engine_unreachable")

    def broken(self, upstream: Upstream, reason: str) -> ApiError:
        """What a client is told when an answer breaks off."""
        self._note(upstream, reason)
        return UpstreamFailed(triton.STOPPED, code="engine_stopped")

    def note_continuation(self, model: str, after: Upstream, error: ApiError) -> None:
        """An answer that `after` began goes on elsewhere."""
        self._metrics.continuations.labels(model).inc()
        self._journal.event("continued", model=model, endpoint=after.name, after=error.code)

    def running(self, model: str) -> AbstractContextManager[None]:
        """Counts a request as running."""
        return self._metrics.running.labels(model).track_inprogress()

    def _note(self, upstream: Upstream, reason: str) -> None:
        if triton.is_dead(reason):
            self._pool.mark_dead(upstream)
        self._report(upstream, reason)

    def _report(self, upstream: Upstream, reason: str) -> None:
        self._metrics.upstream_failures.labels(upstream.route_model, upstream.name).inc()
        self._journal.event(
            "upstream_failed",
            model=upstream.route_model,
            endpoint=upstream.name,
            reason=reason[:MAX_REASON_CHARACTERS],
        )
