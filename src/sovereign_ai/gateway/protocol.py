"""uvicorn's HTTP protocol, and what it leaves open: clients that never finish the head of a request, heads
without end, answers that nobody reads, and a way to break a connection off whose client does not read.

Bodies are paused at 64 KiB by uvicorn until somebody reads them, answers until the client does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sovereign_ai.gateway.exchange import ABORT, WATCH

HEAD_TICKS = 30
"""Seconds from a connection, or the first byte of a request, to the end of the request's headers."""
MAX_HEAD_BYTES = 64 * 1024
UNREAD_TICKS = 60
"""Seconds in which a client takes nothing of what lies ready for it. Closing alone would wait for it."""


class Protocol(HttpToolsProtocol):
    """One connection of a client. `tick` it once a second: a timer for each request would cost it more than
    all limits together."""

    _awaits_head = True
    _head_ticks = _head_bytes = 0
    _gone: Callable[[], object] | None = None
    _unread_ticks = _unread_bytes = 0

    def tick(self) -> None:
        """Break the connection off where the head of a request, or reading an answer, takes too long."""
        if self._awaits_head:
            self._head_ticks += 1
        unread = self.transport.get_write_buffer_size()
        self._unread_ticks = self._unread_ticks + 1 if unread and unread == self._unread_bytes else 0
        self._unread_bytes = unread
        if self._head_ticks >= HEAD_TICKS or self._unread_ticks >= UNREAD_TICKS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # left alone after a reset, it would keep the connection's 8 KiB until idle time is over
        self._unset_keepalive_if_required()
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        if not self._awaits_head and self.cycle.response_complete:
            # empty lines before a request end the idle time, but for the parser begin nothing
            self._begin_head()
        super().data_received(data)
        if not self._awaits_head:
            return
        # what is before an empty line belongs to requests that are complete
        self._head_bytes += len(data) - (data.rfind(b"\r\n\r\n") + 1)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        if not self._awaits_head:
            self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._awaits_head, self._head_ticks = False, 0
        scope = cast(dict[str, Any], self.scope)
        scope[ABORT], scope[WATCH] = self.transport.abort, self._watch
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Not into an answer that has begun: its client would take it for a part of that."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _begin_head(self) -> None:
        self._awaits_head, self._head_ticks, self._head_bytes = True, 0, 0

    def _watch(self, gone: Callable[[], object]) -> Callable[[], None]:
        """`gone` is called when the connection ends, until what this returns is. A task that waits for it in
        `receive`, as ASGI has it, costs a tenth of a short request."""
        self._gone = gone
        if self.transport.is_closing():
            self.loop.call_soon(gone)
        return partial(self._unwatch, gone)

    def _unwatch(self, gone: Callable[[], object]) -> None:
        """The next request of the connection may have begun already: its own is kept."""
        if self._gone is gone:
            self._gone = None
