"""Server-sent events, cut out of a byte stream."""

from __future__ import annotations


class EventSplitter:
    """Bytes as they arrive → the payloads of complete `data:` lines.

    Triton writes every event as one `data:` line of JSON, which cannot hold a raw line break: so a line is an
    event, and blank lines need no attention. One read may hold several events, and an event may span reads.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
