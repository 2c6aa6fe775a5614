from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.wire import passing
from sovereign_ai.gateway.wire.passing import CHAT, COMPLETIONS, Asked, Passage, Rest


def asked(**fields: Any) -> Asked:
    found = passing.ask(json.dumps({"model": "far", **fields}).encode())
    assert found is not None
    return found


def event(tree: Any, gap: str = "\n\n") -> bytes:
    return f"data: {json.dumps(tree)}{gap}".encode()


def piece(text: str, **more: Any) -> bytes:
    head = {"id": "a", "created": 1, "model": "far"}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **more}
    return event({**head, "choices": [choice]})


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"model":7}', b"\xff", b'{"model":"m","stream":"yes"}']
)
def test_what_is_no_request_for_a_model(body: bytes) -> None:
    assert passing.ask(body) is None


def test_how_many_tokens_are_reserved() -> None:
    assert passing.reserved_tokens(asked(max_tokens=7), b"x" * 40, 0) == (11, 7)
    assert passing.reserved_tokens(asked(max_completion_tokens=7, n=3), b"x" * 40, 0) == (11, 21)
    assert passing.reserved_tokens(asked(max_output_tokens=5), b"", 0) == (1, 5)
    assert passing.reserved_tokens(asked(), b"x" * 40, 100) == (11, 89)
    assert passing.reserved_tokens(asked(), b"x" * 4000, 100) == (1001, 1)
    assert passing.reserved_tokens(asked(), b"", 0) == (1, passing.ANSWER_TOKENS)
    assert passing.reserved_tokens(asked(max_tokens=-5), b"", 0) == (1, 0), "the endpoint refuses it"


def test_a_body_is_only_changed_where_it_must_be() -> None:
    body = b'{"model": "far",  "stream":true, "stream_options": {"x": 1}, "big": 12345678901234567890}'
    request = passing.ask(body)
    assert request is not None
    sent = json.loads(passing.request_body(CHAT, request, body, "far"))
    assert sent["stream_options"] == {"x": 1, "include_usage": True}
    assert sent["big"] == 12345678901234567890
    assert passing.request_body("/v1/messages", request, body, "far") is body
    plain = b'{"model":"far","stream":true,"stream_options":null}'
    request = passing.ask(plain)
    assert request is not None
    assert json.loads(passing.request_body(CHAT, request, plain, "far"))["stream_options"] == {
        "include_usage": True
    }
    assert json.loads(passing.request_body(COMPLETIONS, asked(), b'{"model":"far"}', "x")) == {"model": "x"}


def test_usage_in_all_its_spellings() -> None:
    def usage(tree: Any) -> tuple[int, int] | None:
        return passing.answer_usage(json.dumps(tree).encode())

    assert usage({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}) == (3, 4)
    assert usage({"usage": {"input_tokens": 3, "output_tokens": 4}}) == (3, 4)
    assert usage({"usage": {"prompt_tokens": 3, "completion_tokens": None}}) == (3, 0)
    assert usage({"usage": None}) is None
    assert passing.answer_usage(b"<html>") is None
    events = Passage(hides_usage=False, keeps=False)
    events.feed(
        event({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}})
    )
    events.feed(event({"type": "message_delta", "usage": {"output_tokens": 5}}))
    assert (events.count.prompt, events.count.answer) == (9, 5)
    events = Passage(hides_usage=False, keeps=False)
    events.feed(event({"response": {"usage": {"input_tokens": 9, "output_tokens": 2}}}))
    assert (events.count.prompt, events.count.answer) == (9, 2)


def test_errors_in_all_their_forms() -> None:
    assert passing.error_text(b'{"error":{"message":"a"}}') == "a"
    assert passing.error_text(b'{"error":"b"}') == "b"
    assert passing.error_text(b'{"message":"c"}') == "c"
    assert passing.error_text(b'["d"]') == "['d']"
    assert passing.error_text(b"<html>") == "<html>"


def stream() -> bytes:
    return b"".join(
        [
            piece("", delta={"role": "assistant", "content": ""}),
            *(piece(word) for word in ("Words", ' with "usage":{} in them', " [DONE", "]", " ü")),
            piece("", finish_reason="stop"),
            b": a comment\n\n",
            event({"id": "a", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5}}),
            b"data: [DONE]\n\n",
        ]
    )


@given(st.lists(st.integers(0, len(stream())), max_size=12), st.booleans(), st.booleans())
def test_however_the_bytes_are_cut_the_same_passes(cuts: list[int], crlf: bool, hides: bool) -> None:
    whole = stream().replace(b"\n", b"\r\n") if crlf else stream()
    passage = Passage(hides_usage=hides, keeps=True)
    marks = [0, *sorted(cuts), len(whole)]
    out = b"".join(passage.feed(whole[a:b]) for a, b in pairwise(marks))
    hidden = event({"id": "a", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5}})
    hidden = hidden.replace(b"\n", b"\r\n") if crlf else hidden
    assert out == (whole.replace(hidden, b"") if hides else whole)
    assert passage.done
    assert (passage.count.prompt, passage.count.answer) == (2, 5)
    told = passing.said(passage.kept)
    assert (told.text, told.whole, told.plain) == ('Words with "usage":{} in them [DONE] ü', True, True)
    assert told.head == {"id": "a", "created": 1, "model": "far"}


def test_whole_events_pass_as_they_are() -> None:
    for keeps in (False, True):
        passage, data = Passage(hides_usage=True, keeps=keeps), piece("a") + piece("b")
        assert passage.feed(data) is data
        assert passage.pieces == 2
        assert passage.kept == [data] * keeps


def test_nothing_passes_after_a_failure() -> None:
    passage = Passage(hides_usage=False, keeps=False)
    assert passage.feed(piece("a") + event({"error": {"message": "x"}}) + piece("b")) == piece("a")
    assert passage.failure == event({"error": {"message": "x"}})
    passage = Passage(hides_usage=False, keeps=False)
    assert passage.feed(b'data: {"object":"error","message":"y"}\n\n') == b""
    assert passage.failure is not None


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 1, "delta": {"content": "a"}},
        {"index": 0, "delta": {"tool_calls": [{}]}},
        {"index": 0, "delta": {"reasoning_content": "hm"}},
        {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}},
    ],
)
def test_what_is_not_plain_text(choice: dict[str, Any]) -> None:
    told = passing.said([piece("a"), event({"choices": [choice]}), b"data: nonsense\n\n", b"data: 3\n\n"])
    assert not told.plain
    assert not told.whole


def test_the_text_of_completions() -> None:
    told = passing.said([event({"id": "c", "choices": [{"text": "a"}]}), event({"choices": [{"text": "b"}]})])
    assert (told.text, told.plain) == ("ab", True)
    assert passing.said([event({"choices": [{"index": 0, "delta": None}]})]).text == ""


def test_what_may_be_continued() -> None:
    def may(path: str = CHAT, **fields: Any) -> bool:
        body = json.dumps({"model": "far", "stream": True, **fields}).encode()
        return passing.may_continue(path, asked(stream=fields.get("stream", True), n=fields.get("n")), body)

    assert may()
    assert may(tools=[], response_format=None, logprobs=False, suffix="")
    assert may(COMPLETIONS, prompt="x")
    assert not may(COMPLETIONS, prompt=[1, 2])
    assert not may(COMPLETIONS)
    assert not may(n=2)
    assert not may(stream=False)
    assert not may("/v1/messages")
    assert not may(tools=[{}])
    assert not may(guided_json={})


def test_the_request_for_the_rest() -> None:
    def rest(path: str, text: str = "so far", **fields: Any) -> dict[str, Any]:
        body = json.dumps({"model": "far", **fields}).encode()
        request = passing.ask(body)
        assert request is not None
        found: dict[str, Any] = json.loads(passing.rest_body(path, request, body, text, 2))
        return found

    message = {"role": "user", "content": "hi"}
    assert rest(CHAT, messages=[message], max_tokens=5, max_completion_tokens=9) == {
        "model": "far",
        "max_tokens": 3,
        "max_completion_tokens": 7,
        "messages": [message, {"role": "assistant", "content": "so far"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert rest(CHAT, text="", messages=[message]) == {"model": "far", "messages": [message]}
    assert rest(COMPLETIONS, prompt="x ", max_tokens=1) == {
        "model": "far",
        "prompt": "x so far",
        "max_tokens": 1,
    }


def test_tokens_that_the_endpoint_counts() -> None:
    assert json.loads(passing.tokenize_body("m", "t")) == {
        "model": "m",
        "prompt": "t",
        "add_special_tokens": False,
    }
    assert passing.tokens_counted(b'{"count":4}', 9) == 4
    assert passing.tokens_counted(b'{"counts":4}', 9) == 9


def test_the_rest_reads_as_if_the_first_had_gone_on() -> None:
    rest = Rest(passing.said([piece("a")]), 1)
    other = {
        "id": "b",
        "created": 2,
        "model": "x",
        "choices": [{"delta": {"role": "assistant", "content": "b"}}],
    }
    assert rest.rewritten(event(other) + b": note\n\n") == event(
        {"id": "a", "created": 1, "model": "far", "choices": [{"delta": {"content": "b"}}]}
    ).replace(b": ", b":").replace(b", ", b",").replace(b"data:", b"data: ")
    usage = {
        "id": "b",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
    counted = json.loads(rest.rewritten(event(usage)).removeprefix(b"data: "))["usage"]
    assert counted == {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
    assert rest.rewritten(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert (
        json.loads(rest.rewritten(event({"choices": [{"text": "c"}]})).removeprefix(b"data: "))["id"] == "a"
    )


def test_how_an_answer_ends_that_lacked_its_end() -> None:
    told = passing.said([piece("a")])
    assert passing.ending(told, CHAT, None, None) == b"data: [DONE]\n\n"
    first, second, done, _ = passing.ending(told, CHAT, "length", (1, 2)).split(b"\n\n")
    assert json.loads(first[6:])["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert json.loads(second[6:])["usage"]["total_tokens"] == 3
    assert done == b"data: [DONE]"
    assert b'"text":""' in passing.ending(told, COMPLETIONS, "length", None)
