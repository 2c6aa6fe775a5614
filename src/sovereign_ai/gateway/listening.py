"""The gateway's port: of one process, or shared by several."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sovereign_ai.errors import NoPermission, PortTaken, UsageError

BACKLOG = 2048

Address = tuple[str, int]


def listen(host: str, port: int) -> socket.socket:
    """Raises PortTaken, NoPermission or UsageError."""
    with _refusals(host, port):
        family, address = _resolved(host, port)
        return socket.create_server(address, family=family, backlog=BACKLOG)


def reserve(host: str, port: int) -> socket.socket:
    """A port that processes of this user may `join`, held as long as the socket is open. It does not listen.
    Raises as `listen` does, also where others share the port already: they would get part of what is ours."""
    with _refusals(host, port):
        family, address = _resolved(host, port)
        with socket.create_server(address, family=family) as alone:
            address = alone.getsockname()[:2]
        return _shared(family, address)


def join(family: int, host: str, port: int) -> socket.socket:
    """A socket of one's own at a reserved port, to listen at. The kernel deals new connections out to all
    that do."""
    with _refusals(host, port):
        return _shared(socket.AddressFamily(family), (host, port))


def _shared(family: socket.AddressFamily, address: Address) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Address]:
    found: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return found[0], found[4][:2]


@contextmanager
def _refusals(host: str, port: int) -> Iterator[None]:
    try:
        yield
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
