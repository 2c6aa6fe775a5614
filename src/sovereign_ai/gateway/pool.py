"""The endpoints behind the gateway: how busy each is, whether it is healthy, and the connections to them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from yarl import URL

from sovereign_ai.errors import UpstreamUnavailable, UsageError
from sovereign_ai.gateway.affinity import Affinity
from sovereign_ai.gateway.breaker import Breaker
from sovereign_ai.gateway.client import Client
from sovereign_ai.gateway.journal import Clock, Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.picker import pick
from sovereign_ai.gateway.wire import triton
from sovereign_ai.spec import Endpoint, Route, Routes

DRAIN_INTERVAL_S = 0.1
"""How often an endpoint that goes is looked at for what it still answers."""
PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 5.0
"""An engine under full load on few cores answers late, and is healthy all the same."""
HOLD_S = 60.0
"""How long an endpoint is left alone whose model process died: its tritonserver goes on calling it ready. A
probe that fails ends this early, because it means that the server is being restarted."""

SILENCE_S = 10.0
"""After so long without a byte from a busy endpoint its model process is asked whether it lives. Reading a
long prompt takes longer on a small machine: silence alone proves nothing."""


UNKNOWN_CONTEXT = sys.maxsize
"""Of an endpoint that judges lengths itself."""

READY_PATHS = {"vllm": "/health", "openai": "/v1/models"}
"""What answers 200 where requests are passed on: vLLM's asks its engine, other servers have nothing in common
but the list of their models."""

Key = tuple[str, ...]


class Upstream:
    """One endpoint of one model, as the gateway sees it."""

    def __init__(self, route: Route, endpoint: Endpoint, clock: Clock) -> None:
        self.route_model = route.model
        self.name, self.url = endpoint.name, endpoint.url
        self.weight = endpoint.weight
        self.context = endpoint.context or route.context or UNKNOWN_CONTEXT
        self.healthy = False
        self.breaker = Breaker()
        self.held_until = 0.0
        self.key: Key = (
            route.model,
            endpoint.name,
            endpoint.url,
            endpoint.model,
            endpoint.engine,
            endpoint.key_file,
        )
        """Another one makes another upstream; weight and context may change in place."""
        self._clock = clock
        self._heard = clock()
        self.running = 0
        """Requests of this process that are outstanding."""
        self.elsewhere = 0
        """Those of the gateway's other processes, as last heard."""
        self.client = Client(URL(endpoint.url))
        self.model, self.engine = endpoint.model, endpoint.engine
        self.authorization = _authorization(endpoint)
        self.root = URL(endpoint.url).path.rstrip("/").removesuffix("/v1")
        """Of the paths of an endpoint that requests are passed on to."""
        base = URL(endpoint.url).path.rstrip("/") + f"/v2/models/{endpoint.model}"
        self.ready_path, self.infer_path = f"{base}/ready", f"{base}/infer"
        if endpoint.engine != "triton":
            self.ready_path = self.root + READY_PATHS[endpoint.engine]
        self.generate_path = f"{base}/generate_stream"
        self.question = (self.infer_path, triton.infer_body(["."]))
        """Where and how to ask for a sign of life: the smallest request there is."""
        if route.task == "chat":
            self.question = (self.generate_path, triton.generate_body(".", {"max_tokens": 1}))

    @property
    def outstanding(self) -> int:
        """Requests that it was sent and has not answered yet, by whatever process of this gateway."""
        return self.running + self.elsewhere

    @property
    def available(self) -> bool:
        """Whether a request may go there now."""
        return self.healthy and self.breaker.allows(self._clock())

    def begin(self) -> None:
        """One request more is outstanding, until `end`."""
        now = self._clock()
        if not self.running:
            self._heard = now
        self.breaker.began(now)
        self.running += 1

    def end(self) -> None:
        self.running -= 1

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """One outstanding request."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def abandon(self) -> None:
        """End all outstanding requests: nobody will answer them."""
        self.client.break_off("abandoned")

    def heard(self) -> None:
        """To be called when something comes from the endpoint."""
        self._heard = self._clock()

    def is_silent(self) -> bool:
        """Whether outstanding requests have been waiting for suspiciously long."""
        return bool(self.running) and self._clock() - self._heard >= SILENCE_S


class Pool:
    """All upstreams. `start`, `replace` and `close` it inside the event loop."""

    def __init__(
        self, routes: Routes, metrics: Metrics, journal: Journal, *, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._metrics, self._journal = metrics, journal
        self._by_model = {
            route.model: tuple(Upstream(route, endpoint, clock) for endpoint in route.endpoints)
            for route in routes.routes
        }
        self._affinity = {route.model: Affinity() for route in routes.routes}
        self._probes: dict[Upstream, asyncio.Task[None]] = {}
        self._draining: dict[Upstream, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Look at every endpoint once, and keep looking in the background."""
        await self._watch(self._all())

    async def _watch(self, upstreams: Collection[Upstream]) -> None:
        await asyncio.gather(*(self.probe(upstream) for upstream in upstreams))
        for upstream in upstreams:
            self._probes[upstream] = asyncio.create_task(self._keep_probing(upstream))

    async def replace(self, routes: Routes) -> None:
        """Other routes from now on. Endpoints that stay keep their requests, health and connections; new ones
        are looked at before anything is sent there; those that go finish what they answer, then their
        connections are closed."""
        here = {upstream.key: upstream for upstream in self._all()}
        by_model = {
            route.model: tuple(self._upstream(route, endpoint, here) for endpoint in route.endpoints)
            for route in routes.routes
        }
        every = [upstream for upstreams in by_model.values() for upstream in upstreams]
        await self._watch([upstream for upstream in every if upstream.key not in here])
        self._by_model = by_model
        self._affinity = {model: self._affinity.get(model) or Affinity() for model in by_model}
        for upstream in here.values():
            if upstream not in every:
                self._draining[upstream] = asyncio.create_task(self._drain(upstream))

    def _upstream(self, route: Route, endpoint: Endpoint, here: Mapping[Key, Upstream]) -> Upstream:
        made = Upstream(route, endpoint, self._clock)
        kept = here.get(made.key)
        if kept is None:
            return made
        kept.weight, kept.context = made.weight, made.context
        return kept

    async def _drain(self, upstream: Upstream) -> None:
        if probe := self._probes.pop(upstream, None):
            probe.cancel()
        while upstream.running:  # noqa: ASYNC110  nothing tells when the last one ends, and nobody waits
            await asyncio.sleep(DRAIN_INTERVAL_S)
        await upstream.client.close()
        self._metrics.forget(upstream.route_model, upstream.name)
        self._journal.event("endpoint_drained", model=upstream.route_model, endpoint=upstream.name)
        del self._draining[upstream]

    async def close(self) -> None:
        """Stop looking and close every connection."""
        upstreams = [*self._all(), *self._draining]
        tasks = [*self._probes.values(), *self._draining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for upstream in upstreams:
            await upstream.client.close()

    def choose(
        self, model: str, *, text: str = "", tokens: int = 0, but: Collection[Upstream] = ()
    ) -> Upstream:
        """The endpoint for the next request: `text` is its prompt, `tokens` what it needs of a context, `but`
        are endpoints that it was tried at. Raises UpstreamUnavailable where none may be asked."""
        affinity = self._affinity[model]
        candidates = [one for one in self._by_model[model] if one not in but]
        chosen = pick(candidates, tokens=tokens, seen=affinity.shares(text))
        if chosen is None:
            raise UpstreamUnavailable(
                f"No engine for `{model}` is ready: try again later", code="engine_unavailable"
            )
        if len(self._by_model[model]) > 1:
            affinity.remember(text, chosen.name)
        return chosen

    def succeeded(self, upstream: Upstream) -> None:
        """A request was answered there."""
        if upstream.breaker.is_open:
            self._journal.event("endpoint_returned", model=upstream.route_model, endpoint=upstream.name)
        upstream.breaker.success()

    def failed(self, upstream: Upstream) -> None:
        """A request failed there, and not by its own fault."""
        if upstream.breaker.failure(self._clock()):
            self._metrics.ejections.labels(upstream.route_model, upstream.name).inc()
            self._journal.event("endpoint_ejected", model=upstream.route_model, endpoint=upstream.name)

    def unready(self) -> list[str]:
        """Models without a healthy endpoint."""
        return [model for model, upstreams in self._by_model.items() if not any(u.healthy for u in upstreams)]

    def mark_down(self, upstream: Upstream) -> None:
        """Send nothing there until a probe succeeds."""
        self._set_health(upstream, False)

    def mark_dead(self, upstream: Upstream) -> None:
        """The model's process has died behind a tritonserver that goes on as if nothing had happened.

        It leaves running requests unanswered for ever and calls the model ready: so they are ended here, and
        for HOLD_S no probe counts until one has failed.
        """
        upstream.held_until = self._clock() + HOLD_S
        self._set_health(upstream, False)
        upstream.abandon()

    async def probe(self, upstream: Upstream) -> None:
        """Ask the endpoint once whether the model is ready."""
        ready = await self._is_ready(upstream)
        if not ready:
            upstream.held_until = 0.0
        self._set_health(upstream, ready and self._clock() >= upstream.held_until)

    async def _keep_probing(self, upstream: Upstream) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self.probe(upstream)
            if upstream.is_silent():
                await self.examine(upstream)

    async def _examine_passing(self, upstream: Upstream) -> None:
        """A server without Triton's habits is dead when it does not answer at all: its requests are ended."""
        if not upstream.healthy:
            upstream.abandon()

    async def examine(self, upstream: Upstream) -> None:
        """Ask the model's process itself. A late answer or none proves nothing; only Triton's word does."""
        if upstream.engine != "triton":
            await self._examine_passing(upstream)
            return
        path, body = upstream.question
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                response = await upstream.client.post(path, body)
                with closing(response):
                    if response.status != 200 and triton.is_dead(triton.error_message(await response.read())):
                        self.mark_dead(upstream)
        except OSError:
            return
        finally:
            upstream.heard()

    async def _is_ready(self, upstream: Upstream) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                response = await upstream.client.get(upstream.ready_path, upstream.authorization)
                with closing(response):
                    await response.read()
                    return response.status == 200
        except OSError:
            return False

    def _set_health(self, upstream: Upstream, healthy: bool) -> None:
        if upstream.healthy != healthy:
            upstream.healthy = healthy
            self._journal.event(
                "endpoint_health", model=upstream.route_model, endpoint=upstream.name, healthy=healthy
            )
        self._metrics.endpoint_up.labels(upstream.route_model, upstream.name).set(healthy)

    def _all(self) -> list[Upstream]:
        return [upstream for upstreams in self._by_model.values() for upstream in upstreams]


def _authorization(endpoint: Endpoint) -> bytes:
    """A header line, or none. Raises UsageError."""
    if not endpoint.key_file:
        return b""
    try:
        key = Path(endpoint.key_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{endpoint.key_file}: cannot read the key for {endpoint.name}: {error}") from error
    if not key or not key.isprintable():
        raise UsageError(f"{endpoint.key_file} does not hold a key for {endpoint.name}")
    return f"Authorization: Bearer {key}\r\n".encode()
