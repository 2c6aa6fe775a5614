"""Several workers as real processes: what holds for one gateway holds for all of them together."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from sovereign_ai.config import GatewaySettings, RouteLimits, TlsSettings, encode_gateway
from sovereign_ai.gateway.admission import Limits
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.usage import report
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop
from tests.gateway.several import WORKERS, Several, chat, is_alive, kill, several, stream
from tests.gateway.test_server import SCRIPT, write_routes
from tests.gateway.test_tls import make

# The template of these tests renders `hello`: one token; the fake's answer has four.
PROMPT, ANSWER = 1, 4


def gated() -> FakeTriton:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    return fake


def open_gate(fake: FakeTriton) -> None:
    assert fake.gate is not None
    fake.gate.set()


@in_loop
async def test_ten_requests_a_minute_are_ten_over_all_workers(tmp_path: Path) -> None:
    fake = FakeTriton()
    allowed = Limits(requests_per_minute=10)
    async with (
        fake.listening(),
        several(tmp_path, fake, allowed=allowed) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [client for client, _ in await gateway.clients_of_all(stack, 50)]
        answers = await asyncio.gather(*(chat(client) for client in clients))
        good = [headers for status, headers, _ in answers if status == 200]
        assert len(good) == 10
        assert {status for status, _, _ in answers} == {200, 429}
        left = [int(headers["x-ratelimit-remaining-requests"]) for headers in good]
        assert min(left) == 0
        assert max(left) <= 9
        bad = [headers for status, headers, _ in answers if status == 429]
        assert all(headers["x-ratelimit-remaining-requests"] == "0" for headers in bad)
        assert all(0 < int(headers["Retry-After"]) <= 61 for headers in bad)
        async with clients[0].get("/v1/models") as response:
            assert response.headers["x-ratelimit-limit-requests"] == "10"
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(fake.bodies) == 10
        rejected = (await gateway.metrics())[
            'sovereign_rejections_total{model="",reason="requests_per_minute"}'
        ]
        assert rejected == len(answers) - 10


@in_loop
async def test_the_headers_count_down_whatever_worker_answers(tmp_path: Path) -> None:
    fake = FakeTriton()
    allowed = Limits(requests_per_minute=100, tokens_per_minute=1000)
    async with (
        fake.listening(),
        several(tmp_path, fake, allowed=allowed) as gateway,
        AsyncExitStack() as stack,
    ):
        for number, (client, _) in enumerate(await gateway.clients_of_all(stack, 8)):
            status, headers, _ = await chat(client, max_tokens=9)
            assert status == 200
            assert headers["x-ratelimit-remaining-requests"] == str(99 - number)
            spent = number * (PROMPT + ANSWER) + PROMPT + 9
            assert headers["x-ratelimit-remaining-tokens"] == str(1000 - spent)
            assert headers["x-ratelimit-reset-requests"].endswith("ms")
            # what it took is known once the request has ended
            await logged(gateway, requests=number + 1)


async def logged(gateway: Several, *, requests: int) -> None:
    await gateway.until(
        lambda: sum(line["method"] == "POST" for line in gateway.events("request")) >= requests
    )


@in_loop
async def test_three_at_the_same_time_are_three_over_all_workers(tmp_path: Path) -> None:
    """Of a key: more are refused."""
    fake = gated()
    allowed = Limits(concurrency=3)
    async with (
        fake.listening(),
        several(tmp_path, fake, allowed=allowed) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [client for client, _ in await gateway.clients_of_all(stack, 20)]
        chats = [asyncio.create_task(chat(client)) for client in clients]
        await gateway.until(lambda: sum(task.done() for task in chats) == len(chats) - 3)
        await gateway.until(lambda: fake.active == 3)
        open_gate(fake)
        answers = await asyncio.gather(*chats)
        assert sorted(status for status, _, _ in answers) == [200] * 3 + [429] * (len(chats) - 3)
        assert fake.peak == 3
        assert (await chat(clients[0]))[0] == 200


@in_loop
async def test_one_queue_before_a_model(tmp_path: Path) -> None:
    """Of a model: more wait, and all get their turn."""
    fake = gated()
    limits = (RouteLimits(model="smol", concurrency=3),)
    async with fake.listening(), several(tmp_path, fake, limits=limits) as gateway, AsyncExitStack() as stack:
        clients = [client for client, _ in await gateway.clients_of_all(stack, 20)]
        chats = [asyncio.create_task(chat(client)) for client in clients]
        await gateway.until(lambda: fake.active == 3)
        while (await gateway.metrics()).get('sovereign_queue_depth{model="smol"}') != len(clients) - 3:
            assert fake.active == 3
        open_gate(fake)
        answers = await asyncio.gather(*chats)
        assert {status for status, _, _ in answers} == {200}
        assert fake.peak == 3
        workers = {line["worker"] for line in gateway.events("request")}
        assert workers == set(range(1, WORKERS + 1))


@in_loop
async def test_a_worker_that_is_killed_frees_its_places(tmp_path: Path) -> None:
    """What it had reserved is spent; the streams of the others end whole; another worker takes its place."""
    fake = gated()
    total, longest = 10_000, 8
    allowed = Limits(concurrency=12, tokens_per_minute=total)
    async with (
        fake.listening(),
        several(tmp_path, fake, allowed=allowed) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = (await gateway.clients_of_all(stack, 12))[-12:]
        victim = clients[-1][1]
        pid = gateway.pids[victim]
        streams = [asyncio.create_task(stream(client, max_tokens=longest)) for client, _ in clients]
        await gateway.until(lambda: fake.active == 12)
        newcomer = await stack.enter_async_context(gateway.client())
        assert (await chat(newcomer))[0] == 429
        kill(pid)
        broken = [task for task, (_, worker) in zip(streams, clients, strict=True) if worker == victim]
        whole = [task for task in streams if task not in broken]
        lost = await asyncio.gather(*broken, return_exceptions=True)
        assert all(isinstance(one, aiohttp.ClientError) for one in lost), lost
        await gateway.until(lambda: fake.active == len(whole))
        # the engine may hear of its end before the coordinator does
        await gateway.until(lambda: gateway.events("worker_ended"))
        async with gateway.client() as client:  # the newcomer's connection may have been the victim's
            again = [asyncio.create_task(stream(client, max_tokens=longest))]
            await gateway.until(lambda: fake.active == len(whole) + 1)
            open_gate(fake)
            ended = await asyncio.gather(*whole, *again)
        assert ended == [(PROMPT, ANSWER, True)] * (len(whole) + 1)
        await gateway.until(lambda: gateway.pids[victim] != pid)
        await gateway.until(lambda: len(gateway.events("request")) >= len(clients) - len(broken) + 2)
        assert gateway.events("worker_ended")[0]["code"] == -signal.SIGKILL
        async with gateway.client() as client, client.get("/v1/models") as response:
            left = int(response.headers["x-ratelimit-remaining-tokens"])
        assert left == total - len(broken) * (PROMPT + longest) - len(ended) * (PROMPT + ANSWER)


@in_loop
async def test_workers_do_not_outlive_their_coordinator(tmp_path: Path) -> None:
    fake = gated()
    async with fake.listening(), several(tmp_path, fake) as gateway, gateway.client() as client:
        pids = list(gateway.pids.values())
        under_way = asyncio.create_task(stream(client))
        await gateway.until(lambda: fake.active == 1)
        gateway.process.kill()
        await gateway.until(lambda: not any(map(is_alive, pids)))
        with pytest.raises(aiohttp.ClientError):
            await under_way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_signal_ends_all_streams_in_order(tmp_path: Path, number: signal.Signals) -> None:
    fake = gated()
    async with fake.listening(), several(tmp_path, fake) as gateway, AsyncExitStack() as stack:
        pids = list(gateway.pids.values())
        clients = [client for client, _ in await gateway.clients_of_all(stack, 8)]
        streams = [asyncio.create_task(text(client)) for client in clients]
        await gateway.until(lambda: fake.active == len(clients))
        gateway.process.send_signal(number)
        rests = await asyncio.gather(*streams)
        assert all("The gateway is shutting down" in rest and "[DONE]" not in rest for rest in rests)
        assert await gateway.ended() == 0
        assert not any(map(is_alive, pids))
        assert gateway.log[-1]["event"] == "stopped"
        cut = [line for line in gateway.events("request") if line["error"] == "shutting_down"]
        assert len(cut) == len(clients)
    (row,) = report(tmp_path / "ledger.sqlite", "key")
    assert (row.requests, row.total_tokens) == (len(clients), len(clients) * (PROMPT + ANSWER - 1))


async def text(client: aiohttp.ClientSession) -> str:
    body = {"model": "smol", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with client.post("/v1/chat/completions", json=body) as response:
        return await response.text()


@in_loop
async def test_ledger_and_metrics_say_what_the_clients_counted(tmp_path: Path) -> None:
    """Over all workers, one of which is killed in between."""
    fake, counted = FakeTriton(), []
    async with fake.listening(), several(tmp_path, fake) as gateway:
        async with AsyncExitStack() as stack:
            clients = await gateway.clients_of_all(stack, 20)
            for _ in range(3):
                counted += await asyncio.gather(*(stream(client) for client, _ in clients))
            before = await gateway.metrics()
            assert totals(before) == sums(counted)
            pid = gateway.pids[2]
            kill(pid)
            await gateway.until(lambda: gateway.pids[2] != pid)
            after = await gateway.metrics()
            assert all(after[name] >= value for name, value in before.items() if "_total" in name)
        async with AsyncExitStack() as stack:
            clients = await gateway.clients_of_all(stack, 20)
            counted += await asyncio.gather(*(stream(client) for client, _ in clients))
        assert all(done for _, _, done in counted)
        assert totals(await gateway.metrics()) == sums(counted)
        gateway.process.terminate()
        assert await gateway.ended() == 0
    (row,) = report(tmp_path / "ledger.sqlite", "key")
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == sums(counted)


def totals(metrics: dict[str, float]) -> tuple[float, float, float]:
    """Streams, prompt and answer tokens."""
    return (
        metrics['sovereign_requests_total{model="smol",status="200"}'],
        metrics['sovereign_prompt_tokens_total{endpoint="smol-up-0",model="smol"}'],
        metrics['sovereign_completion_tokens_total{endpoint="smol-up-0",model="smol"}'],
    )


def sums(counted: list[tuple[int, int, bool]]) -> tuple[int, int, int]:
    return len(counted), sum(prompt for prompt, _, _ in counted), sum(tokens for _, tokens, _ in counted)


@in_loop
async def test_gauges_are_of_all_workers(tmp_path: Path) -> None:
    fake = gated()
    limits = (RouteLimits(model="smol", concurrency=6),)
    async with fake.listening(), several(tmp_path, fake, limits=limits) as gateway, AsyncExitStack() as stack:
        clients = [client for client, _ in await gateway.clients_of_all(stack, 10)][-10:]
        chats = [asyncio.create_task(chat(client)) for client in clients]
        await gateway.until(lambda: fake.active == 6)
        running, waiting, up = (
            'sovereign_requests_running{model="smol"}',
            'sovereign_queue_depth{model="smol"}',
            'sovereign_endpoint_up{endpoint="smol-up-0",model="smol"}',
        )
        held = await gateway.metrics()
        while held.get(waiting) != 4.0:
            held = await gateway.metrics()
        assert (held[running], held[up], held["sovereign_routes_valid"]) == (6.0, 1.0, 1.0)
        open_gate(fake)
        await asyncio.gather(*chats)
        done = await gateway.metrics()
        assert (done[running], done[waiting]) == (0.0, 0.0)


@in_loop
async def test_who_comes_while_a_model_loads_waits_for_it(tmp_path: Path) -> None:
    fake = FakeTriton()
    fake.ready = False
    async with fake.listening(), several(tmp_path, fake) as gateway, AsyncExitStack() as stack:
        clients = [client for client, _ in await gateway.clients_of_all(stack, 12)]
        chats = [asyncio.create_task(chat(client)) for client in clients]
        while (await gateway.metrics()).get('sovereign_queue_depth{model="smol"}') != len(clients):
            assert not any(task.done() for task in chats)
        fake.ready = True
        assert {status for status, _, _ in await asyncio.gather(*chats)} == {200}


@in_loop
async def test_a_key_that_is_revoked_and_routes_that_change(tmp_path: Path) -> None:
    """For all workers at once, or within a second."""
    old, new = FakeTriton(), FakeTriton()
    new.tokens = ["new"]
    async with (
        old.listening(),
        new.listening(),
        several(tmp_path, old) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [client for client, _ in await gateway.clients_of_all(stack, 12)]
        routes = tmp_path / "routes.json"
        routes.write_bytes(routes.read_bytes().replace(old.url.encode(), new.url.encode()))
        await gateway.until(lambda: len(gateway.events("routes_loaded")) == WORKERS + 1)
        answers = await asyncio.gather(*(chat(client) for client in clients))
        assert {body["choices"][0]["message"]["content"] for _, _, body in answers} == {"new"}
        with Ledger(tmp_path / "ledger.sqlite") as keys:
            keys.revoke_key("test")
        assert {status for status, _, _ in await asyncio.gather(*map(chat, clients))} == {401}


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")
@in_loop
async def test_a_renewed_certificate(tmp_path: Path) -> None:
    make(tmp_path, "a"), make(tmp_path, "b")
    served = TlsSettings(certificate=tmp_path / "served.pem", key=tmp_path / "served.key")
    shutil.copy(tmp_path / "a.pem", served.certificate)
    shutil.copy(tmp_path / "a.key", served.key)
    fake = FakeTriton()
    async with fake.listening(), several(tmp_path, fake, tls=served) as gateway:
        shutil.copy(tmp_path / "b.pem", served.certificate)
        shutil.copy(tmp_path / "b.key", served.key)
        await gateway.until(
            lambda: len({line["worker"] for line in gateway.events("certificate_loaded")}) == WORKERS
        )
        trusted = ssl.create_default_context(cafile=str(tmp_path / "b.pem"))
        for _ in range(3 * WORKERS):
            async with gateway.client() as client, client.get("/healthz", ssl=trusted) as response:
                assert response.status == 200


@in_loop
async def test_an_endpoint_that_refuses_is_left_alone_by_all(tmp_path: Path) -> None:
    """One worker's failures make the ejection, and all wait for its trial."""
    fake = FakeTriton()
    async with fake.listening(), several(tmp_path, fake) as gateway, AsyncExitStack() as stack:
        clients = await gateway.clients_of_all(stack, 12)
        fake.refusal = (500, "broken")
        one = clients[0][0]
        for _ in range(5):
            assert (await chat(one))[0] == 502
        await gateway.until(lambda: gateway.events("endpoint_ejected"))
        asked = len(fake.bodies)
        fake.refusal = None
        chats = [asyncio.create_task(chat(client)) for client, _ in clients]
        assert {status for status, _, _ in await asyncio.gather(*chats)} == {200}
        assert len(fake.bodies) == asked + len(clients)
        assert len(gateway.events("endpoint_ejected")) == 1
        assert len(gateway.events("endpoint_returned")) == 1


@in_loop
async def test_long_lines_of_the_log_stay_whole(tmp_path: Path) -> None:
    """Into a pipe, which takes 4,096 bytes at a time from each writer."""
    fake = FakeTriton()
    fake.tokens = ["x" * 20_000] * 3
    limits = (RouteLimits(model="smol", log_content=True),)
    async with fake.listening(), several(tmp_path, fake, limits=limits) as gateway, AsyncExitStack() as stack:
        clients = [client for client, _ in await gateway.clients_of_all(stack, 16)]
        await asyncio.gather(*(stream(client) for client in clients for _ in range(3)))
        await gateway.until(lambda: len(gateway.events("content")) == 3 * len(clients))


@in_loop
async def test_what_keeps_a_worker_from_starting_ends_the_gateway(tmp_path: Path) -> None:
    routes = write_routes(tmp_path, FakeTriton())
    (tmp_path / "chat_template.jinja").write_text("{% broken")
    settings = encode_gateway(GatewaySettings(port=0, workers=2))
    command = [sys.executable, "-c", SCRIPT, str(routes), str(tmp_path / "ledger.sqlite"), settings]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1, "an exception nobody caught; the command line has a code for it"
    assert b"UnsupportedModel" in said.splitlines()[-1]
