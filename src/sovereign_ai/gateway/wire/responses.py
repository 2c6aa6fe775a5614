"""OpenAI response bodies and stream chunks, as bytes.

A chunk differs from the one before it only in its text: everything around it is encoded once per request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec

from sovereign_ai.errors import ApiError
from sovereign_ai.spec import Route

DONE = b"data: [DONE]\n\n"
OWNER = "sovereign"

_encode = msgspec.json.Encoder().encode


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Head(msgspec.Struct, frozen=True):
    """What every body and chunk of one answer repeats. `created` in unix seconds."""

    id: str
    created: int
    model: str

    def as_json(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Format(ABC):
    """How answers of one endpoint look, whole and in pieces. One per answer."""

    id_prefix: ClassVar[str]
    prompt_param: ClassVar[str]
    object_whole: ClassVar[str]
    object_chunk: ClassVar[str]

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        self._whole_head = head.as_json(self.object_whole)
        self._chunk_head = head.as_json(self.object_chunk)
        # OpenAI: with usage asked for, every chunk has the field, and all but the last have null in it
        self._chunk_tail = {"usage": None} if include_usage else {}
        self._before, self._after = _around_text(self._chunk(self._delta("")))

    def first(self) -> bytes:
        """What comes before any text."""
        return b""

    def text(self, text: str) -> bytes:
        """A piece of the answer."""
        return self._before + _encode(text) + self._after

    def last(self, finish_reason: str) -> bytes:
        """What comes after all text."""
        return _event(self._chunk(self._no_delta(), finish_reason))

    def usage(self, usage: Usage) -> bytes:
        return _event({**self._chunk_head, "choices": [], "usage": usage.as_json()})

    def body(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The whole answer."""
        choice = {"index": 0, **self._content(text), "logprobs": None, "finish_reason": finish_reason}
        return _encode({**self._whole_head, "choices": [choice], "usage": usage.as_json()})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._chunk_head, "choices": [choice], **self._chunk_tail}

    def _no_delta(self) -> dict[str, Any]:
        return self._delta("")

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]: ...


class ChatFormat(Format):
    """Answers of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    prompt_param = "messages"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def first(self) -> bytes:
        return _event(self._chunk({"delta": {"role": "assistant", "content": ""}}))

    def _no_delta(self) -> dict[str, Any]:
        return {"delta": {}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


class CompletionFormat(Format):
    """Answers of /v1/completions."""

    id_prefix = "cmpl-"
    prompt_param = "prompt"
    object_whole = object_chunk = "text_completion"

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}


def _event(value: object) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def _around_text(chunk: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes before and after the only empty text value of a chunk.

    Searched from the end: a model may be named anything, but nothing after the text is a text.
    """
    before, _, after = _event(chunk).rpartition(b'""')
    return before, after


def embeddings_body(
    rows: Sequence[bytes], encoding: Literal["float", "base64"], model: str, tokens: int
) -> bytes:
    """`rows`: one vector each, little-endian float32; `tokens`: of all texts together."""
    convert = _as_base64 if encoding == "base64" else _as_floats
    data = [{"object": "embedding", "index": i, "embedding": convert(row)} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _encode({"object": "list", "data": data, "model": model, "usage": usage})


def _as_base64(row: bytes) -> str:
    return b64encode(row).decode()


def _as_floats(row: bytes) -> list[float]:
    # array uses the machine's byte order; every machine that engines and gateway run on is little-endian
    return array("f", row).tolist()


def model_body(route: Route) -> bytes:
    return _encode(_model(route))


def models_body(routes: Sequence[Route]) -> bytes:
    return _encode({"object": "list", "data": [_model(route) for route in routes]})


def _model(route: Route) -> dict[str, Any]:
    return {
        "id": route.model,
        "object": "model",
        "created": route.created,
        "owned_by": OWNER,
        "max_model_len": route.context,
    }


def error_body(error: ApiError) -> bytes:
    """OpenAI's error object."""
    fields = {"message": error.message, "type": error.error_type, "param": error.param, "code": error.code}
    return _encode({"error": fields})


def error_event(error: ApiError) -> bytes:
    """The error as an event, for a stream whose status line is already sent."""
    return b"data: " + error_body(error) + b"\n\n"


def plain_body(value: object) -> bytes:
    """JSON of the gateway's own pages (health and readiness)."""
    return _encode(value)
