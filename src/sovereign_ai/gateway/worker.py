"""One of several processes that answer at the gateway's port. Its coordinator starts it:

python -m sovereign_ai.gateway.worker ORDERS
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from sovereign_ai.config import GatewaySettings, decode_gateway
from sovereign_ai.errors import SovereignError
from sovereign_ai.gateway.app import Gateway, create_app
from sovereign_ai.gateway.crew import Orders
from sovereign_ai.gateway.extras import open_tracing
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.listening import join
from sovereign_ai.gateway.loglines import LogLines
from sovereign_ai.gateway.messages import Broken, pack
from sovereign_ai.gateway.outpost import Outpost
from sovereign_ai.gateway.reloading import read_routes
from sovereign_ai.gateway.server import Server
from sovereign_ai.gateway.tls import Certificate

STDERR = 2
ORPHANED = 70
"""Exit code of a worker without a coordinator."""


class WorkerServer(Server):
    """Says when it listens, and everything there is to say before it goes."""

    def __init__(
        self,
        gateway: Gateway,
        outpost: Outpost,
        end: socket.socket,
        routes_file: Path,
        certificate: Certificate | None,
    ) -> None:
        super().__init__(gateway, routes_file, certificate)
        self._outpost, self._end = outpost, end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._outpost.connect(self._end)
        await super().startup(sockets)
        self._outpost.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._outpost.farewell()

    def _tick(self) -> None:
        super()._tick()
        self._outpost.tick()


def work(orders: Orders) -> None:
    """Serve until SIGTERM, or until the coordinator is gone."""
    end = socket.socket(fileno=orders.link)
    try:
        _serve(orders, decode_gateway(orders.settings), end)
    except SovereignError as error:
        end.sendall(pack(Broken(type(error).__name__, error.message, error.hint)))
        sys.exit(error.exit_code)


def _serve(orders: Orders, settings: GatewaySettings, end: socket.socket) -> None:
    lines = LogLines(STDERR, orders.lock)
    mark = b'{"worker":%d,' % orders.worker
    outpost = Outpost(_end_at_once)
    routes_file = Path(orders.routes)
    tracing = open_tracing(settings, lambda reason: gateway.journal.event("traces_unsent", reason=reason))
    with Ledger(Path(orders.ledger)) as keys:
        gateway = create_app(
            read_routes(routes_file),
            keys,
            max_body_bytes=settings.max_body_bytes,
            settings=settings,
            usage=outpost,
            tracing=tracing,
            write=lambda line: lines.write(mark + line[1:]),
            outpost=outpost,
        )
        certificate = Certificate(settings.tls, gateway.journal.event) if settings.tls else None
        with join(orders.family, orders.host, orders.port) as listener:
            WorkerServer(gateway, outpost, end, routes_file, certificate).run(sockets=[listener])
        if tracing is not None:
            tracing.close()


def _end_at_once() -> NoReturn:
    """Nobody counts any more: an answer from here on would be one beyond the limits."""
    os._exit(ORPHANED)


if __name__ == "__main__":
    work(msgspec.json.decode(sys.argv[1], type=Orders))
