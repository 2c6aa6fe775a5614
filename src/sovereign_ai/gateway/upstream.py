"""Talking to Triton: one request to one endpoint, and every way in which that fails.

Whatever goes wrong leaves here as an ApiError that a client may see; what an operator should know as well
goes to journal and metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from functools import partial
from typing import TypeVar

from sovereign_ai.errors import ApiError, UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.client import Broken, CannotConnect, Response
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
    """An answer being generated. Its first events are already here: it did not fail at once."""

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        heard: Callable[[], None],
        broken: Callable[[str], ApiError],
    ) -> None:
        self._read_any, self._heard, self._broken = read, heard, broken
        self._splitter = EventSplitter()
        self._ahead: list[triton.Event] = []

    async def read_ahead(self) -> None:
        self._ahead = await self.read()

    async def read(self) -> list[triton.Event]:
        """The events of one network read; [] at the end. Raises UpstreamFailed."""
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            return ahead
        while data := await self._data():
            self._heard()
            if payloads := self._splitter.feed(data):
                return [self._event(payload) for payload in payloads]
        return []

    async def drain(self) -> None:
        """Wait for the end of a stream that has said all it had to say."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self._read_any():
                    pass
        except (Broken, TimeoutError):
            return  # the answer is complete; only the connection is lost

    async def _data(self) -> bytes:
        try:
            return await self._read_any()
        except Broken as error:
            raise self._broken(repr(error)) from error

    def _event(self, payload: bytes) -> triton.Event:
        event = triton.read_event(payload)
        if event.error is not None:
            raise self._broken(event.error)
        return event


class TritonClient:
    """Requests to the endpoints in `pool`."""

    def __init__(self, pool: Pool, metrics: Metrics, journal: Journal) -> None:
        self._pool, self._metrics, self._journal = pool, metrics, journal

    @asynccontextmanager
    async def answer(self, route: Route, order: Order, *, tokens: int) -> AsyncIterator[Answer]:
        """Generate; leaving the block early cancels in the engine. `tokens`: what prompt and answer need of a
        context at least. Raises ApiError."""
        failed: list[Upstream] = []

        async def open_(order: Order) -> tuple[TokenStream, AsyncExitStack]:
            # Where an answer broke off it is not continued; where it never began it may be tried again later.
            resources = AsyncExitStack()
            stream, upstream = await self._with_second_try(
                route.model, partial(self._open, resources, order.body), order.text, tokens, failed
            )
            failed.append(upstream)
            return stream, resources

        def again(error: ApiError) -> None:
            self._metrics.continuations.labels(route.model).inc()
            self._journal.event("continued", model=route.model, endpoint=failed[-1].name, after=error.code)

        with self._metrics.running.labels(route.model).track_inprogress():
            async with Answer(order, open_, continuations=route.continuations, again=again) as answer:
                yield answer

    async def embed(self, model: str, texts: Sequence[str]) -> triton.Embeddings:
        """Embeddings of at most MAX_INFER_TEXTS texts. Raises ApiError."""
        with self._metrics.running.labels(model).track_inprogress():
            return (await self._with_second_try(model, partial(self._infer, texts)))[0]

    async def _with_second_try(
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

    async def _open(self, resources: AsyncExitStack, body: bytes, upstream: Upstream) -> TokenStream:
        """What the stream needs is handed to `resources` once its first events are here."""
        async with AsyncExitStack() as attempt:
            await attempt.enter_async_context(self._occupied(upstream))
            response = await self._post(upstream, upstream.generate_path, body)
            # before the end of the answer this closes the connection, which makes Triton stop generating
            attempt.callback(response.close)
            stream = TokenStream(response.readany, upstream.heard, partial(self._broken, upstream))
            await stream.read_ahead()
            await resources.enter_async_context(attempt.pop_all())
        return stream

    @asynccontextmanager
    async def _occupied(self, upstream: Upstream) -> AsyncIterator[None]:
        try:
            async with upstream.occupied():
                yield
        except TimeoutError as error:
            raise self._broken(upstream, "abandoned") from error

    async def _infer(self, texts: Sequence[str], upstream: Upstream) -> triton.Embeddings:
        async with self._occupied(upstream):
            response = await self._post(upstream, upstream.infer_path, triton.infer_body(texts))
            with ExitStack() as resources:
                resources.callback(response.close)
                try:
                    body = await response.read()
                except Broken as error:
                    raise self._broken(upstream, repr(error)) from error
            head_length = int(response.headers.get(b"inference-header-content-length", len(body)))
            return triton.read_embeddings(body, head_length, len(texts))

    async def _post(self, upstream: Upstream, path: str, body: bytes) -> Response:
        """An answer with status 200, of which only the head was read."""
        try:
            response = await upstream.client.post(path, body)
            if response.status == 200:
                return response
            with closing(response):
                message = triton.error_message(await response.read())
        except CannotConnect as error:
            self._pool.mark_down(upstream)
            self._report(upstream, repr(error))
            raise UpstreamUnavailable("the engine cannot be reached", code="engine_unreachable") from error
        except Broken as error:
            raise self._broken(upstream, repr(error)) from error
        raise self._refused(upstream, response.status, message)

    def _refused(self, upstream: Upstream, status: int, message: str) -> ApiError:
        error = triton.refusal(status, message)
        if isinstance(error, UpstreamFailed):
            self._note(upstream, f"status {status}: {message}")
        return error

    def _broken(self, upstream: Upstream, reason: str) -> ApiError:
        self._note(upstream, reason)
        return UpstreamFailed(triton.STOPPED, code="engine_stopped")

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
