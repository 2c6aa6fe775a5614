"""One end of the socket between a worker and its coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from sovereign_ai.gateway.messages import Frames, Message, pack

_M = TypeVar("_M", bound=Message)


class Link(asyncio.Protocol, Generic[_M]):
    """Gives what comes to `take`, one message at a time; `lost` is told of the end. What is sent within one
    turn of the event loop leaves in one write. `last` is asked for more just before that."""

    def __init__(
        self,
        decode: Callable[[bytes], _M],
        take: Callable[[_M], None],
        lost: Callable[[], None],
        last: Callable[[], list[Message]] = list,
    ) -> None:
        self._decode, self._take, self._lost, self._last = decode, take, lost, last
        self._frames = Frames()
        self._pending: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._due = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            self._take(self._decode(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
        self._lost()

    def send(self, message: Message) -> None:
        """Without waiting. What the other side does not hear because it is gone is lost with it."""
        self._pending.append(pack(message))
        self.hurry()

    def hurry(self) -> None:
        """See to it that `last` is asked in this turn."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def close(self) -> None:
        """Once everything has been sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
            await self.closed

    def _flush(self) -> None:
        self._due = False
        self._pending += map(pack, self._last())
        if self._pending and self._transport is not None:
            self._transport.write(b"".join(self._pending))
        self._pending.clear()
