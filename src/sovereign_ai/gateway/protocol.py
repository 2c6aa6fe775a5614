"""uvicorn's HTTP protocol, and what it leaves open: clients that never finish the head of a request, heads
without end, and a way to break a connection off whose client does not read.

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


class Protocol(HttpToolsProtocol):
    """One connection of a client. `tick` it once a second: a timer for each request would cost it more than
    all limits together."""

    _awaits_head = True
    _head_ticks = _head_bytes = 0
    _gone: Callable[[], object] | None = None

    def tick(self) -> None:
        """Break the connection off where the head of a request takes too long."""
        if self._awaits_head:
            self._head_ticks += 1
            if self._head_ticks >= HEAD_TICKS:
                self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._awaits_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        self._awaits_head, self._head_ticks, self._head_bytes = True, 0, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._awaits_head = False
        scope = cast(dict[str, Any], self.scope)
        scope[ABORT], scope[WATCH] = self.transport.abort, self._watch
        super().on_headers_complete()

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

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()
