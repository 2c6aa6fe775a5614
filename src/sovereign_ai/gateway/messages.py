"""What the gateway's workers and their coordinator tell each other, and how it lies on the wire. Pure.

A message is MessagePack behind its length in four bytes. Both sides are always of the same version: a worker
is started by its coordinator. `visit` numbers a worker's requests, `part` the places that one of them asks
for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from sovereign_ai.errors import ApiError, QuotaExceeded, RateLimited, TokensLimited, UpstreamUnavailable
from sovereign_ai.gateway.admission import KeyRecord
from sovereign_ai.gateway.journal import UsageRow
from sovereign_ai.gateway.limits import Rate
from sovereign_ai.gateway.totals import Family

_LENGTH = struct.Struct(">I")

Change = Literal["answered", "failed", "trying", "down", "dead"]
"""What one process saw of an endpoint, and all have to know to treat it alike."""


class Message(msgspec.Struct, array_like=True, tag=True):
    """Of those below. Nobody changes one that was made."""


class Look(Message):
    """What do the limits of this key still allow? Answered with Entered."""

    visit: int
    key: KeyRecord


class Enter(Message):
    """Count a request against its key. Answered with Entered or Refused."""

    visit: int
    key: KeyRecord


class Leave(Message):
    """The request has ended and took so many tokens. Also of one that was refused, or not answered yet."""

    visit: int
    tokens: int


class TakeBack(Message):
    """Nothing came of what the request has reserved so far."""

    visit: int


class Admit(Message):
    """A place in an engine, please. `deadline` on the monotonic clock, which the machine's processes share.
    Answered with Admitted or Refused, in the end."""

    visit: int
    part: int
    model: str
    tokens: int
    deadline: float


class Release(Message):
    """The place is free, or no longer wanted."""

    visit: int
    part: int


class Used(Message):
    """A row for the ledger."""

    row: UsageRow


class Happened(Message):
    """Goes both ways: the coordinator tells the other workers."""

    model: str
    endpoint: str
    change: Change


class Health(Message):
    """Of all endpoints: model, name, whether it is healthy. Told when one changes, and once a second, so that
    a worker that comes by a new endpoint has it too."""

    endpoints: list[tuple[str, str, bool]]


class Busy(Message):
    """How many requests of this worker an endpoint has now."""

    model: str
    endpoint: str
    outstanding: int


class Numbers(Message):
    """All metrics of the worker. `scrape`: the question that they answer; 0: nobody asked."""

    scrape: int
    families: list[Family]


class Scrape(Message):
    """Goes both ways: a worker asks for Totals, the coordinator for Numbers."""

    scrape: int


class Ready(Message):
    """The worker listens."""


class Broken(Message):
    """The worker cannot start. `error`: the name of its class."""

    error: str
    message: str
    hint: str


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    message: str
    word: str
    retry_after_s: float | None = None


class Entered(Message):
    visit: int
    rates: list[Rate]


class Admitted(Message):
    """`elsewhere`: endpoint → requests that the other workers have there."""

    visit: int
    part: int
    rates: list[Rate]
    elsewhere: dict[str, int]


class Refused(Message):
    """`part` 0: the request itself. `reserved`: whether its tokens stay counted until it leaves."""

    visit: int
    part: int
    refusal: Refusal
    reserved: bool
    rates: list[Rate]


class Totals(Message):
    scrape: int
    text: bytes


ToCoordinator = (
    Look
    | Enter
    | Leave
    | TakeBack
    | Admit
    | Release
    | Used
    | Happened
    | Busy
    | Numbers
    | Scrape
    | Ready
    | Broken
)
ToWorker = Entered | Admitted | Refused | Happened | Health | Scrape | Totals

_encoder = msgspec.msgpack.Encoder()
_of_workers: msgspec.msgpack.Decoder[ToCoordinator] = msgspec.msgpack.Decoder(ToCoordinator)
_of_coordinator: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


def pack(message: Message) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def from_worker(body: bytes) -> ToCoordinator:
    return _of_workers.decode(body)


def from_coordinator(body: bytes) -> ToWorker:
    return _of_coordinator.decode(body)


class Frames:
    """Cuts a stream of bytes into messages' bodies, however it arrives."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, start = self._left + data, 0
        self._left = b""
        while len(data) - start >= _LENGTH.size:
            begin = start + _LENGTH.size
            end = begin + _LENGTH.unpack_from(data, start)[0]
            if end > len(data):
                break
            yield data[begin:end]
            start = end
        self._left = data[start:]


_LIMITED = {kind.__name__: kind for kind in (RateLimited, TokensLimited, QuotaExceeded)}


def refusal_of(error: ApiError) -> Refusal:
    """What the other side needs to raise the error again."""
    if isinstance(error, RateLimited):
        return Refusal(type(error).__name__, error.message, error.reason, error.retry_after_s)
    return Refusal(type(error).__name__, error.message, error.code or "")


def error_of(refusal: Refusal) -> ApiError:
    if limited := _LIMITED.get(refusal.kind):
        return limited(refusal.message, reason=refusal.word, retry_after_s=refusal.retry_after_s)
    kind = UpstreamUnavailable if refusal.kind == UpstreamUnavailable.__name__ else ApiError
    return kind(refusal.message, code=refusal.word)
