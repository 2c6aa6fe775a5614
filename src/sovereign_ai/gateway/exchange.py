"""One HTTP request and its answer, over raw ASGI."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sovereign_ai.errors import (
    ApiError,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    Unauthenticated,
    UpstreamUnavailable,
)
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.wire import responses

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
CLIENT_GONE = 499
"""Status in log and metrics for a client that left before its answer was complete; nobody ever gets it."""

BODY_TICKS = 60
"""Seconds that a client has to send its body: 4 MiB take 34 s over a line of 1 Mbit/s."""
STALLED_TICKS = 60
"""Seconds after which a client that does not read its stream is given up: it holds a place in an engine."""

ABORT = "sovereign.abort"
"""Key of the scope under which our own server says how to break the connection off."""

WATCH = "sovereign.watch"
"""Key of the scope under which our own server tells, through a callback, when the client has gone."""

LINGER_S = 1.0
"""How long a refused upload is still read and thrown away. Closing at once would reset the connection, and a
client that is still sending would then lose the answer that tells it why."""
LINGER_BYTES = 64 * 1024 * 1024

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx in front of us would otherwise collect tokens before it passes them on
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed the connection."""


class Exchange:
    """What handlers see of a request. `record` collects what the log and the metrics will say."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, started: float) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._started = self._complete = False
        self.record = RequestRecord(method=scope["method"], path=scope["path"], started=started)
        self.more_headers: Callable[[], Headers] | None = None
        """Headers that every answer carries, asked for when it begins."""
        self.reading = self.sending = False
        """Whether the client is waited for: its body, or that it reads."""
        self._ticks = 0
        self._unwatch: Callable[[], None] | None = None
        self.content: tuple[list[bytes], list[bytes]] | None = None
        """Request and answer, where they are kept."""

    @property
    def method(self) -> str:
        return self.record.method

    @property
    def path(self) -> str:
        return self.record.path

    def header(self, name: bytes) -> str | None:
        for key, value in self._scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises RequestTooLarge once it is known to exceed `limit` bytes, or ClientGone."""
        length = self.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        self.reading = True
        body = await self._read_body(limit)
        self.reading, self._ticks = False, 0
        if self.content is not None:
            self.content[0].append(body)
        return body

    async def _read_body(self, limit: int) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client closes the connection. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def watch(self, gone: Callable[[], object]) -> bool:
        """`gone` is called when the client closes the connection, until `unwatch`. Whether the server can
        tell; else await `gone()`."""
        watch = self._scope.get(WATCH)
        if watch is not None:
            self._unwatch = watch(gone)
        return watch is not None

    def unwatch(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    async def answer(
        self, status: int, body: bytes, *, kind: bytes = JSON, headers: Headers | None = None
    ) -> None:
        """The whole answer at once."""
        await self._start(status, body, kind, headers or [])
        await self._finish(body)

    async def send_events(self, events: bytes) -> None:
        """Some of a stream of events; the first call sends the status line."""
        if not self._started:
            self._started, self.record.status = True, 200
            headers = _STREAM_HEADERS + self._more_headers()
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.content is not None:
            self.content[1].append(events)
        self.sending = True
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self.sending, self._ticks = False, 0

    async def end_events(self, events: bytes) -> None:
        """The last of a stream of events."""
        await self._finish(events)

    def tick(self) -> bool:
        """To be called once a second. Whether the client has been waited for long enough."""
        if not (self.reading or self.sending):
            return False
        self._ticks += 1
        return self._ticks >= (BODY_TICKS if self.reading else STALLED_TICKS)

    def abort(self) -> None:
        """Break the connection off: what is still to be written would wait for the client for ever."""
        if (abort := self._scope.get(ABORT)) is not None:
            abort()

    async def fail(self, error: ApiError) -> None:
        """Tell the client: by status if nothing was sent yet, else by a last event without `[DONE]`."""
        self.record.error = error.code or type(error).__name__
        if self._complete:
            return
        if self._started:
            self.record.status = error.http_status
            await self._finish(responses.error_event(error, self.path))
        elif isinstance(error, RequestTooLarge):
            await self._refuse_upload(error)
        else:
            await self.answer(
                error.http_status, responses.error_body(error, self.path), headers=_error_headers(error)
            )

    async def _refuse_upload(self, error: RequestTooLarge) -> None:
        body = responses.error_body(error, self.path)
        await self._start(error.http_status, body, JSON, [(b"connection", b"close")])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        await self._linger()
        await self._finish(b"")

    async def _linger(self) -> None:
        read, more = 0, True
        try:
            async with asyncio.timeout(LINGER_S):
                while more and read < LINGER_BYTES:
                    message = await self._receive()
                    read += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            return

    async def _start(self, status: int, body: bytes, kind: bytes, headers: Headers) -> None:
        self._started, self.record.status = True, status
        length = (b"content-length", str(len(body)).encode())
        every = [(b"content-type", kind), length, *headers, *self._more_headers()]
        await self._send({"type": "http.response.start", "status": status, "headers": every})

    def _more_headers(self) -> Headers:
        return self.more_headers() if self.more_headers is not None else []

    async def _finish(self, body: bytes) -> None:
        self._complete = True
        if self.content is not None:
            self.content[1].append(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than {limit} bytes", code="request_too_large")


def _error_headers(error: ApiError) -> Headers:
    if isinstance(error, RateLimited):
        return _limit_headers(error)
    if isinstance(error, UpstreamUnavailable):
        return [(b"retry-after", b"1")]
    if isinstance(error, Unauthenticated):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, RequestTimeout):
        return [(b"connection", b"close")]
    return []


def _limit_headers(error: RateLimited) -> Headers:
    if error.retry_after_s is None:
        # OpenAI's own clients try again after 429 unless they are told so
        return [(b"x-should-retry", b"false")]
    return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
