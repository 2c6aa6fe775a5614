from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.wire import triton
from tests.gateway.running import in_loop

WORDS = ["The", " capital", " of", " France", " is", " Paris", "."]


@dataclass
class Engine:
    """Says WORDS behind whatever of them the prompt ends with; breaks off after `dies_after` reads, if
    ever."""

    dies_after: int | None = None
    per_read: int = 1
    how: str = "error"
    orders: list[Order] = field(default_factory=list)
    closed: int = 0

    def start(self, order: Order) -> Generating:
        self.orders.append(order)
        return Generating(self, order)


class Generating:
    def __init__(self, engine: Engine, order: Order) -> None:
        said = order.text.removeprefix("Q:")
        assert "".join(WORDS).startswith(said)
        left = WORDS[next(n for n in range(len(WORDS) + 1) if "".join(WORDS[:n]) == said) :]
        words = left[: order.max_tokens]
        self.engine, self.reads = engine, 0
        self.events = [
            triton.Event(text_output=word, num_input_tokens=99, num_output_tokens=1, finish_reason="None")
            for word in words
        ]
        end = "stop" if len(words) == len(left) else "length"
        self.events[-1] = msgspec.structs.replace(self.events[-1], finish_reason=end)

    async def read(self) -> list[triton.Event]:
        if self.reads == self.engine.dies_after:
            if self.engine.how == "error":
                raise UpstreamFailed(triton.STOPPED, code="engine_stopped")
            if self.engine.how == "abort":
                return [triton.Event(text_output="lost", finish_reason="abort")]
            return []
        self.reads += 1
        now, self.events = self.events[: self.engine.per_read], self.events[self.engine.per_read :]
        return now

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.engine.closed += 1


def opener(*engines: Engine) -> Callable[[Order], Any]:
    left = list(engines)

    async def open_(order: Order) -> Generating:
        if not left:
            raise UpstreamUnavailable("nobody", code="engine_unavailable")
        return left.pop(0).start(order)

    return open_


async def said(
    *engines: Engine, max_tokens: int = 100, continuations: int = 2, told: list[Any] | None = None
) -> tuple[str, str, int, set[int]]:
    """Text, finish reason, tokens of the answer, and the prompt counts that events gave."""
    texts, tokens, prompts = [], 0, set()
    order = Order("Q:", {"max_tokens": max_tokens, "seed": 7})
    again = (told if told is not None else []).append
    async with Answer(order, opener(*engines), continuations=continuations, again=again) as answer:
        while True:
            for event in await answer.read():
                texts.append(event.text_output)
                tokens += event.num_output_tokens
                prompts.add(event.num_input_tokens)
                if reason := triton.finish_reason(event):
                    await answer.drain()
                    return "".join(texts), reason, tokens, prompts


@pytest.mark.parametrize("how", ["error", "end", "abort"])
@in_loop
async def test_another_engine_goes_on(how: str) -> None:
    one, two, told = Engine(dies_after=3, how=how), Engine(), []  # type: ignore[var-annotated]
    assert await said(one, two, told=told) == ("The capital of France is Paris.", "stop", 7, {99, 0})
    assert two.orders[0].text == "Q:The capital of"
    assert two.orders[0].sampling == {"max_tokens": 97, "seed": 7}
    assert (one.closed, two.closed) == (1, 1)
    assert [type(error) for error in told] == [UpstreamFailed]


@in_loop
async def test_the_limit_counts_for_the_whole() -> None:
    assert (await said(Engine(dies_after=3), Engine(), max_tokens=5))[:3] == (
        "The capital of France is",
        "length",
        5,
    )


@in_loop
async def test_where_nothing_is_left_to_say_nobody_is_asked() -> None:
    one = Engine(dies_after=3)
    generating = one.start

    def without_end(order: Order) -> Generating:
        made = generating(order)
        made.events = [msgspec.structs.replace(event, finish_reason="None") for event in made.events]
        return made

    one.start = without_end  # type: ignore[method-assign]
    two = Engine()
    assert (await said(one, two, max_tokens=3))[:3] == ("The capital of", "length", 3)
    assert two.orders == []


@in_loop
async def test_it_is_bounded_and_may_be_turned_off() -> None:
    with pytest.raises(UpstreamFailed):
        await said(*(Engine(dies_after=1) for _ in range(9)), continuations=2)
    with pytest.raises(UpstreamFailed):
        await said(Engine(dies_after=1), Engine(), continuations=0)


@in_loop
async def test_where_nobody_can_go_on_the_first_reason_is_told() -> None:
    with pytest.raises(UpstreamFailed, match="stopped while answering"):
        await said(Engine(dies_after=1))


@in_loop
async def test_a_client_that_leaves_closes_what_is_open() -> None:
    engine = Engine()
    with pytest.raises(RuntimeError):
        async with Answer(
            Order("Q:", {"max_tokens": 9}), opener(engine), continuations=1, again=lambda _: None
        ) as answer:
            await answer.read()
            raise RuntimeError
    assert engine.closed == 1


def test_a_least_number_of_tokens_is_counted_too() -> None:
    order = Order("Q:", {"max_tokens": 9, "min_tokens": 4})
    assert order.after("x", 3).sampling == {"max_tokens": 6, "min_tokens": 1}
    assert order.after("x", 5).sampling == {"max_tokens": 4, "min_tokens": 0}


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 3), st.sampled_from(["error", "end", "abort"])),
        max_size=4,
    ),
    st.integers(1, 9),
)
def test_however_it_breaks_the_answer_is_the_same(faults: list[tuple[int, int, str]], limit: int) -> None:
    """Whole and with the same counts, or not at all: never with a piece missing or said twice."""
    engines = [Engine(dies_after=at, per_read=size, how=how) for at, size, how in faults]
    text, reason, tokens, _ = asyncio.run(
        said(*engines, Engine(), max_tokens=limit, continuations=len(faults))
    )
    assert text == "".join(WORDS[:limit])
    assert tokens == min(limit, len(WORDS))
    assert reason == ("stop" if limit >= len(WORDS) else "length")
