"""Keeps worker processes running: starts them, starts those again that end, and ends them all."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec

from sovereign_ai import errors
from sovereign_ai.errors import DeployError, SovereignError
from sovereign_ai.gateway.desk import Desk
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.link import Link
from sovereign_ai.gateway.messages import Broken, Message, ToCoordinator, from_worker

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a worker is started again: at once for a single crash, never a busy loop."""
STABLE_S = 60.0
"""A worker that ran so long starts again with the first pause."""
STOP_S = 2.6
"""How long workers may take to end: as long as clients have, and a little. The supervisor waits for 3 s."""
EXIT_S = 1.0
"""A worker that has closed its socket is about to exit."""

MakeDesk = Callable[[int, Callable[[Message], None]], Desk]
Command = Callable[[int, int], list[str]]
"""How to start worker number N, which inherits the socket of that file descriptor."""


class Orders(msgspec.Struct, frozen=True):
    """What a worker is told at its start. `link` and `lock` are file descriptors that it inherits."""

    worker: int
    link: int
    lock: int
    family: int
    host: str
    port: int
    routes: str
    ledger: str
    settings: str


class Worker:
    """A process, and the desk for it."""

    def __init__(self, process: subprocess.Popen[bytes], desk: Desk) -> None:
        self.process, self.desk = process, desk
        self.failure: Broken | None = None
        self.ready = False


class End(NamedTuple):
    """How a worker ended: its exit code, and what it said of the reason."""

    code: int | None
    why: SovereignError | None


class Crew:
    """`inherited`: file descriptors that workers get besides their socket; `gone` is told of a desk whose
    worker has ended."""

    def __init__(
        self,
        size: int,
        command: Command,
        inherited: tuple[int, ...],
        make_desk: MakeDesk,
        gone: Callable[[Desk], None],
        journal: Journal,
    ) -> None:
        self._size, self._command, self._inherited = size, command, inherited
        self._make_desk, self._gone, self._journal = make_desk, gone, journal
        self._workers: dict[int, Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def desks(self) -> Iterator[Desk]:
        """Of the workers that listen."""
        return (worker.desk for worker in self._workers.values() if worker.ready)

    async def start(self) -> bool:
        """Until all listen, or none is to do so any more. Raises what keeps one of them from it."""
        self._tasks = [asyncio.create_task(self._keep(number)) for number in range(1, self._size + 1)]
        await self._complete
        return not self._stopping.is_set()

    async def watch(self) -> None:
        """Until they are told to end. Raises a fault of our own, whose worker nobody would start again."""
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done:
            task.result()

    def ready(self, desk: Desk) -> None:
        worker = self._workers[desk.worker]
        worker.ready = True
        self._journal.event("worker_ready", worker=desk.worker, pid=worker.process.pid)
        if len(list(self.desks)) == self._size and not self._complete.done():
            self._complete.set_result(None)

    def broken(self, desk: Desk, why: Broken) -> None:
        self._workers[desk.worker].failure = why

    def signal(self, number: signal.Signals) -> None:
        """To all of them. None is started again from here on."""
        self._stopping.set()
        for worker in self._workers.values():
            # Popen's own looks first whether the process is still that one
            worker.process.send_signal(number)
        if not self._complete.done():
            self._complete.set_result(None)

    async def stop(self) -> None:
        """End them, with SIGKILL those that take too long."""
        if not self._stopping.is_set():
            self.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.wait(self._tasks)
        for worker in self._workers.values():
            worker.process.kill()
        await asyncio.wait(self._tasks)

    async def _keep(self, number: int) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            end = await self._run(number)
            if self._stopping.is_set() or self._fails_at_start(end):
                return
            if asyncio.get_running_loop().time() - began > STABLE_S:
                pause_s = FIRST_PAUSE_S
            why = end.why.message if end.why else None
            self._journal.event("worker_ended", worker=number, code=end.code, error=why, again_in_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _run(self, number: int) -> End:
        """A worker from its start to its end."""
        try:
            worker, link = await self._launch(number)
        except OSError as error:
            return End(None, DeployError(f"a worker of the gateway cannot be started: {error}"))
        await link.closed
        # Not when the process is waited for: what it held is free at this moment.
        worker.ready = False
        self._gone(worker.desk)
        code = await asyncio.to_thread(_wait_for, worker.process)
        del self._workers[number]
        return End(code, _error(worker.failure) if worker.failure else None)

    async def _launch(self, number: int) -> tuple[Worker, Link[ToCoordinator]]:
        ours, its = socket.socketpair()
        with its:
            try:
                process = self._spawn(number, its.fileno())
            except BaseException:
                ours.close()
                raise
        link: Link[ToCoordinator] = Link(from_worker, lambda message: desk.take(message), lambda: None)
        desk = self._make_desk(number, link.send)
        worker = self._workers[number] = Worker(process, desk)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        return worker, link

    def _spawn(self, number: int, end: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(number, end),
            stdin=subprocess.DEVNULL,
            pass_fds=(end, *self._inherited),
            # a Ctrl-C is for the coordinator, which tells the workers
            process_group=0,
        )

    def _fails_at_start(self, end: End) -> bool:
        """The first crew has to get all its members; later ones are tried again."""
        if self._complete.done():
            return False
        none_told = DeployError(f"a worker of the gateway ended with {end.code} before it listened")
        self._complete.set_exception(end.why or none_told)
        return True


def _error(why: Broken) -> SovereignError:
    kind = getattr(errors, why.error, SovereignError)
    found = kind(why.message, why.hint)
    return found if isinstance(found, SovereignError) else SovereignError(why.message, why.hint)


def _wait_for(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def start_command(orders: Orders) -> list[str]:
    """A worker of this very Python."""
    return [sys.executable, "-m", "sovereign_ai.gateway.worker", msgspec.json.encode(orders).decode()]
