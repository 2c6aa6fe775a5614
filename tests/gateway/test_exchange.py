from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from sovereign_ai.errors import InvalidRequest, RequestTooLarge, Unauthenticated, UpstreamUnavailable
from sovereign_ai.gateway.exchange import ClientGone, Exchange, Message
from tests.gateway.running import in_loop

DISCONNECT = {"type": "http.disconnect"}


def part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Wire:
    """Both ends of an exchange: what the client sends, and what it has got."""

    def __init__(self, messages: Iterable[Message] = (), headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._messages = iter(messages)
        self.sent: list[Message] = []
        self.received = 0
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": list(headers)}
        self.exchange = Exchange(scope, self._receive, self._send, started=0.0)

    async def _receive(self) -> Message:
        self.received += 1
        return next(self._messages, DISCONNECT)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


@in_loop
async def test_a_body_in_pieces() -> None:
    wire = Wire([part(b"ab"), part(b""), part(b"c", more=False)])
    assert await wire.exchange.body(3) == b"abc"


@in_loop
async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    wire = Wire([part(b"abcd", more=False)], [(b"content-length", b"4")])
    with pytest.raises(RequestTooLarge, match="3 bytes"):
        await wire.exchange.body(3)
    assert wire.received == 0


@in_loop
async def test_a_body_that_grows_too_large_is_read_no_further() -> None:
    wire = Wire([part(b"ab"), part(b"cd"), part(b"ef", more=False)])
    with pytest.raises(RequestTooLarge):
        await wire.exchange.body(3)
    assert wire.received == 2


@in_loop
async def test_a_client_that_leaves_while_sending() -> None:
    with pytest.raises(ClientGone):
        await Wire([part(b"ab"), DISCONNECT]).exchange.body(9)


@in_loop
async def test_gone_waits_for_the_disconnect() -> None:
    wire = Wire([part(b""), part(b""), DISCONNECT])
    await wire.exchange.gone()
    assert wire.received == 3


@in_loop
async def test_headers() -> None:
    wire = Wire(headers=[(b"a", b"1"), (b"b", b"\xe9")])
    assert [wire.exchange.header(name) for name in (b"a", b"b", b"c")] == ["1", "é", None]


@in_loop
async def test_a_whole_answer() -> None:
    wire = Wire()
    await wire.exchange.answer(201, b"{}", headers=[(b"x-a", b"b")])
    assert wire.sent[0]["status"] == wire.exchange.record.status == 201
    assert wire.headers == {b"content-type": b"application/json", b"content-length": b"2", b"x-a": b"b"}
    assert wire.sent[1] == {"type": "http.response.body", "body": b"{}", "more_body": False}


@in_loop
async def test_a_stream_that_fails_ends_with_the_error() -> None:
    wire = Wire()
    await wire.exchange.send_events(b"data: 1\n\n")
    await wire.exchange.fail(UpstreamUnavailable("gone"))
    assert wire.sent[0]["status"] == 200
    assert wire.headers[b"content-type"].startswith(b"text/event-stream")
    assert wire.body.startswith(b'data: 1\n\ndata: {"error"')
    assert wire.sent[-1]["more_body"] is False
    assert (wire.exchange.record.status, wire.exchange.record.error) == (503, "UpstreamUnavailable")


@in_loop
async def test_nothing_can_be_said_after_the_end() -> None:
    wire = Wire()
    await wire.exchange.send_events(b"a")
    await wire.exchange.end_events(b"b")
    await wire.exchange.fail(InvalidRequest("late"))
    assert wire.body == b"ab"


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (UpstreamUnavailable("x"), (b"retry-after", b"1")),
        (Unauthenticated("x"), (b"www-authenticate", b"Bearer")),
        (InvalidRequest("x"), (b"content-type", b"application/json")),
    ],
)
def test_errors_carry_their_headers(error: Any, header: tuple[bytes, bytes]) -> None:
    @in_loop
    async def scenario() -> None:
        wire = Wire()
        await wire.exchange.fail(error)
        assert wire.sent[0]["status"] == error.http_status
        assert header in wire.headers.items()
        assert json.loads(wire.body)["error"]["message"] == "x"

    scenario()


@in_loop
async def test_a_refused_upload_is_answered_before_it_is_thrown_away() -> None:
    wire = Wire([part(b"x" * 1000), part(b"", more=False)])
    await wire.exchange.fail(RequestTooLarge("too large"))
    assert wire.headers[b"connection"] == b"close"
    assert [message.get("more_body") for message in wire.sent] == [None, True, False]
    assert wire.received == 2


@in_loop
async def test_a_refused_upload_that_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovereign_ai.gateway.exchange.LINGER_S", 0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        sent.append(message)

    exchange = Exchange({"method": "POST", "path": "/", "headers": []}, receive, send, started=0.0)
    await exchange.fail(RequestTooLarge("too large"))
    assert sent[-1]["more_body"] is False
