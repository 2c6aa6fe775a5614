"""routes.json: read at the start, and taken over when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from sovereign_ai.errors import SovereignError, UsageError, disk_errors
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.spec import Routes


class Server(Protocol):
    """Who serves the routes: the gateway, or a coordinator, which reads no prompts."""

    metrics: Metrics
    journal: Journal

    def prompts_for(self, routes: Routes) -> dict[str, PromptBuilder]: ...
    async def replace(self, routes: Routes, prompts: Mapping[str, PromptBuilder]) -> None: ...


class Reloader:
    """Takes over routes.json when it changes. A broken one is told, and what serves goes on serving."""

    def __init__(self, server: Server, path: Path) -> None:
        self._server, self._path = server, path
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
            routes = await asyncio.to_thread(read_routes, self._path)
            prompts = await asyncio.to_thread(self._server.prompts_for, routes)
            await self._server.replace(routes, prompts)
        except SovereignError as error:
            self._server.metrics.routes_valid.set(0)
            self._server.journal.event("routes_broken", error=error.message)
            return
        self._server.metrics.routes_valid.set(1)
        self._server.journal.event("routes_loaded", models=[route.model for route in routes.routes])


def read_routes(path: Path) -> Routes:
    """Raises UsageError."""
    try:
        with disk_errors("reading the routes", path):
            return msgspec.json.decode(path.read_bytes(), type=Routes)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", "bring the stack up first: that writes it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} does not hold routes: {error}") from error
