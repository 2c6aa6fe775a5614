"""Log-probabilities: the engine's, a JSON list in a text, → OpenAI's two shapes."""

from __future__ import annotations

from typing import Any

import msgspec

from sovereign_ai.errors import UpstreamFailed

IMPOSSIBLE = -9999.0
"""What vLLM's own server says for a token that cannot come: JSON has no infinity."""


class Entry(msgspec.Struct, frozen=True):
    """One token that came or could have come. `rank`: 1 is the most probable."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None

    @property
    def text(self) -> str:
        return self.decoded_token or ""


Position = dict[str, Entry]
"""Token id → entry. The first is the token that came, whatever its rank: vLLM puts it there."""

_decoder: msgspec.json.Decoder[list[Position] | None] = msgspec.json.Decoder(list[Position] | None)


def read_positions(text: str | None) -> list[Position]:
    """One per token of an event. Raises UpstreamFailed when the text is not that."""
    if text is None:
        return []
    try:
        found = _decoder.decode(text)
    except msgspec.DecodeError:
        found = _read_with_infinity(text)
    return [position for position in found or () if position]


def _read_with_infinity(text: str) -> list[Position] | None:
    """NVIDIA's backend writes infinity as Python does."""
    try:
        return _decoder.decode(text.replace(": -Infinity", f": {IMPOSSIBLE}"))
    except msgspec.DecodeError as error:
        raise UpstreamFailed("the engine sent something that is not log-probabilities") from error


def chat_content(positions: list[Position], top: int) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat's choice."""
    return [_chat_token(position, top) for position in positions]


def _chat_token(position: Position, top: int) -> dict[str, Any]:
    chosen, *_ = position.values()
    best = [_scored(entry) for entry in _best(position, top)]
    return {**_scored(chosen), "top_logprobs": best}


def _scored(entry: Entry) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.text.encode())}


def _best(position: Position, top: int) -> list[Entry]:
    """The `top` most probable. The one that came is among the entries even where it is not among them."""
    ranked = [entry for entry in position.values() if entry.rank is not None and entry.rank <= top]
    return sorted(ranked, key=lambda entry: entry.rank or 0)[:top]


class LegacyLogprobs:
    """The shape of /v1/completions, which counts where in the text each token begins."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0

    def shape(self, positions: list[Position]) -> dict[str, Any]:
        chosen = [next(iter(position.values())) for position in positions]
        offsets = []
        for entry in chosen:
            offsets.append(self._offset)
            self._offset += len(entry.text)
        return {
            "tokens": [entry.text for entry in chosen],
            "token_logprobs": [entry.logprob for entry in chosen],
            "top_logprobs": [self._alternatives(position) for position in positions] if self._top else None,
            "text_offset": offsets,
        }

    def _alternatives(self, position: Position) -> dict[str, float]:
        """OpenAI: the one that came is always there, so there may be one more than was asked for."""
        chosen, *_ = position.values()
        found = {entry.text: entry.logprob for entry in _best(position, self._top)}
        return found if chosen.text in found else {**found, chosen.text: chosen.logprob}
