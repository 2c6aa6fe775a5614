"""The client against servers that behave, misbehave, and die, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from sovereign_ai.gateway import client as client_module
from sovereign_ai.gateway.client import Broken, CannotConnect, Client
from tests.gateway.running import in_loop, until

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request. Raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


def says(*pieces: bytes, close: bool = False, times: int = 1000) -> Handle:
    """Answers every request with these bytes, a write each."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(times):
                await request(reader)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return handle


@asynccontextmanager
async def server(handle: Handle) -> AsyncIterator[tuple[Client, list[int]]]:
    """A client to a server with this handler, and the connections that it took."""
    taken: list[int] = []

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(1)
        await handle(reader, writer)

    async with await asyncio.start_server(counted, "127.0.0.1", 0) as listening:
        client = Client(URL(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"))
        try:
            yield client, taken
        finally:
            await client.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Name: a value\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


@in_loop
async def test_an_answer_with_a_length_and_a_connection_used_again() -> None:
    async with server(says(OK)) as (client, taken):
        for _ in range(5):
            response = await client.post("/x", b"{}")
            assert (response.status, response.headers[b"x-name"]) == (200, b"a value")
            assert await response.read() == b"hello"
            assert await response.readany() == b""
            response.close()
        assert (len(taken), client.idle) == (1, 1)


@in_loop
async def test_closing_an_answer_that_is_over_does_not_touch_the_next() -> None:
    async with server(says(OK)) as (client, taken):
        first = await client.get("/a")
        await first.read()
        second = await client.get("/b")
        first.close()
        assert await second.read() == b"hello"
        assert len(taken) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@in_loop
async def test_however_the_bytes_arrive(size: int) -> None:
    pieces = [CHUNKED[at : at + size] for at in range(0, len(CHUNKED), size)]
    async with server(says(*pieces)) as (client, _):
        for _ in range(2):
            assert await (await client.get("/")).read() == b"hello world"


@in_loop
async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True)) as (client, _):
        assert await (await client.get("/")).read() == b"hello"
        await until(lambda: client.idle == 0)


@in_loop
async def test_100_continue_announces_the_answer() -> None:
    async with server(says(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + OK)) as (client, _):
        response = await client.get("/")
        assert (response.status, b"a" in response.headers) == (200, False)
        assert await response.read() == b"hello"


@in_loop
async def test_connection_close_is_kept_to() -> None:
    answer = OK.replace(b"X-Name: a value", b"Connection: close")
    async with server(says(answer, close=True)) as (client, taken):
        for _ in range(2):
            assert await (await client.get("/")).read() == b"hello"
        assert (len(taken), client.idle) == (2, 0)


@pytest.mark.parametrize("cut", [0, 10, len(OK) - 1])
@in_loop
async def test_a_connection_that_ends_too_early(cut: int) -> None:
    async with server(says(OK[:cut], close=True)) as (client, _):
        with pytest.raises(Broken):
            await (await client.get("/")).read()


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
@in_loop
async def test_garbage(garbage: bytes) -> None:
    async with server(says(garbage)) as (client, _):
        with pytest.raises(Broken, match="not an HTTP answer"):
            await client.get("/")


@in_loop
async def test_garbage_in_the_middle() -> None:
    head, body = CHUNKED.split(b"\r\n6\r\n")
    async with server(says(head, b"\r\nnonsense\r\n")) as (client, _):
        response = await client.get("/")
        with pytest.raises(Broken, match="not an HTTP answer"):
            while await response.readany():
                pass
    assert body


@in_loop
async def test_a_head_without_end() -> None:
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 1000) for number in range(100))
    async with server(says(b"HTTP/1.1 200 OK\r\n" + lines)) as (client, _):
        with pytest.raises(Broken, match="not an HTTP answer"):
            await client.get("/")


@in_loop
async def test_nobody_listens() -> None:
    with pytest.raises(CannotConnect):
        await Client(URL("http://127.0.0.1:9")).get("/")


@in_loop
async def test_nobody_answers_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT_S", 0.05)

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(10)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(CannotConnect, match="within"):
        await Client(URL("http://127.0.0.1:9")).get("/")


@in_loop
async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    async with server(says(OK, times=1)) as (client, taken):
        assert await (await client.get("/")).read() == b"hello"
        assert await (await client.get("/")).read() == b"hello"
        assert len(taken) == 2


@in_loop
async def test_a_fresh_connection_that_breaks_is_not_tried_again() -> None:
    async with server(says(close=True)) as (client, taken):
        with pytest.raises(Broken):
            await client.get("/")
        assert len(taken) == 1


@in_loop
async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async with server(says(OK + b"more")) as (client, _):
        assert await (await client.get("/")).read() == b"hello"
        await until(lambda: client.idle == 0)


@in_loop
async def test_closing_in_the_middle_ends_the_connection() -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED[:60])
        await reader.read()
        left.set()
        writer.close()

    async with server(handle) as (client, _):
        response = await client.post("/", b"x")
        assert await response.readany() == b"hello"
        response.close()
        async with asyncio.timeout(5):
            await left.wait()
        assert client.idle == 0


@in_loop
async def test_a_reader_that_is_slow_slows_down_the_endpoint() -> None:
    """Of 64 MiB only what fits into buffers is sent while nobody reads."""
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1
        writer.close()

    async with server(handle) as (client, _):
        response = await client.get("/")
        for _ in range(200):
            await asyncio.sleep(0.002)
        assert sent < 32
        assert response._buffered < 8 << 20
        total = 0
        while part := await response.readany():
            total += len(part)
        assert total == 64 << 20


@in_loop
async def test_closing_the_client_ends_what_runs_and_what_is_idle() -> None:
    async with server(says(CHUNKED[:60])) as (client, _):
        response = await client.get("/")
        await response.readany()
        await client.close()
        with pytest.raises(Broken):
            await response.readany()
        with pytest.raises(CannotConnect, match="no longer used"):
            await client.get("/")


@in_loop
async def test_many_at_once_have_connections_of_their_own() -> None:
    async with server(says(*[CHUNKED[at : at + 9] for at in range(0, len(CHUNKED), 9)])) as (client, taken):
        answers = await asyncio.gather(*(client.get("/") for _ in range(50)))
        assert await asyncio.gather(*(one.read() for one in answers)) == [b"hello world"] * 50
        assert client.idle == len(taken) == 50


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.integers(1, 50))
def test_any_body_in_any_pieces(parts: list[bytes], size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def story() -> None:
        async with server(says(*[answer[at : at + size] for at in range(0, len(answer), size)])) as (
            client,
            _,
        ):
            for _ in range(2):
                assert await (await client.get("/")).read() == b"".join(parts)

    asyncio.run(story())
