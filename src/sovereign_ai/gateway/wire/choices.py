"""One choice of an answer: an engine's events → chunks for the client, or the whole of it.

The plain one is the hot path: a piece of text goes out between two bytes objects that were made before.
Everything else is only in the way of those who asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sovereign_ai.gateway.wire.formats import Ending, Format, Outcome, WholeCall
from sovereign_ai.gateway.wire.logprobs import Position, read_positions
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called, Piece, Reader, Said
from sovereign_ai.gateway.wire.triton import Event


class Choice:
    """Streams plain text. `index`: of the choice in its answer."""

    def __init__(self, format_: Format, index: int) -> None:
        self._format, self._index = format_, index

    def piece(self, event: Event) -> bytes:
        """The chunks for one event, b"" for none."""
        return self._format.text(event.text_output, self._index) if event.text_output else b""

    def last(self, reason: str) -> bytes:
        """What comes behind the last event."""
        return self._format.last(Ending(reason), self._index)


class ScoredChoice(Choice):
    """Streams text with log-probabilities. Tokens whose text is still held back have theirs all the same."""

    def piece(self, event: Event) -> bytes:
        positions = read_positions(event.logprobs)
        if not positions and not event.text_output:
            return b""
        return self._format.scored(event.text_output, positions, self._index)


class ReadChoice(Choice):
    """Streams what is found in the text: calls, and the stop sequence that ended it."""

    def __init__(self, format_: Format, index: int, reading: Reading) -> None:
        super().__init__(format_, index)
        self._reading = reading

    def piece(self, event: Event) -> bytes:
        return self._written(self._reading.feed(event.text_output)) if event.text_output else b""

    def last(self, reason: str) -> bytes:
        pieces, ending = self._reading.end(reason)
        return self._written(pieces) + self._format.last(ending, self._index)

    def _written(self, pieces: Sequence[Piece]) -> bytes:
        return b"".join(self._chunk(piece) for piece in pieces)

    def _chunk(self, piece: Piece) -> bytes:
        if isinstance(piece, Said):
            return self._format.text(piece.text, self._index)
        if isinstance(piece, Called):
            return self._format.call(piece, self._index)
        return self._format.arguments(piece, self._index)


class Collected:
    """Takes a choice's events and says at the end what they come to."""

    def __init__(self, reading: Reading | None = None) -> None:
        self._reading = reading
        self._texts: list[str] = []
        self._positions: list[Position] = []

    def take(self, event: Event) -> None:
        self._texts.append(event.text_output)
        if event.logprobs is not None:
            self._positions += read_positions(event.logprobs)

    def outcome(self, reason: str) -> Outcome:
        text = "".join(self._texts)
        if self._reading is None:
            return Outcome(text, Ending(reason), positions=self._positions)
        pieces = self._reading.feed(text)
        rest, ending = self._reading.end(reason)
        return _outcome([*pieces, *rest], ending)


class Reading:
    """Text as it comes → pieces, through what was asked for: `stops` that end it, `reader` of calls."""

    def __init__(self, reader: Reader | None = None, stops: Sequence[str] = ()) -> None:
        self._reader = reader
        self._stops = stops
        self._tail = max(map(len, stops), default=0)
        self._held = ""
        self._called = False

    def feed(self, text: str) -> list[Piece]:
        if self._tail:
            text = self._held + text
            text, self._held = text[: -self._tail], text[-self._tail :]
        return self._read(text)

    def end(self, reason: str) -> tuple[list[Piece], Ending]:
        """The last pieces and how the answer ended."""
        held, stop = self._without_stop(reason)
        pieces = self._read(held)
        if self._reader is not None:
            pieces += self._noted(self._reader.end())
        if stop is not None:
            return pieces, Ending("stop_sequence", stop)
        return pieces, Ending("tool_calls" if self._called and reason == "stop" else reason)

    def _without_stop(self, reason: str) -> tuple[str, str | None]:
        """The engine leaves the sequence that it stopped at in the text: it says in no other way which."""
        held, self._held = self._held, ""
        if reason == "stop":
            for stop in sorted(self._stops, key=len, reverse=True):
                if held.endswith(stop):
                    return held.removesuffix(stop), stop
        return held, None

    def _read(self, text: str) -> list[Piece]:
        if self._reader is None:
            return [Said(text)] if text else []
        return self._noted(self._reader.feed(text))

    def _noted(self, pieces: list[Piece]) -> list[Piece]:
        self._called = self._called or any(isinstance(piece, Called) for piece in pieces)
        return pieces


def _outcome(pieces: Sequence[Piece], ending: Ending) -> Outcome:
    texts: list[str] = []
    calls: list[WholeCall] = []
    for piece in pieces:
        if isinstance(piece, Said):
            texts.append(piece.text)
        elif isinstance(piece, Called):
            calls.append(WholeCall(piece.name, ""))
        else:
            _extend(calls, piece)
    return Outcome("".join(texts), ending, calls=calls)


def _extend(calls: list[WholeCall], piece: Arguments) -> None:
    call = calls[piece.number]
    calls[piece.number] = msgspec.structs.replace(call, arguments=call.arguments + piece.text)
