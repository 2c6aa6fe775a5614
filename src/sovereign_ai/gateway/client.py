"""HTTP/1.1 to one endpoint: a pool of connections, made for little work a chunk.

Every token of every answer passes here, so what is done for one decides what the gateway costs. A general
client spends most of its time on what an endpoint never needs: redirects, cookies, compression, proxies, and
two layers of streams with a task switch each. Here bytes go from the socket through httptools' parser (C) to
whoever waits for them, and nowhere else. docs/explanation/gateway-performance.md has the figures.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

import httptools
from yarl import URL

CONNECT_TIMEOUT_S = 5.0
HIGH_WATER_BYTES = 256 * 1024
"""Received and not read yet: above it the socket is left alone, so that a client that reads slowly slows down
its engine and not our memory."""
MAX_HEADER_BYTES = 64 * 1024
JSON_HEADERS = b"Content-Type: application/json\r\n"
CLOSING_TURNS = 3
"""Turns of the event loop in which aborted connections end."""
IDLE_CONNECTIONS = 256
"""Kept for later requests. More come and go."""


class CannotConnect(OSError):
    """Nobody listens there, or nobody answered in time: nothing was sent."""


class Broken(OSError):
    """The connection ended or said something else than HTTP before the answer was complete."""


class Response:
    """The answer to one request: its head is here, its body comes. Leave it by `close`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._connection: Connection | None = None
        self._chunks: list[bytes] = []
        self._buffered = self._header_bytes = 0
        self._head = self._complete = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def began(self) -> bool:
        """Whether anything of it has come."""
        return self._header_bytes > 0

    async def start(self, connection: Connection, data: bytes) -> None:
        """Send the request and wait for the head of the answer. Raises Broken."""
        self._connection = connection
        connection.begin(self, data)
        while not self._head:
            await self._wait()

    async def readany(self) -> bytes:
        """Some of the body, as soon as there is any; b"" at its end. Raises Broken."""
        while not self._chunks:
            if self._complete:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._buffered = [], 0
        if self._connection is not None:
            self._connection.resume()
        return data

    async def read(self) -> bytes:
        """The rest of the body. Raises Broken."""
        parts = []
        while part := await self.readany():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Done with it. Before its end this ends the connection, which tells the endpoint to stop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the connection tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the head is too large")
        self.headers[name.lower()] = value

    def on_head(self, status: int) -> None:
        """A status below 200 only announces the answer."""
        if status >= 200:
            self.status, self._head = status, True
        else:
            self.headers.clear()

    def on_body(self, body: bytes) -> int:
        """Bytes that wait to be read."""
        self._chunks.append(body)
        self._buffered += len(body)
        return self._buffered

    def on_end(self) -> bool:
        """Whether this was the end of the answer; the connection is free then."""
        if self._head:
            self._complete, self._connection = True, None
        return self._head

    def on_lost(self, error: Exception | None) -> None:
        """The connection has ended. A body without a length ends so."""
        self._connection = None
        if self._head and error is None and not self._is_framed():
            self._complete = True
        elif not self._complete:
            self._error = Broken(str(error or "the connection was closed before the answer ended"))
        self.wake()

    def on_garbage(self, error: Exception) -> None:
        self._connection = None
        self._error = Broken(f"not an HTTP answer: {error}")
        self.wake()

    def _is_framed(self) -> bool:
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers


class Connection(asyncio.Protocol):
    """One socket to the endpoint, and the answer that comes over it now, if any."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._paused = False
        self.used = False
        """Whether it has brought an answer before."""

    def begin(self, response: Response, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101  connected before it is handed out
        self._response = response
        self._transport.write(data)

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        self._response = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def break_off(self, why: str) -> None:
        """End it; whoever waits for an answer is told why."""
        response, self._response = self._response, None
        self.abort()
        if response is not None:
            response.on_lost(Broken(why))

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.abort()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort()
            response.on_garbage(error)
            return
        response.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._client.forget(self)
        response, self._response = self._response, None
        if response is not None:
            response.on_lost(error)

    # The parser's side.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is not None:
            self._response.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._response is not None:
            self._response.on_head(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._response is None or self._transport is None:
            return
        if self._response.on_body(body) > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._response is None or not self._response.on_end():
            return
        self._response, self.used = None, True
        self.resume()
        if self._parser.should_keep_alive():
            self._client.take_back(self)
        else:
            self.close()


class Client:
    """Connections to one endpoint. Use it inside the event loop."""

    def __init__(self, url: URL) -> None:
        self._host, self._port = url.host or "", url.port or 0
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._host_header = f"Host: {url.authority}\r\n".encode()
        self._idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()
        self.closed = False

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    async def post(self, path: str, body: bytes, headers: bytes = JSON_HEADERS) -> Response:
        """`headers` are whole lines, each ended by CR LF. Raises CannotConnect or Broken."""
        head = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n%b\r\n" % (
            path.encode(),
            self._host_header,
            len(body),
            headers,
        )
        return await self._ask(head + body)

    async def get(self, path: str, headers: bytes = b"") -> Response:
        """Raises CannotConnect or Broken."""
        head = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path.encode(), self._host_header, headers)
        return await self._ask(head)

    async def _ask(self, data: bytes) -> Response:
        """Once more, on a new connection, where one that was used before breaks without having said anything:
        the endpoint closed it just then."""
        connection = self._idle.popitem()[0] if self._idle else await self._connect()
        response = Response()
        try:
            return await self._started(response, connection, data)
        except Broken:
            if not connection.used or response.began:
                raise
        return await self._started(Response(), await self._connect(), data)

    async def _started(self, response: Response, connection: Connection, data: bytes) -> Response:
        try:
            await response.start(connection, data)
        except BaseException:
            response.close()
            raise
        return response

    async def _connect(self) -> Connection:
        if self.closed:
            raise CannotConnect("the endpoint is no longer used")
        create = asyncio.get_running_loop().create_connection
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, made = await create(lambda: Connection(self), self._host, self._port, ssl=self._ssl)
        except TimeoutError as error:
            raise CannotConnect(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise CannotConnect(str(error)) from error
        self._open.add(made)
        return made

    def break_off(self, why: str) -> None:
        """End what runs and what is idle: nobody will answer. Those who wait get Broken."""
        for connection in tuple(self._open):
            connection.break_off(why)

    def take_back(self, connection: Connection) -> None:
        """It has brought an answer to its end."""
        if not self.closed and len(self._idle) < IDLE_CONNECTIONS:
            self._idle[connection] = None
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self._idle.pop(connection, None)
        self._open.discard(connection)

    async def close(self) -> None:
        """End every connection, idle ones too: Triton waits for them when it stops."""
        self.closed = True
        self.break_off("the endpoint is no longer used")
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
