"""A request under way, which the client's leaving or the gateway's stopping may interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum


class Interruption(Enum):
    CLIENT_GONE = "client gone"
    STOPPING = "stopping"


class Flight:
    """The current task, until `land()`.

    An interruption cancels whatever the task waits for. The cause is kept in `interruption`, so that the task
    can tell it from a cancellation that somebody else asked for.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a flight belongs to a task"  # noqa: S101 - for the type checker
        self._task = task
        self._watch: asyncio.Task[None] | None = None
        self._landed = False
        self.interruption: Interruption | None = None

    def interrupt(self, cause: Interruption) -> None:
        """The first cause counts; after landing nothing happens."""
        if not self._landed and self.interruption is None:
            self.interruption = cause
            self._task.cancel()

    def interrupt_after(self, gone: Callable[[], Awaitable[None]]) -> None:
        """Interrupt when `gone()` completes."""
        self._watch = asyncio.create_task(self._wait_for(gone))

    def land(self) -> None:
        """From here on the task runs undisturbed: the cancellation of an interruption is taken back."""
        if self._landed:
            return
        self._landed = True
        if self._watch is not None:
            self._watch.cancel()
        if self.interruption is not None:
            self._task.uncancel()

    async def _wait_for(self, gone: Callable[[], Awaitable[None]]) -> None:
        await gone()
        self.interrupt(Interruption.CLIENT_GONE)
