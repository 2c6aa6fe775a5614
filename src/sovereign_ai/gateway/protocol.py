"""uvicorn's HTTP protocol, and what it leaves open: clients that never finish the head of a request, heads
without end, and a way to break a connection off whose client does not read.

Bodies are paused at 64 KiB by uvicorn until somebody reads them, answers until the client does.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sovereign_ai.gateway.exchange import ABORT

HEAD_TICKS = 30
"""Seconds from a connection, or the first byte of a request, to the end of the request's headers."""
MAX_HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """One connection of a client. `tick` it once a second: a timer for each request would cost it more than
    all limits together."""

    _awaits_head = True
    _head_ticks = _head_bytes = 0

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
        cast(dict[str, Any], self.scope)[ABORT] = self.transport.abort
        super().on_headers_complete()
