"""The gateway as a process: a socket, uvicorn around the application, and an end within seconds."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from sovereign_ai.config import GatewaySettings
from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.app import Gateway, create_app
from sovereign_ai.gateway.coordinator import coordinate
from sovereign_ai.gateway.extras import open_tracing
from sovereign_ai.gateway.keyfile import KeyFile
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.listening import BACKLOG, listen
from sovereign_ai.gateway.open_files import raise_limit, warn_if_few
from sovereign_ai.gateway.protocol import Protocol
from sovereign_ai.gateway.reloading import Reloader, read_routes
from sovereign_ai.gateway.tls import Certificate
from sovereign_ai.gateway.usage import UsageWriter, spent_this_month

STOP_TIMEOUT_S = 2
"""How long clients have to take the last words of their answers, once the gateway stops."""

KEEP_ALIVE_S = 75
"""Idle time of a client's connection: longer than clients keep theirs, so that none is closed in use."""

TICKS_A_SECOND = 10
"""uvicorn's. Once a second we look at routes.json, the certificate, and after clients that do not read."""


class Server(uvicorn.Server):
    """Stops the gateway's requests before it waits for them, and returns instead of dying of its signal."""

    def __init__(
        self, gateway: Gateway, routes_file: Path | None = None, certificate: Certificate | None = None
    ) -> None:
        self._gateway, self._certificate = gateway, certificate
        self._reloader = Reloader(gateway, routes_file) if routes_file else None
        super().__init__(
            uvicorn.Config(
                gateway,
                loop="uvloop",
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
                ssl_context_factory=certificate.for_uvicorn if certificate else None,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again once everything has ended."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._exit_on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_SECOND == 0:
            self._tick()
        return await super().on_tick(counter)

    def _tick(self) -> None:
        self._gateway.tick()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.tick()
        if self._reloader:
            self._reloader.look()
        if self._certificate:
            self._certificate.look()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.stop()
        await super().shutdown(sockets)

    def _exit_on_signal(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    *, routes_file: Path, ledger_file: Path, settings: GatewaySettings, keys_file: Path | None = None
) -> None:
    """Run the gateway until SIGTERM or SIGINT, in as many processes as `settings` say. In the main thread
    only, which alone gets signals. `keys_file` has the keys, where those of the ledger are not meant.

    Raises PortTaken, NoPermission or UsageError when it cannot listen where `settings` say or cannot read
    what it is given, UnsupportedModel when a model's tokenizer or chat template is not usable.
    """
    if settings.workers > 1 and keys_file is not None:
        raise UsageError("several workers read keys from the ledger only", "run more replicas instead")
    if settings.workers > 1:
        raise_limit()  # workers inherit it
        coordinate(routes_file=routes_file, ledger_file=ledger_file, settings=settings)
    else:
        _serve_alone(routes_file, ledger_file, settings, keys_file)


def _serve_alone(
    routes_file: Path, ledger_file: Path, settings: GatewaySettings, keys_file: Path | None
) -> None:
    routes = read_routes(routes_file)
    with listen(settings.host, settings.port) as listener, Ledger(ledger_file) as ledger:
        keys = (
            ledger
            if keys_file is None
            else KeyFile(keys_file, lambda event, **fields: gateway.journal.event(event, **fields))
        )
        usage = UsageWriter(
            ledger_file,
            keep_days=settings.usage_days,
            lost=lambda count: gateway.metrics.usage_lost.inc(count),
            failed=lambda reason: gateway.journal.event("usage_unwritten", error=reason),
        )
        tracing = open_tracing(settings, lambda reason: gateway.journal.event("traces_unsent", reason=reason))
        gateway = create_app(
            routes,
            keys,
            max_body_bytes=settings.max_body_bytes,
            settings=settings,
            spent=spent_this_month(ledger_file, time.time()),
            usage=usage,
            tracing=tracing,
            write=_write_log,
        )
        certificate = Certificate(settings.tls, gateway.journal.event) if settings.tls else None
        usage.start()
        files = raise_limit()
        address, bound = listener.getsockname()[:2]
        models = [route.model for route in routes.routes]
        gateway.journal.event("listening", host=address, port=bound, models=models, open_files=files)
        warn_if_few(files, gateway.journal)
        try:
            Server(gateway, routes_file, certificate).run(sockets=[listener])
        finally:
            usage.close()
            if tracing is not None:
                tracing.close()
        gateway.journal.event("stopped")


def _write_log(line: bytes) -> None:
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
