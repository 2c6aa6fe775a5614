"""A worker without the rest: a socket pair and a process. With the rest: test_coordinator."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.config import GatewaySettings, encode_gateway
from sovereign_ai.gateway.crew import Orders, start_command
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.listening import reserve
from sovereign_ai.gateway.messages import Broken, Frames, Message, Numbers, Ready, from_worker
from sovereign_ai.gateway.worker import ORPHANED
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.test_server import write_routes

PATIENCE_S = 60.0


class Started:
    """A worker, and what it says."""

    def __init__(self, folder: Path) -> None:
        fake = FakeTriton()
        fake.url = "http://127.0.0.1:1"
        Ledger(folder / "ledger.sqlite").close()
        self._routes = write_routes(folder, fake)
        self._ledger = folder / "ledger.sqlite"
        self.end, self._its = socket.socketpair()
        self.end.settimeout(PATIENCE_S)
        self._frames = Frames()
        self._lock = os.memfd_create("log")
        self._port = reserve("127.0.0.1", 0)

    def start(self) -> None:
        orders = Orders(
            worker=1,
            link=self._its.fileno(),
            lock=self._lock,
            family=socket.AF_INET,
            host="127.0.0.1",
            port=self._port.getsockname()[1],
            routes=str(self._routes),
            ledger=str(self._ledger),
            settings=encode_gateway(GatewaySettings(workers=2)),
        )
        fds = self._its.fileno(), self._lock
        self.process = subprocess.Popen(start_command(orders), pass_fds=fds, stderr=subprocess.DEVNULL)
        self._its.close()

    def said(self) -> Iterator[Message]:
        """Until it hangs up."""
        while data := self.end.recv(65536):
            yield from map(from_worker, self._frames.feed(data))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.end.close()
        self._port.close()
        os.close(self._lock)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    started.close()


def test_its_last_words_are_its_numbers(worker: Started) -> None:
    worker.start()
    said = worker.said()
    assert next(said) == Ready()
    worker.process.send_signal(signal.SIGTERM)
    *_, last = said
    assert isinstance(last, Numbers)
    assert worker.process.wait(PATIENCE_S) == 0


def test_an_orphan_ends(worker: Started) -> None:
    worker.start()
    assert next(worker.said()) == Ready()
    worker.end.close()
    assert worker.process.wait(PATIENCE_S) == ORPHANED


def test_what_keeps_it_from_starting_is_told(worker: Started, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    worker.start()
    (broken,) = worker.said()
    assert isinstance(broken, Broken)
    assert broken.error == "UnsupportedModel"
    assert worker.process.wait(PATIENCE_S) == 65
