"""Clients that mean no good, or have a bad line, on real sockets."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from contextlib import ExitStack, suppress

import pytest

from sovereign_ai.gateway import exchange, protocol
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, Running, chat_body, in_loop, running, until

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Everything until the gateway closes."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def given_up(gateway: Running, reader: asyncio.StreamReader) -> bytes:
    """What comes while the gateway's seconds pass, a hundred times as fast."""
    reading = asyncio.create_task(answer(reader))
    while not reading.done():
        await asyncio.sleep(0.01)
        ticked(gateway)
    return reading.result()


@pytest.mark.parametrize("start", [b"", b"GET /heal", HEAD.encode()])
@in_loop
async def test_a_head_that_does_not_end_is_not_waited_for(start: bytes) -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(start)
        assert await given_up(gateway, reader) == b""
        writer.close()
        assert (await gateway.chat())[0] == 200


@in_loop
async def test_nor_is_that_of_a_second_request() -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /healthz HTT")
        assert b"HTTP/1.1" not in await given_up(gateway, reader)
        writer.close()


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def dripped(
    gateway: Running, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes
) -> int:
    """How many bytes of `text`, over and over, were taken at one for each of the gateway's seconds."""
    reading, count = asyncio.create_task(answer(reader)), 0
    while not reading.done():
        writer.write(text[count % len(text) :][:1])
        await asyncio.sleep(0.005)
        ticked(gateway)
        count += 1
        assert count < 1000, "would go on for ever"
    return count


def ticked(gateway: Running) -> None:
    gateway.gateway.tick()
    for connection in tuple(gateway.server.server_state.connections):
        assert isinstance(connection, protocol.Protocol)
        connection.tick()


@pytest.mark.parametrize("first", [b"", HEALTH])
@pytest.mark.parametrize("text", [HEAD.encode(), b"\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 99])
@in_loop
async def test_a_byte_a_second_does_not_hold_a_connection(first: bytes, text: bytes) -> None:
    """Also where it has been served before, and where the bytes are empty lines."""
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(first)
        if first:
            await reader.readuntil(b'"ok"}')
        count = await dripped(gateway, reader, writer, text)
        assert protocol.HEAD_TICKS <= count < 2 * protocol.HEAD_TICKS
        writer.close()


@in_loop
async def test_many_slow_heads_take_nothing_from_others() -> None:
    async with running(FakeTriton()) as gateway:
        opened = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(50)]
        for _, writer in opened:
            writer.write(b"G")
        assert (await gateway.chat())[0] == 200
        # from here on the gateway's seconds pass so fast that no honest head would be in time
        dripping = [
            asyncio.create_task(dripped(gateway, *each, text))
            for each, text in zip(opened, [b"ET / HTTP/1.1\r\n", b"E", b"ET"] * 17, strict=False)
        ]
        await asyncio.gather(*dripping)
        await until(lambda: len(gateway.server.server_state.connections) <= 1)
        assert (await gateway.chat())[0] == 200
        for _, writer in opened:
            writer.close()


@in_loop
async def test_a_slow_second_request_is_answered_after_the_first() -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for _ in range(3):
            for byte in HEALTH:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert b" 200 " in await reader.readuntil(b'"ok"}')
        writer.close()


@pytest.mark.parametrize(
    "garbage", [b"\x00\x16\x03\x01" * 99, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"}{" * 9999]
)
@in_loop
async def test_garbage_behind_a_request(garbage: bytes) -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(HEALTH + garbage)
        assert (await answer(reader)).count(b"HTTP/1.1 400 ") == 1
        writer.close()
        assert (await gateway.chat())[0] == 200


@in_loop
async def test_many_requests_at_once_are_answered_in_turn() -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(HEALTH * 200)
        for _ in range(200):
            assert b" 200 " in await reader.readuntil(b'"ok"}')
        writer.close()


@in_loop
async def test_garbage_in_the_middle_of_a_stream_ends_it() -> None:
    """The engine is free again, and the client finds nothing in its stream that is no part of it."""
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = json.dumps(chat_body(stream=True)).encode()
        writer.write(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.readuntil(b"data: ")
        writer.write(b"\x00garbage\r\n\r\n")
        assert b"HTTP/1.1" not in await answer(reader)
        await until(lambda: fake.left == 1)
        writer.close()


@in_loop
async def test_whole_answers_that_nobody_reads_are_given_up() -> None:
    """They are written in full before anybody waits: what remains is bytes, and a connection to keep them."""
    async with running(FakeTriton()) as gateway:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        sending = asyncio.create_task(
            loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 9999)
        )
        connections = gateway.server.server_state.connections
        await until(lambda: any(one.transport.get_write_buffer_size() for one in connections))
        for _ in range(3 * protocol.UNREAD_TICKS):
            ticked(gateway)
            await asyncio.sleep(0.005)
        assert not connections
        sending.cancel()
        client.close()


@in_loop
async def test_a_head_without_end_is_refused() -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(HEAD.encode())
        for number in range(100):
            writer.write(f"X-{number}: {'x' * 1000}\r\n".encode())
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()


@in_loop
async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
        told = await given_up(gateway, reader)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert json.loads(told.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        writer.close()


@in_loop
async def test_a_hundred_megabytes_are_refused_after_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LINGER_BYTES", 1024 * 1024)
    async with running(FakeTriton()) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent, piece = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        try:
            while sent < 100 * 1024 * 1024:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        except ConnectionError:
            pass
        assert sent < 20 * 1024 * 1024, "what the buffers of both sockets hold, and what was thrown away"
        await until(lambda: gateway.log())
        assert gateway.log()[0]["status"] == 413
        writer.close()
        del reader


async def not_reading(gateway: Running) -> socket.socket:
    """A client that asked for a stream and reads nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
    body = json.dumps(chat_body(stream=True, max_tokens=29)).encode()
    head = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode()
    await asyncio.get_running_loop().sock_sendall(client, head + body)
    return client


@in_loop
async def test_a_client_that_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STALLED_TICKS", 3)
    fake = FakeTriton()
    fake.tokens = ["x" * 1_000_000] * 29
    async with running(fake) as gateway:
        client = await not_reading(gateway)
        (exchanged,) = await _flights(gateway)
        await until(lambda: exchanged.sending)
        await asyncio.sleep(0.1)
        assert fake.written < 29, "what nobody reads is not generated, and not kept"
        while gateway.gateway._flights:
            gateway.gateway.tick()
            await asyncio.sleep(0.01)
        assert gateway.log()[0]["status"] == 499
        await until(lambda: fake.left == 1)
        client.settimeout(10)
        await asyncio.to_thread(_read_to_the_end, client)
        client.close()


def _read_to_the_end(client: socket.socket) -> None:
    """What was on the way, and then that the connection was broken off."""
    with suppress(ConnectionResetError):
        while client.recv(1 << 20):
            pass


async def _flights(gateway: Running) -> list[exchange.Exchange]:
    await until(lambda: gateway.gateway._flights)
    return list(gateway.gateway._flights.values())


@in_loop
async def test_a_client_that_reads_slowly_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STALLED_TICKS", 3)
    fake = FakeTriton()
    async with running(fake) as gateway:
        for _ in range(10):
            gateway.gateway.tick()
        assert (await gateway.stream())[-1] == "[DONE]"


@in_loop
async def test_idle_connections_take_nothing_from_others() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # both ends of every connection are in this process
    count = min(2000, (soft - 200) // 2)
    async with running(FakeTriton()) as gateway:
        with ExitStack() as stack:
            for _ in range(count):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
            await until(lambda: len(gateway.server.server_state.connections) >= count)
            assert (await gateway.chat())[0] == 200


@in_loop
async def test_the_api_is_described_without_a_key() -> None:
    async with (
        running(FakeTriton()) as gateway,
        gateway.session.get(f"{gateway.url}/openapi.json", headers={"Authorization": ""}) as found,
    ):
        assert found.status == 200
        assert "/v1/chat/completions" in (await found.json())["paths"]


def request(**fields: object) -> bytes:
    body = json.dumps(chat_body(**fields)).encode()
    head = HEAD + f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@in_loop
async def test_who_leaves_during_a_later_request_of_a_connection_is_noticed() -> None:
    """The first request is over: that nobody watches for it any more must not make the second one unwatched,
    not even where both came in one piece."""
    fake = FakeTriton()
    async with running(fake) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        fake.gate = asyncio.Event()
        writer.write(request() + request())
        await until(lambda: len(fake.bodies) == 1)
        fake.gate.set()
        await until(lambda: len(fake.bodies) == 2)
        fake.gate = asyncio.Event()
        writer.write(request())
        await until(lambda: len(fake.bodies) == 3)
        writer.close()
        await until(lambda: fake.left == 1)
        await until(lambda: not gateway.gateway._flights)
        assert [line["status"] for line in gateway.log()] == [200, 200, 499]
        del reader
