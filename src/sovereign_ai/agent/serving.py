"""The agent as a process: its loop, and the two pages it serves meanwhile."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sovereign_ai.agent.board import Board
from sovereign_ai.agent.measuring import measure
from sovereign_ai.agent.nodeapi import open_node
from sovereign_ai.agent.rounds import Agent
from sovereign_ai.errors import InventoryError, PortTaken

log = logging.getLogger(__name__)


class AgentSettings(NamedTuple):
    """`port` 0: no pages. `once`: one round, whose failure is the command's."""

    node: str
    interval_s: float = 15.0
    host: str = "0.0.0.0"  # noqa: S104  # Prometheus and the kubelet ask from outside the pod
    port: int = 9400
    once: bool = False
    hand_out: bool = True
    kubeconfig: Path | None = None
    context: str | None = None


def serve(settings: AgentSettings) -> None:
    """Work until Ctrl-C or SIGTERM (which the command line turns into the same).

    Raises ConfigError without credentials, PortTaken, and with `once` InventoryError.
    """
    board = Board(settings.interval_s, time.monotonic)
    with open_node(settings.node, settings.kubeconfig, settings.context) as api:
        agent = Agent(partial(measure, settings.node), api, board, time.time, hand_out=settings.hand_out)
        if settings.once:
            agent.round()
            if agent.failure:
                raise InventoryError(agent.failure)
            return
        with _pages(board, settings.host, settings.port):
            log.info("node %s, every %g s, port %d", settings.node, settings.interval_s, settings.port)
            _loop(agent, settings.interval_s)


def _loop(agent: Agent, interval_s: float) -> None:
    try:
        while True:
            started = time.monotonic()
            _attempt(agent)
            time.sleep(max(0.0, started + interval_s - time.monotonic()))
    except KeyboardInterrupt:
        log.info("ends; tokens and inventory stay as they are")


def _attempt(agent: Agent) -> None:
    try:
        agent.round()
    # Supervision: a node without its agent is worse than a round that failed, and /healthz tells when
    # rounds go on failing.
    except Exception:
        log.exception("this round failed")


@contextmanager
def _pages(board: Board, host: str, port: int) -> Iterator[None]:
    if not port:
        yield
        return
    try:
        server = _Server(host, port, partial(_Page, board))
    except OSError as error:
        raise PortTaken(f"{host}:{port}: {error.strerror}", "choose another: --port N") from error
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, page: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), page)

    def server_bind(self) -> None:
        """Without the base class's question to the DNS for its own name, which can take long in a pod."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Page(BaseHTTPRequestHandler):
    """/metrics and /healthz, a thread a request: neither waits for a round."""

    timeout = 10
    server_version, sys_version = "sovereign-agent", ""

    def __init__(self, board: Board, *arguments: Any) -> None:
        self._board = board
        super().__init__(*arguments)

    def do_GET(self) -> None:  # the base class calls it by the method's name
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, self._board.text(), CONTENT_TYPE_LATEST)
        elif path == "/healthz":
            healthy = self._board.healthy()
            self._answer(200 if healthy else 503, b"ok\n" if healthy else b"no round has ended for long\n")
        else:
            self._answer(404, b"there is /metrics and /healthz\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not written to the log: a probe every few seconds would fill it."""
