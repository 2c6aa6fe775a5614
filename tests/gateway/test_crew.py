"""Starting, restarting and stopping, with programs that only pretend to be workers."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from sovereign_ai.errors import DeployError, UnsupportedModel
from sovereign_ai.gateway import crew as crew_module
from sovereign_ai.gateway.crew import Crew
from sovereign_ai.gateway.desk import Desk
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.messages import Broken, Message, Ready, ToCoordinator
from tests.gateway.running import NOW, in_loop, until

WORKS = """
import socket, sys
from sovereign_ai.gateway.messages import Ready, pack
end = socket.socket(fileno=int(sys.argv[1]))
end.sendall(pack(Ready()))
end.recv(1)
"""
BREAKS = """
import socket, sys
from sovereign_ai.gateway.messages import Broken, pack
socket.socket(fileno=int(sys.argv[1])).sendall(pack(Broken("UnsupportedModel", "no template", "add one")))
sys.exit(65)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + WORKS


class PretendedDesk:
    def __init__(self, worker: int, crew: Callable[[], Crew]) -> None:
        self.worker, self._crew = worker, crew

    def take(self, message: ToCoordinator) -> None:
        if isinstance(message, Ready):
            self._crew().ready(cast("Desk", self))
        if isinstance(message, Broken):
            self._crew().broken(cast("Desk", self), message)


class Show:
    """A crew of `size` that runs `script`; its log, and the workers that are gone."""

    def __init__(self, script: str, size: int = 2) -> None:
        self.script, self.lines, self.gone = script, [b""][:0], [0][:0]

        def desk(worker: int, say: Callable[[Message], None]) -> Desk:
            return cast("Desk", PretendedDesk(worker, lambda: self.crew))

        self.crew = Crew(
            size,
            lambda worker, link: [sys.executable, "-c", self.script, str(link)],
            (),
            desk,
            lambda desk: self.gone.append(desk.worker),
            Journal(self.lines.append, lambda: NOW),
        )

    def log(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.lines) if line["event"] == event]


@in_loop
async def test_a_worker_that_ends_is_started_again_after_pauses_that_grow() -> None:
    show = Show(WORKS)
    assert await show.crew.start()
    for kills in (1, 2):
        show.crew._workers[1].process.send_signal(signal.SIGKILL)
        await until(lambda n=kills: len(show.log("worker_ready")) == 2 + n)  # type: ignore[misc]
    ended = show.log("worker_ended")
    assert [(line["worker"], line["code"], line["again_in_s"]) for line in ended] == [
        (1, -9, 0.5),
        (1, -9, 1.0),
    ]
    assert show.gone == [1, 1]
    assert len(list(show.crew.desks)) == 2
    await show.crew.stop()
    assert sorted(show.gone) == [1, 1, 1, 2]


@in_loop
async def test_what_keeps_the_first_ones_from_starting_is_raised() -> None:
    show = Show(BREAKS)
    with pytest.raises(UnsupportedModel, match="no template"):
        await show.crew.start()
    await show.crew.stop()


@in_loop
async def test_one_that_ends_without_a_word() -> None:
    show = Show("raise SystemExit(3)")
    with pytest.raises(DeployError, match="ended with 3"):
        await show.crew.start()
    await show.crew.stop()


@in_loop
async def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    show = Show(WORKS)
    with pytest.raises(DeployError, match="cannot be started"):
        await show.crew.start()
    await show.crew.stop()


@in_loop
async def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "STOP_S", 0.1)
    show = Show(STUBBORN)
    await show.crew.start()
    await show.crew.stop()
    assert sorted(show.gone) == [1, 2]


@in_loop
async def test_a_signal_while_they_start_ends_the_start() -> None:
    show = Show("import time; time.sleep(60)")
    starting = asyncio.create_task(show.crew.start())
    await until(lambda: len(show.crew._workers) == 2)
    show.crew.signal(signal.SIGTERM)
    assert not await starting
    await show.crew.watch()
    await show.crew.stop()
