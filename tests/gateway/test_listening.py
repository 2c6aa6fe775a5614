from __future__ import annotations

import socket

import pytest

from sovereign_ai.errors import PortTaken
from sovereign_ai.gateway.listening import join, listen, reserve


def test_a_reserved_port_may_be_joined() -> None:
    with reserve("127.0.0.1", 0) as held:
        host, port = held.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=5)
        with join(held.family, host, port) as one, join(held.family, host, port) as other:
            one.listen()
            other.listen()
            socket.create_connection((host, port), timeout=5).close()


def test_a_port_that_others_share_is_taken() -> None:
    """Else they would get part of our clients."""
    with reserve("127.0.0.1", 0) as held:
        host, port = held.getsockname()
        with join(held.family, host, port) as theirs:
            theirs.listen()
            with pytest.raises(PortTaken, match=str(port)):
                reserve(host, port)


def test_a_port_of_one_process_is_taken() -> None:
    with listen("127.0.0.1", 0) as theirs, pytest.raises(PortTaken):
        reserve(*theirs.getsockname())


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_over_ipv6() -> None:
    try:
        held = reserve("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with held, join(held.family, *held.getsockname()[:2]) as one:
        one.listen()
