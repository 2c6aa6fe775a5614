"""From a prompt to the client's answer: one or several generations, streamed or whole, in any format."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from sovereign_ai.errors import InvalidRequest
from sovereign_ai.gateway.continuation import Order
from sovereign_ai.gateway.exchange import Exchange
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.upstream import TritonClient
from sovereign_ai.gateway.wire import triton
from sovereign_ai.gateway.wire.choices import Choice, Collected, ReadChoice, Reading, ScoredChoice
from sovereign_ai.gateway.wire.formats import Format, Usage
from sovereign_ai.spec import Route


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be generated, and how the client wants it.

    `sampling` has vLLM's parameters of each choice. `reading` makes what reads a choice's text, None where
    text is just text. `tokens`: what prompt and one answer need of a context at least. `fields`: vLLM's
    parameters that not every engine takes → the request's field that asked for them.
    """

    text: str
    sampling: Sequence[dict[str, Any]]
    tokens: int
    stream: bool
    format: Format
    reading: Callable[[], Reading] | None = None
    scored: bool = False
    fields: dict[str, str] = {}


class _Hearer(Protocol):
    async def hear(self, index: int, events: list[triton.Event]) -> str | None:
        """Take some events of a choice. Returns its finish reason once that is known."""

    async def finish(self) -> None:
        """To be called when all choices have ended."""


class Generator:
    """Runs assignments on the engines behind `client`."""

    def __init__(self, client: TritonClient, monotonic: Clock) -> None:
        self._client, self._monotonic = client, monotonic

    async def run(self, exchange: Exchange, route: Route, work: Assignment) -> None:
        """Generate and answer. Raises ApiError."""
        hearer: _Hearer = _Relay(exchange, work) if work.stream else _Collection(exchange, work)
        if "structured_outputs" in work.sampling[0]:
            # the rest of a JSON text is not JSON: another engine's grammar would begin anew
            route = msgspec.structs.replace(route, continuations=0)
        try:
            if len(work.sampling) == 1:
                await self._generate(exchange, route, work, 0, hearer.hear)
            else:
                await self._generate_all(exchange, route, work, hearer)
        except InvalidRequest as error:
            raise triton.named_refusal(error, work.fields) from error
        await hearer.finish()

    async def _generate(
        self,
        exchange: Exchange,
        route: Route,
        work: Assignment,
        index: int,
        hear: Callable[[int, list[triton.Event]], Awaitable[str | None]],
    ) -> None:
        order = Order(work.text, work.sampling[index])
        async with self._client.answer(route, order, tokens=work.tokens) as stream:
            if exchange.record.first_token is None:
                exchange.record.first_token = self._monotonic()
            reason = None
            while reason is None:
                reason = await hear(index, await stream.read())
            exchange.record.finish_reasons += (reason,)
            await stream.drain()

    async def _generate_all(
        self, exchange: Exchange, route: Route, work: Assignment, hearer: _Hearer
    ) -> None:
        """All choices at the same time. The first that fails ends the others."""
        turn = asyncio.Lock()

        async def hear(index: int, events: list[triton.Event]) -> str | None:
            async with turn:
                return await hearer.hear(index, events)

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(work.sampling)):
                    group.create_task(self._generate(exchange, route, work, index, hear))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Relay:
    """Passes answers on as they come: one write per network read."""

    def __init__(self, exchange: Exchange, work: Assignment) -> None:
        self._exchange, self._format = exchange, work.format
        self._choices = [_choice(work, index) for index in range(len(work.sampling))]
        self._first = True

    async def hear(self, index: int, events: list[triton.Event]) -> str | None:
        choice, reason = self._choices[index], None
        out = [self._format.first()] if self._first else []
        self._first = False
        for event in events:
            _tally(self._exchange, event)
            out.append(choice.piece(event))
            reason = reason or triton.finish_reason(event)
        if reason is not None:
            out.append(choice.last(reason))
        await self._exchange.send_events(b"".join(out))
        return reason

    async def finish(self) -> None:
        await self._exchange.end_events(self._format.end(_usage(self._exchange)))


class _Collection:
    """Keeps answers until they are whole."""

    def __init__(self, exchange: Exchange, work: Assignment) -> None:
        self._exchange, self._format = exchange, work.format
        make = work.reading
        self._choices = [Collected(make() if make else None) for _ in work.sampling]
        self._reasons = [""] * len(work.sampling)

    async def hear(self, index: int, events: list[triton.Event]) -> str | None:
        for event in events:
            _tally(self._exchange, event)
            self._choices[index].take(event)
            self._reasons[index] = self._reasons[index] or triton.finish_reason(event) or ""
        return self._reasons[index] or None

    async def finish(self) -> None:
        outcomes = [
            choice.outcome(reason) for choice, reason in zip(self._choices, self._reasons, strict=True)
        ]
        await self._exchange.answer(200, self._format.body(outcomes, _usage(self._exchange)))


def _choice(work: Assignment, index: int) -> Choice:
    if work.reading is not None:
        return ReadChoice(work.format, index, work.reading())
    return ScoredChoice(work.format, index) if work.scored else Choice(work.format, index)


def _tally(exchange: Exchange, event: triton.Event) -> None:
    record = exchange.record
    record.completion_tokens += event.num_output_tokens
    # the engine's own count, once it is known
    record.prompt_tokens = event.num_input_tokens or record.prompt_tokens


def _usage(exchange: Exchange) -> Usage:
    return Usage(exchange.record.prompt_tokens, exchange.record.completion_tokens)
