"""What the gateway writes down: JSON lines. Never a key; a prompt or an answer only of models whose limits
in factory.yaml say `log_content`."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import msgspec

MAX_PATH_CHARACTERS = 200
MAX_REASON_CHARACTERS = 500

Write = Callable[[bytes], object]
Clock = Callable[[], float]


UsageRow = tuple[float, str, str, str | None, int, int, int, float | None, float, float, int, int, str | None]
"""As the ledger has it: time, key, model, endpoint, status, tokens of prompt and answer, seconds to the first
token, of all and in the queue, retries, continuations, the model that was asked where another answered."""


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request as it becomes known. Times in seconds of the monotonic clock."""

    method: str
    path: str
    started: float
    status: int = 0
    model: str | None = None
    """The one that answers, or was to."""
    asked: str | None = None
    """The one that the client named, where another one answers for it."""
    key: str | None = None
    endpoint: str | None = None
    """The one that was asked last."""
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    retries: int = 0
    continuations: int = 0
    answered: bool = False
    """Whether an engine began to answer: from then on it costs tokens."""
    error: str | None = None
    finish_reasons: tuple[str, ...] = ()
    """Of each choice that came to its end, as the engine gave it."""

    @property
    def billed_prompt_tokens(self) -> int:
        return self.prompt_tokens if self.answered else 0

    @property
    def billed_tokens(self) -> int:
        """Prompt and answer, as far as it was generated; once, however many engines took part."""
        return self.billed_prompt_tokens + self.completion_tokens

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.started


def usage_row(record: RequestRecord, duration_s: float, now: float) -> UsageRow:
    """Of a request that has ended at the unix time `now`. Its time is that of its arrival."""
    return (
        now - duration_s, record.key or "", record.model or "", record.endpoint, record.status,
        record.billed_prompt_tokens, record.completion_tokens, record.ttft_s, duration_s, record.queue_s,
        record.retries, record.continuations, record.asked,
    )  # fmt: skip


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
            asked=record.asked,
            key=record.key,
            endpoint=record.endpoint,
            duration_s=round(duration_s, 6),
            queue_s=round(record.queue_s, 6),
            ttft_s=None if record.ttft_s is None else round(record.ttft_s, 6),
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            retries=record.retries,
            continuations=record.continuations,
            error=record.error,
        )

    def content(self, record: RequestRecord, request: bytes, answer: bytes) -> None:
        """Both as they were on the wire."""
        self.event(
            "content",
            model=record.model,
            key=record.key,
            request=request.decode(errors="replace"),
            answer=answer.decode(errors="replace"),
        )

    def fault(self, error: BaseException) -> None:
        """An error of our own. Its message stays out: it may quote what a client sent."""
        frames = traceback.format_tb(error.__traceback__)
        self.event("fault", error=type(error).__name__, traceback="".join(frames))

    def event(self, event: str, **fields: Any) -> None:
        line = {"time": round(self._clock(), 3), "event": event, **fields}
        self._write(self._encoder.encode(line) + b"\n")
