"""The endpoints behind the gateway: how busy each is, whether it is healthy, and the connections to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
from yarl import URL

from sovereign_ai.errors import UpstreamUnavailable
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.picker import pick
from sovereign_ai.spec import Endpoint, Routes

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 5.0
"""An engine under full load on few cores answers late, and is healthy all the same."""
CONNECT_TIMEOUT_S = 5.0
HOLD_S = 5.0
"""A model whose process died can still be called ready by its server: keep away for as long as this."""


class Upstream:
    """One endpoint of one model, as the gateway sees it."""

    def __init__(self, route_model: str, endpoint: Endpoint) -> None:
        self.route_model = route_model
        self.name = endpoint.name
        self.outstanding = 0
        self.healthy = False
        self.held_until = 0.0
        base = URL(endpoint.url) / "v2/models" / endpoint.model
        self.ready_url = base / "ready"
        self.generate_url = base / "generate_stream"
        self.infer_url = base / "infer"

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Counts one outstanding request for the length of the block."""
        self.outstanding += 1
        try:
            yield
        finally:
            self.outstanding -= 1


class Pool:
    """All upstreams and the one client session they share. `start` and `close` it inside the event loop."""

    def __init__(
        self, routes: Routes, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._by_model = {
            route.model: tuple(Upstream(route.model, endpoint) for endpoint in route.endpoints)
            for route in routes.routes
        }
        self._session: aiohttp.ClientSession | None = None
        self._probes: list[asyncio.Task[None]] = []

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "the pool was not started"  # noqa: S101 - for the type checker
        return self._session

    async def start(self) -> None:
        """Open the session, look at every endpoint once, and keep looking in the background."""
        self._session = aiohttp.ClientSession(
            # every limit here would be a queue that nobody can see
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        await asyncio.gather(*(self.probe(upstream) for upstream in self._all()))
        self._probes = [asyncio.create_task(self._keep_probing(upstream)) for upstream in self._all()]

    async def close(self) -> None:
        """Stop looking and close every connection, idle ones too: Triton waits for them when it stops."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def choose(self, model: str) -> Upstream:
        """The endpoint for the next request. Raises UpstreamUnavailable when none is healthy."""
        chosen = pick(self._by_model[model])
        if chosen is None:
            raise UpstreamUnavailable(
                f"No engine for `{model}` is ready: try again later", code="engine_unavailable"
            )
        return chosen

    def choose_other(self, model: str, than: Upstream) -> Upstream | None:
        """Another healthy endpoint of the model, or None."""
        return pick(upstream for upstream in self._by_model[model] if upstream is not than)

    def unready(self) -> list[str]:
        """Models without a healthy endpoint."""
        return [model for model, upstreams in self._by_model.items() if not any(u.healthy for u in upstreams)]

    def mark_down(self, upstream: Upstream, *, hold_s: float = 0.0) -> None:
        """Send nothing there until a probe succeeds, and no probe counts for `hold_s` seconds."""
        upstream.held_until = self._clock() + hold_s
        self._set_health(upstream, False)

    async def probe(self, upstream: Upstream) -> None:
        """Ask the endpoint once whether the model is ready."""
        ready = await self._is_ready(upstream)
        self._set_health(upstream, ready and self._clock() >= upstream.held_until)

    async def _keep_probing(self, upstream: Upstream) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self.probe(upstream)

    async def _is_ready(self, upstream: Upstream) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self.session.get(upstream.ready_url) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    def _set_health(self, upstream: Upstream, healthy: bool) -> None:
        upstream.healthy = healthy
        self._metrics.endpoint_up.labels(upstream.route_model, upstream.name).set(healthy)

    def _all(self) -> list[Upstream]:
        return [upstream for upstreams in self._by_model.values() for upstream in upstreams]
