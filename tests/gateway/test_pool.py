from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from yarl import URL

from sovereign_ai.errors import UpstreamUnavailable
from sovereign_ai.gateway import pool as pool_module
from sovereign_ai.gateway.client import Broken, Client
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Pool
from sovereign_ai.spec import Routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop, routes_to, until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pool_before(*fakes: FakeTriton, clock: Clock | None = None) -> AsyncIterator[Pool]:
    pool = Pool(routes_to(*fakes), Metrics(), Journal(lambda line: None, Clock()), clock=clock or Clock())
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@in_loop
async def test_health_is_known_after_the_start() -> None:
    async with FakeTriton().listening() as up, FakeTriton().listening() as down:
        down.ready = False
        async with pool_before(down, up) as pool:
            assert pool.choose("smol").name == "smol-up-1"
            assert pool.unready() == []


@in_loop
async def test_nobody_listening_is_down_and_says_so() -> None:
    fake = FakeTriton()
    fake.url = "http://127.0.0.1:1"
    async with pool_before(fake) as pool:
        assert pool.unready() == ["smol", "minilm"]
        with pytest.raises(UpstreamUnavailable, match="smol"):
            pool.choose("smol")


@in_loop
async def test_health_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PROBE_INTERVAL_S", 0.01)
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        fake.ready = False
        await until(lambda: pool.unready() == ["smol", "minilm"])
        fake.ready = True
        await until(lambda: pool.unready() == [])


@in_loop
async def test_an_endpoint_that_answers_too_late_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PROBE_TIMEOUT_S", 0.05)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        fake = FakeTriton()
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with pool_before(fake) as pool:
            assert pool.unready() == ["smol", "minilm"]


@in_loop
async def test_marked_down_until_a_probe_succeeds() -> None:
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        upstream = pool.choose("smol")
        pool.mark_down(upstream)
        assert pool.unready() == ["smol"]
        await pool.probe(upstream)
        assert pool.unready() == []


@in_loop
async def test_held_down_whatever_probes_say() -> None:
    clock = Clock()
    async with FakeTriton().listening() as fake, pool_before(fake, clock=clock) as pool:
        upstream = pool.choose("smol")
        pool.mark_dead(upstream)
        await pool.probe(upstream)
        assert not upstream.healthy
        clock.now = pool_module.HOLD_S
        await pool.probe(upstream)
        assert upstream.healthy


@in_loop
async def test_a_restart_ends_the_holding_down() -> None:
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        upstream = pool.choose("smol")
        pool.mark_dead(upstream)
        fake.ready = False
        await pool.probe(upstream)
        fake.ready = True
        await pool.probe(upstream)
        assert upstream.healthy


@in_loop
async def test_the_dead_answer_nobody() -> None:
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        upstream = pool.choose("smol")
        fake.gate = asyncio.Event()
        path, body = upstream.question
        response = await upstream.client.post(path, body)
        asyncio.get_running_loop().call_soon(pool.mark_dead, upstream)
        with pytest.raises(Broken, match="abandoned"):
            while True:
                await response.readany()
        assert not upstream.available
        pool.mark_dead(upstream)


@in_loop
async def test_only_a_busy_endpoint_can_be_silent() -> None:
    clock = Clock()
    async with FakeTriton().listening() as fake, pool_before(fake, clock=clock) as pool:
        upstream = pool.choose("smol")
        clock.now = 100
        assert not upstream.is_silent()
        with upstream.occupied():
            assert not upstream.is_silent()
            clock.now += pool_module.SILENCE_S
            assert upstream.is_silent()
            with upstream.occupied():
                assert upstream.is_silent(), "a new request is no sign of life"
            upstream.heard()
            assert not upstream.is_silent()


@pytest.mark.parametrize("model", ["smol", "minilm"])
@in_loop
async def test_a_sign_of_life_is_asked_for(model: str) -> None:
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        upstream = pool.choose(model)
        await pool.examine(upstream)
        fake.refusal = (400, "something else")
        await pool.examine(upstream)
        assert upstream.healthy
        fake.refusal = (400, "Stub process 'smol_0_0' is not healthy.")
        await pool.examine(upstream)
        assert not upstream.healthy


@in_loop
async def test_no_answer_is_no_sign_of_death() -> None:
    async with FakeTriton().listening() as fake, pool_before(fake) as pool:
        upstream = pool.choose("smol")
        upstream.client = Client(URL("http://127.0.0.1:1"))
        await pool.examine(upstream)
        assert upstream.healthy


@in_loop
async def test_the_least_busy_is_chosen_and_there_may_be_another() -> None:
    async with (
        FakeTriton().listening() as one,
        FakeTriton().listening() as two,
        pool_before(one, two) as pool,
    ):
        first = pool.choose("smol")
        with first.occupied():
            second = pool.choose("smol")
            assert second is not first
            assert pool.choose("smol", but=[second]) is first
        assert pool.choose("smol") is first
        pool.mark_down(second)
        with pytest.raises(UpstreamUnavailable):
            pool.choose("smol", but=[first])


@in_loop
async def test_closing_closes_idle_connections() -> None:
    async with FakeTriton().listening() as fake:
        async with pool_before(fake) as pool:
            client = pool.choose("smol").client
        assert client.closed


@in_loop
async def test_a_pool_that_never_started_can_be_closed() -> None:
    await Pool(routes_to(), Metrics(), Journal(lambda line: None, Clock())).close()


@in_loop
async def test_other_routes_keep_what_stays_and_drain_what_goes() -> None:
    async with (
        FakeTriton().listening() as one,
        FakeTriton().listening() as two,
        FakeTriton().listening() as three,
        pool_before(one, two) as pool,
    ):
        stays, goes = pool.choose("smol"), pool.choose("smol", but=[pool.choose("smol")])
        assert (stays.name, goes.name) == ("smol-up-0", "smol-up-1")
        with goes.occupied():
            leaving = goes.client
            await pool.replace(replaced(routes_to(one, two), url=three.url, weight=7.0))
            assert pool.choose("smol", but=[stays]).key[2] == three.url
            assert pool.choose("smol", but=[stays]).weight == 7.0
            assert pool.choose("smol", but=[pool.choose("smol", but=[stays])]) is stays
            assert not leaving.closed
        await until(lambda: leaving.closed)
        assert not stays.client.closed
        assert pool.unready() == []


def replaced(routes: Routes, *, url: str, weight: float) -> Routes:
    """The second endpoint of every route at another address."""
    return Routes(
        routes=tuple(
            msgspec.structs.replace(
                route,
                endpoints=(
                    route.endpoints[0],
                    msgspec.structs.replace(route.endpoints[1], url=url, weight=weight),
                ),
            )
            for route in routes.routes
        )
    )


@in_loop
async def test_a_new_endpoint_gets_nothing_before_it_was_looked_at() -> None:
    async with FakeTriton().listening() as one, FakeTriton().listening() as two, pool_before(one) as pool:
        two.ready = False
        await pool.replace(routes_to(one, two))
        first = pool.choose("smol")
        with first.occupied():
            assert pool.choose("smol") is first


@in_loop
async def test_a_weight_changes_in_place() -> None:
    async with FakeTriton().listening() as one, pool_before(one) as pool:
        upstream = pool.choose("smol")
        routes = Routes(
            routes=tuple(
                msgspec.structs.replace(
                    route, endpoints=(msgspec.structs.replace(route.endpoints[0], weight=3.0, context=5),)
                )
                for route in routes_to(one).routes
            )
        )
        await pool.replace(routes)
        assert pool.choose("smol") is upstream
        assert (upstream.weight, upstream.context) == (3.0, 5)
