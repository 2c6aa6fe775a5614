"""What the gateway writes down: JSON lines. Never a prompt, never an answer, never a key."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import msgspec

MAX_PATH_CHARACTERS = 200
MAX_REASON_CHARACTERS = 500

Write = Callable[[bytes], object]
Clock = Callable[[], float]


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request as it becomes known. Times in seconds of the monotonic clock."""

    method: str
    path: str
    started: float
    status: int = 0
    model: str | None = None
    key: str | None = None
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Journal:
    """Writes a line per request, and one per thing that an operator should know."""

    def __init__(self, write: Write, clock: Clock) -> None:
        self._write, self._clock = write, clock
        self._encoder = msgspec.json.Encoder()

    def request(self, record: RequestRecord, duration_s: float) -> None:
        self.event(
            "request",
            method=record.method,
            path=record.path[:MAX_PATH_CHARACTERS],
            status=record.status,
            model=record.model,
            key=record.key,
            duration_s=round(duration_s, 6),
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            error=record.error,
        )

    def fault(self, error: BaseException) -> None:
        """An error of our own. Its message stays out: it may quote what a client sent."""
        frames = traceback.format_tb(error.__traceback__)
        self.event("fault", error=type(error).__name__, traceback="".join(frames))

    def event(self, event: str, **fields: Any) -> None:
        line = {"time": round(self._clock(), 3), "event": event, **fields}
        self._write(self._encoder.encode(line) + b"\n")
