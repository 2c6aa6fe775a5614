"""One answer, whoever generates it: when an engine breaks off in the middle, another goes on where it
stopped.

The new engine gets the prompt with the text so far behind it, and as many tokens fewer to spend. Greedy
decoding then says what it would have said: a text cut after a token is read again as the same tokens, but
for the rare word whose beginning alone is cut otherwise. What a client sees is one stream: usage counts the
client's prompt once and all tokens of the answer, the finish reason is that of the whole.

Penalties for repeated tokens begin anew with what another engine adds, and so does a seed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol

import msgspec

from sovereign_ai.errors import UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.wire import triton


class Source(Protocol):
    """An answer that one engine generates; [] from `read` is an end of the connection."""

    async def read(self) -> list[triton.Event]: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


class Order(msgspec.Struct, frozen=True):
    """What an engine is asked for: the rendered prompt and vLLM's sampling parameters."""

    text: str
    sampling: dict[str, Any]

    @property
    def max_tokens(self) -> int:
        tokens: int = self.sampling["max_tokens"]
        return tokens

    @property
    def body(self) -> bytes:
        return triton.generate_body(self.text, self.sampling)

    def after(self, text: str, tokens: int) -> Order:
        """The order for what is left when `text` of so many tokens is there already."""
        left = {**self.sampling, "max_tokens": self.max_tokens - tokens}
        if "min_tokens" in left:
            left["min_tokens"] = max(0, left["min_tokens"] - tokens)
        return Order(self.text + text, left)


class Answer:
    """Reads an answer to its end, over as many engines as it takes. Use within `async with`.

    `open_` starts a generation; `again` is told of each continuation.
    Appending is all that is done for a piece of text: what was said is only joined when an engine breaks off.
    """

    def __init__(
        self,
        order: Order,
        open_: Callable[[Order], Awaitable[Source]],
        *,
        continuations: int,
        again: Callable[[UpstreamFailed | UpstreamUnavailable], None],
    ) -> None:
        self._order, self._open, self._again = order, open_, again
        self._left = continuations
        self._texts: list[str] = []
        self._tokens = 0
        self._continued = False
        self._source: Source | None = None

    async def __aenter__(self) -> Answer:
        self._source = await self._open(self._order)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    async def read(self) -> list[triton.Event]:
        """Some more of the answer. Raises UpstreamFailed or UpstreamUnavailable where nobody can go on."""
        while True:
            try:
                return [self._noted(event) for event in await self._events()]
            except (UpstreamFailed, UpstreamUnavailable) as error:
                if rest := await self._go_on(error):
                    return rest

    async def drain(self) -> None:
        if self._source is not None:
            await self._source.drain()

    async def _events(self) -> list[triton.Event]:
        assert self._source is not None  # noqa: S101  opened by __aenter__
        events = await self._source.read()
        if not events:
            # An orderly end of the connection, but not of the answer.
            raise UpstreamFailed(triton.STOPPED, code="engine_stopped")
        for event in events:
            triton.finish_reason(event)  # an engine that gave the request up says so here
        return events

    def _noted(self, event: triton.Event) -> triton.Event:
        self._texts.append(event.text_output)
        self._tokens += event.num_output_tokens
        # Behind a continuation the engine counts what another one said as a part of the prompt.
        return msgspec.structs.replace(event, num_input_tokens=0) if self._continued else event

    async def _go_on(self, error: UpstreamFailed | UpstreamUnavailable) -> list[triton.Event]:
        """Find another engine; the last event, where nothing is left to say. Raises `error` where none may
        or can go on."""
        self._end()
        if self._left <= 0:
            raise error
        self._left -= 1
        if self._tokens >= self._order.max_tokens:
            return [triton.Event(finish_reason="length")]
        order = self._order.after("".join(self._texts), self._tokens)
        try:
            self._source = await self._open(order)
        except (UpstreamFailed, UpstreamUnavailable):
            raise error from None
        self._continued = True
        self._again(error)
        return []

    def _end(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()
