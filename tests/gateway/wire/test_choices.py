from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.wire.anthropic import AnthropicFormat
from sovereign_ai.gateway.wire.choices import Choice, Collected, ReadChoice, Reading, ScoredChoice
from sovereign_ai.gateway.wire.formats import ChatFormat, CompletionFormat, Ending, Head, WholeCall
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called, Said, reader_for
from sovereign_ai.gateway.wire.tools import Calling, Function
from sovereign_ai.gateway.wire.triton import Event

HEAD = Head("chatcmpl-1", 7, "m")
LOOK = Calling((Function(name="look"),), "auto", False, True)
CALL = '<tool_call>{"name": "look", "arguments": {"a": 1}}</tool_call>'
POSITION = json.dumps([{"5": {"logprob": -0.5, "rank": 1, "decoded_token": "x"}}])


def chat(top: int | None = None) -> ChatFormat:
    return ChatFormat(HEAD, include_usage=False, top=top)


def test_nothing_is_sent_for_nothing() -> None:
    assert Choice(chat(), 0).piece(Event()) == b""
    assert ScoredChoice(chat(0), 0).piece(Event()) == b""
    assert ReadChoice(chat(), 0, Reading(reader_for(LOOK, "hermes"))).piece(Event()) == b""


def test_a_token_without_text_has_its_log_probability() -> None:
    assert b'"logprob":-0.5' in ScoredChoice(chat(0), 0).piece(Event(logprobs=POSITION))


def test_a_whole_choice() -> None:
    collected = Collected()
    for text in ("a", "b"):
        collected.take(Event(text, logprobs=POSITION))
    outcome = collected.outcome("length")
    assert (outcome.text, outcome.ending, len(outcome.positions)) == ("ab", Ending("length"), 2)


def test_a_whole_choice_with_calls() -> None:
    collected = Collected(Reading(reader_for(LOOK, "hermes")))
    collected.take(Event(CALL))
    outcome = collected.outcome("stop")
    assert (outcome.text, outcome.ending) == ("", Ending("tool_calls"))
    assert outcome.calls == [WholeCall("look", '{"a": 1}')]


@given(
    text=st.text(alphabet="ab", max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=3),
    size=st.integers(1, 5),
)
def test_the_stop_sequence_is_taken_off_however_the_text_is_cut(
    text: str, stops: list[str], size: int
) -> None:
    reading = Reading(stops=stops)
    pieces = [piece for at in range(0, len(text), size) for piece in reading.feed(text[at : at + size])]
    rest, ending = reading.end("stop")
    said = "".join(piece.text for piece in [*pieces, *rest] if isinstance(piece, Said))
    assert said + (ending.stop or "") == text
    longest = max((stop for stop in stops if text.endswith(stop)), key=len, default=None)
    assert ending == (Ending("stop") if longest is None else Ending("stop_sequence", longest))


def test_an_answer_that_was_cut_off_ended_at_no_stop_sequence() -> None:
    reading = Reading(stops=["b"])
    reading.feed("ab")
    assert reading.end("length") == ([Said("b")], Ending("length"))


def test_what_a_format_does_not_have() -> None:
    with pytest.raises(NotImplementedError):
        AnthropicFormat(HEAD, 1).scored("x", [])
    completion = CompletionFormat(HEAD, include_usage=False)
    with pytest.raises(NotImplementedError):
        completion.call(Called(0, "look"))
    with pytest.raises(NotImplementedError):
        completion.arguments(Arguments(0, "{}"))
