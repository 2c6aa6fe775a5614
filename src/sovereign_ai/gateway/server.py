"""The gateway as a process: a socket, uvicorn around the application, and an end within seconds."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvicorn

from sovereign_ai.config import GatewaySettings
from sovereign_ai.errors import NoPermission, PortTaken, SovereignError, UsageError, disk_errors
from sovereign_ai.gateway.app import Gateway, create_app
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.open_files import raise_limit, warn_if_few
from sovereign_ai.gateway.protocol import Protocol
from sovereign_ai.gateway.tls import Certificate
from sovereign_ai.gateway.usage import UsageWriter, spent_this_month
from sovereign_ai.spec import Routes

STOP_TIMEOUT_S = 2
"""How long clients have to take the last words of their answers, once the gateway stops."""

KEEP_ALIVE_S = 75
"""Idle time of a client's connection: longer than clients keep theirs, so that none is closed in use."""

BACKLOG = 2048
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


class Reloader:
    """Takes over routes.json when it changes. A broken one is told, and what serves goes on serving."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self._gateway, self._path = gateway, path
        self._stamp = self._look()
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Start a reload if the file is another one now; one at a time."""
        stamp = self._look()
        if stamp != self._stamp and (self._task is None or self._task.done()):
            self._stamp = stamp
            self._task = asyncio.create_task(self._reload())

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    async def _reload(self) -> None:
        try:
            routes = await asyncio.to_thread(_read_routes, self._path)
            prompts = await asyncio.to_thread(self._gateway.prompts_for, routes)
            await self._gateway.replace(routes, prompts)
        except SovereignError as error:
            self._gateway.metrics.routes_valid.set(0)
            self._gateway.journal.event("routes_broken", error=error.message)
            return
        self._gateway.metrics.routes_valid.set(1)
        self._gateway.journal.event("routes_loaded", models=[route.model for route in routes.routes])


def serve(*, routes_file: Path, ledger_file: Path, settings: GatewaySettings) -> None:
    """Run the gateway until SIGTERM or SIGINT. In the main thread only, which alone gets signals.

    Raises PortTaken, NoPermission or UsageError when it cannot listen where `settings` say or cannot read
    what it is given, UnsupportedModel when a model's tokenizer or chat template is not usable.
    """
    routes = _read_routes(routes_file)
    with _listen(settings.host, settings.port) as listener, Ledger(ledger_file) as keys:
        usage = UsageWriter(
            ledger_file,
            keep_days=settings.usage_days,
            lost=lambda count: gateway.metrics.usage_lost.inc(count),
            failed=lambda reason: gateway.journal.event("usage_unwritten", error=reason),
        )
        gateway = create_app(
            routes,
            keys,
            max_body_bytes=settings.max_body_bytes,
            settings=settings,
            spent=spent_this_month(ledger_file, time.time()),
            usage=usage,
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
        gateway.journal.event("stopped")


def _read_routes(path: Path) -> Routes:
    try:
        with disk_errors("reading the routes", path):
            return msgspec.json.decode(path.read_bytes(), type=Routes)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", "bring the stack up first: that writes it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} does not hold routes: {error}") from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"port {port} of {host} is taken by another program",
                "stop that program or choose another port",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NoPermission(
                f"no permission to listen on port {port}", "choose a port of 1024 or above"
            ) from error
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def _write_log(line: bytes) -> None:
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
