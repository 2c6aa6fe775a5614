"""Requests for models whose endpoints speak OpenAI's protocol themselves: they are passed on as they came,
and so are the answers.

What the gateway adds is what it is for: keys, limits, the queue, picking, failover, usage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial

from sovereign_ai.errors import ApiError, RateLimited, UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.client import Broken, Response
from sovereign_ai.gateway.exchange import JSON, Exchange
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.pool import Upstream
from sovereign_ai.gateway.upstream import DRAIN_S, TritonClient
from sovereign_ai.gateway.wire import passing
from sovereign_ai.spec import Route

EVENT_STREAM = b"text/event-stream"
TOKENIZE = "/tokenize"

_OK, _SERVER_ERRORS = 200, 500
_TOO_MANY = 429
_REFUSED_KEY = (401, 403)

AnswerBody = Callable[[Exchange, bytes], Awaitable[None]]


class Passer:
    """`routes`: the models that are passed on; Forbidden for those that the key may not ask."""

    def __init__(self, routes: Mapping[str, Route], client: TritonClient, monotonic: Clock) -> None:
        self._routes, self._client, self._monotonic = routes, client, monotonic

    async def answer(self, otherwise: AnswerBody, exchange: Exchange, body: bytes) -> None:
        """Answer by an endpoint's own words, or `otherwise` where the model has none that speaks so. Raises
        ApiError."""
        asked = passing.ask(body) if len(self._routes) else None
        if asked is None or (route := self._routes.get(asked.model)) is None:
            await otherwise(exchange, body)
            return
        exchange.record.model = route.model
        prompt, answer = passing.reserved_tokens(asked, body, route.context)
        exchange.record.prompt_tokens = prompt
        async with self._client.place(route.model, prompt + answer):
            with self._client.running(route.model):
                await Passing(self._client, self._monotonic, exchange, route, asked, body).run()


class Passing:
    """One request, and its answer by as many endpoints as it takes."""

    def __init__(
        self,
        client: TritonClient,
        monotonic: Clock,
        exchange: Exchange,
        route: Route,
        asked: passing.Asked,
        body: bytes,
    ) -> None:
        self._client, self._monotonic = client, monotonic
        self._exchange, self._route, self._asked, self._body = exchange, route, asked, body
        self._path, self._record = exchange.path, exchange.record
        self._failed: list[Upstream] = []
        self._source: _Source | None = None
        self._last = b""
        """The end of a stream, which is sent when nothing is left to do."""
        self._before = 0
        """Tokens of the answer that other endpoints said before."""

    async def run(self) -> None:
        try:
            source = await self._open(partial(self._ask, self._body))
            if source.is_stream:
                await self._relay(source)
            else:
                await self._pass_whole(source)
        finally:
            self._leave()

    async def _open(self, attempt: Callable[[Upstream], Awaitable[Response]]) -> _Source:
        """Find an endpoint that answers. Where an answer broke off it is not asked again."""
        # what affinity is reckoned by: a conversation's next request begins as its last one did
        text = self._body.decode("latin-1") if len(self._route.endpoints) > 1 else ""
        response, endpoint = await self._client.with_second_try(
            self._route.model, attempt, text, self._asked.limit or 0, self._failed
        )
        self._source = source = _Source(response, endpoint)
        self._record.answered = self._record.answered or response.status == _OK
        return source

    def _leave(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    async def _ask(self, body: bytes, upstream: Upstream) -> Response:
        data = passing.request_body(self._path, self._asked, body, upstream.model)
        upstream.begin()
        try:
            response = await self._client_post(upstream, upstream.root + self._path, data)
        except BaseException:
            upstream.end()
            raise
        return response

    async def _client_post(self, upstream: Upstream, path: str, data: bytes) -> Response:
        headers = self._client.headers() + upstream.authorization
        try:
            response = await upstream.client.post(path, data, headers)
            upstream.heard()
            if response.status < _SERVER_ERRORS and response.status not in (_TOO_MANY, *_REFUSED_KEY):
                return response
            with closing(response):
                message = passing.error_text(await response.read())
        except OSError as error:
            raise self._client.lost(upstream, error) from error
        raise self._refusal(upstream, response, message)

    def _refusal(self, upstream: Upstream, response: Response, message: str) -> ApiError:
        if response.status == _TOO_MANY:
            after = response.headers.get(b"retry-after", b"1")
            seconds = float(after) if after.isdigit() else 1.0
            return RateLimited(message, reason="endpoint_busy", retry_after_s=seconds)
        self._client.broken(upstream, f"status {response.status}: {message}")
        if response.status in _REFUSED_KEY:
            return UpstreamFailed("the engine refuses the gateway's own key", code="engine_refused")
        return UpstreamFailed("the engine failed before answering")

    async def _pass_whole(self, source: _Source) -> None:
        response, record = source.response, self._record
        try:
            body = await response.read()
        except Broken as error:
            raise self._client.lost(source.endpoint, error) from error
        if response.status == _OK and (usage := passing.answer_usage(body)):
            record.prompt_tokens, record.completion_tokens = usage
        record.first_token = self._monotonic()
        await self._exchange.answer(response.status, body, kind=source.kind)

    async def _relay(self, source: _Source) -> None:
        """Pass a stream on; where it breaks off, have another endpoint go on."""
        left = self._route.continuations if self._may_continue() else 0
        kept: list[bytes] = []
        rest: passing.Rest | None = None
        hides = passing.asks_for_usage(self._path, self._asked)
        while True:
            passage = passing.Passage(hides_usage=hides, keeps=left > 0)
            error = await self._pump(source, passage, rest)
            self._count(passage)
            if error is None:
                break
            self._leave()
            self._failed.append(source.endpoint)
            if left <= 0:
                raise error
            left, kept = left - 1, kept + passage.kept
            said = passing.said(kept)
            if (ending := self._ending(said)) is not None:
                await self._exchange.end_events(ending)
                return
            source, rest = await self._go_on(said, error)
        if not self._record.status:
            await self._exchange.send_events(b"")
        await self._exchange.end_events(self._last)

    def _may_continue(self) -> bool:
        """Chats only where all endpoints know how: vLLM's server continues a last message, others answer
        it."""
        knowing = self._path == passing.COMPLETIONS or all(
            endpoint.engine == "vllm" for endpoint in self._route.endpoints
        )
        return knowing and passing.may_continue(self._path, self._asked, self._body)

    async def _pump(
        self, source: _Source, passage: passing.Passage, rest: passing.Rest | None
    ) -> ApiError | None:
        """To the end of the stream. Returns why it broke off."""
        record, response, endpoint = self._record, source.response, source.endpoint
        while True:
            try:
                data = await response.readany()
            except Broken as error:
                return self._client.lost(endpoint, error)
            endpoint.heard()
            passed = passage.feed(data)
            if record.first_token is None:
                record.first_token = self._monotonic()
            elif not data:
                break
            record.completion_tokens = self._before + passage.pieces
            self._count(passage)
            passed = rest.rewritten(passed) if rest else passed
            if passage.done:
                # clients leave as soon as they have read the last event: everything is settled before it
                await _drain(response)
                self._last = passed
                break
            await self._exchange.send_events(passed)
            if passage.failure is not None:
                return self._client.broken(
                    endpoint, passing.error_text(passing.event_payload(passage.failure))
                )
        if self._path in (passing.CHAT, passing.COMPLETIONS) and not passage.done:
            return self._client.broken(endpoint, "the stream ended without [DONE]")
        return None

    def _count(self, passage: passing.Passage) -> None:
        """The endpoint's own count, where it has come. What others said before is in its prompt."""
        if passage.count.known:
            self._record.prompt_tokens = passage.count.prompt - self._before
            self._record.completion_tokens = passage.count.answer + self._before

    def _ending(self, said: passing.Said) -> bytes | None:
        """What the client still has to get, where the answer is complete as it is."""
        record, limit = self._record, self._asked.limit
        usage = (record.prompt_tokens, record.completion_tokens) if self._asked.wants_usage else None
        if said.whole:
            return passing.ending(said, self._path, None, usage)
        if said.plain and limit is not None and record.completion_tokens >= limit:
            return passing.ending(said, self._path, "length", usage)
        return None

    async def _go_on(self, said: passing.Said, error: ApiError) -> tuple[_Source, passing.Rest]:
        """Raises `error` where nobody can."""
        if not said.plain:
            raise error
        after = self._failed[-1]
        try:
            source = await self._open(partial(self._ask_rest, said))
        except (RateLimited, UpstreamFailed, UpstreamUnavailable):
            raise error from None
        if not source.is_stream:
            raise error
        self._client.note_continuation(self._route.model, after, error)
        return source, passing.Rest(said, self._before)

    async def _ask_rest(self, said: passing.Said, upstream: Upstream) -> Response:
        self._before = await self._tokens_of(said.text, upstream)
        body = passing.rest_body(self._path, self._asked, self._body, said.text, self._before)
        return await self._ask(body, upstream)

    async def _tokens_of(self, text: str, upstream: Upstream) -> int:
        """By the endpoint's own tokenizer, where it has one to ask; else the pieces in which it came."""
        guess = self._record.completion_tokens
        if upstream.engine != "vllm":
            return guess
        response = await self._client_post(
            upstream, upstream.root + TOKENIZE, passing.tokenize_body(upstream.model, text)
        )
        with closing(response):
            try:
                return passing.tokens_counted(await response.read(), guess)
            except Broken as error:
                raise self._client.lost(upstream, error) from error


async def _drain(response: Response) -> None:
    """Wait for the end of a stream that has said all it had to say: its connection can be used again then."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while await response.readany():
                pass
    except (Broken, TimeoutError):
        return


class _Source:
    """An answer under way at one endpoint, which is kept busy until it is closed."""

    def __init__(self, response: Response, endpoint: Upstream) -> None:
        self.response, self.endpoint = response, endpoint
        self.kind = response.headers.get(b"content-type", JSON)

    @property
    def is_stream(self) -> bool:
        return self.response.status == _OK and self.kind.startswith(EVENT_STREAM)

    def close(self) -> None:
        self.response.close()
        self.endpoint.end()
