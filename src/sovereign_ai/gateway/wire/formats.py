"""How answers look to clients, whole and in pieces: what all formats have in common, and OpenAI's own two.

A chunk differs from the one before it only in its text: everything around it is encoded once per request.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from sovereign_ai.gateway.wire.logprobs import LegacyLogprobs, Position, chat_content
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called

DONE = b"data: [DONE]\n\n"

encode = msgspec.json.Encoder().encode


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request, as the engine counted them; of all choices together."""

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


class Ending(msgspec.Struct, frozen=True):
    """`reason`: stop, length, tool_calls or stop_sequence, which is then in `stop`."""

    reason: str
    stop: str | None = None


class WholeCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class Outcome(msgspec.Struct, frozen=True):
    """A whole choice."""

    text: str
    ending: Ending
    calls: Sequence[WholeCall] = ()
    positions: Sequence[Position] = ()


class Format(ABC):
    """One per answer. Chunks are asked for in the order of the answer, per choice; `index` names it."""

    def first(self) -> bytes:
        """What comes before any text."""
        return b""

    @abstractmethod
    def text(self, text: str, index: int = 0) -> bytes:
        """A piece of the answer."""

    @abstractmethod
    def last(self, ending: Ending, index: int = 0) -> bytes:
        """What comes after all text of a choice."""

    @abstractmethod
    def end(self, usage: Usage) -> bytes:
        """What comes after all choices."""

    @abstractmethod
    def body(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        """The whole answer."""

    def scored(self, text: str, positions: list[Position], index: int = 0) -> bytes:
        """A piece with log-probabilities."""
        raise NotImplementedError

    def call(self, call: Called, index: int = 0) -> bytes:
        """The beginning of a call."""
        raise NotImplementedError

    def arguments(self, piece: Arguments, index: int = 0) -> bytes:
        """A piece of a call's arguments."""
        raise NotImplementedError


class OpenAIFormat(Format):
    """What chat and completions have in common. `top`: alternatives per token, None without any."""

    id_prefix: ClassVar[str]
    object_whole: ClassVar[str]
    object_chunk: ClassVar[str]

    def __init__(self, head: Head, *, include_usage: bool, choices: int = 1, top: int | None = None) -> None:
        self._whole_head = head.as_json(self.object_whole)
        self._chunk_head = head.as_json(self.object_chunk)
        self._include_usage, self._choices, self._top = include_usage, choices, top
        # OpenAI: with usage asked for, every chunk has the field, and all but the last have null in it
        self._chunk_tail = {"usage": None} if include_usage else {}
        self._around = [around(self._chunk(self._delta(""), index)) for index in range(choices)]

    def text(self, text: str, index: int = 0) -> bytes:
        before, after = self._around[index]
        return before + encode(text) + after

    def scored(self, text: str, positions: list[Position], index: int = 0) -> bytes:
        return event(self._chunk(self._delta(text), index, logprobs=self._shape(positions, index)))

    def last(self, ending: Ending, index: int = 0) -> bytes:
        return event(self._chunk(self._no_delta(), index, ending.reason))

    def end(self, usage: Usage) -> bytes:
        return (self.usage(usage) if self._include_usage else b"") + DONE

    def usage(self, usage: Usage) -> bytes:
        return event({**self._chunk_head, "choices": [], "usage": usage.as_json()})

    def body(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        choices = [self._choice(outcome, index) for index, outcome in enumerate(outcomes)]
        return encode({**self._whole_head, "choices": choices, "usage": usage.as_json()})

    def _choice(self, outcome: Outcome, index: int) -> dict[str, Any]:
        shaped = None if self._top is None else self._shape(list(outcome.positions), index)
        reason = outcome.ending.reason
        return {
            "index": index, **self._content(outcome, index), "logprobs": shaped, "finish_reason": reason
        }  # fmt: skip

    def _chunk(
        self, delta: dict[str, Any], index: int, finish_reason: str | None = None, logprobs: object = None
    ) -> dict[str, Any]:
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._chunk_head, "choices": [choice], **self._chunk_tail}

    def _no_delta(self) -> dict[str, Any]:
        return self._delta("")

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _content(self, outcome: Outcome, index: int) -> dict[str, Any]: ...

    @abstractmethod
    def _shape(self, positions: list[Position], index: int) -> dict[str, Any]: ...


class ChatFormat(OpenAIFormat):
    """Answers of /v1/chat/completions. `short_ids`: for models whose templates take nine characters only."""

    id_prefix = "chatcmpl-"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def __init__(
        self,
        head: Head,
        *,
        include_usage: bool,
        choices: int = 1,
        top: int | None = None,
        short_ids: bool = False,
    ) -> None:
        super().__init__(head, include_usage=include_usage, choices=choices, top=top)
        self._id, self._short_ids = head.id, short_ids
        self._around_arguments: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def first(self) -> bytes:
        role = {"delta": {"role": "assistant", "content": ""}}
        return b"".join(event(self._chunk(role, index)) for index in range(self._choices))

    def call(self, call: Called, index: int = 0) -> bytes:
        self._around_arguments[index, call.number] = around(
            self._chunk(_call_delta({"index": call.number, "function": {"arguments": ""}}), index)
        )
        begun = {"index": call.number, **self._call(call.name, "", index, call.number)}
        return event(self._chunk(_call_delta(begun), index))

    def arguments(self, piece: Arguments, index: int = 0) -> bytes:
        before, after = self._around_arguments[index, piece.number]
        return before + encode(piece.text) + after

    def _call(self, name: str, arguments: str, index: int, number: int) -> dict[str, Any]:
        made = call_id(self._id, index, number, short=self._short_ids)
        return {"id": made, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _no_delta(self) -> dict[str, Any]:
        return {"delta": {}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _content(self, outcome: Outcome, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": outcome.text, "refusal": None}
        if outcome.calls:
            message["content"] = outcome.text or None
            message["tool_calls"] = [
                self._call(call.name, call.arguments, index, number)
                for number, call in enumerate(outcome.calls)
            ]
        return {"message": message}

    def _shape(self, positions: list[Position], index: int) -> dict[str, Any]:
        return {"content": chat_content(positions, self._top or 0), "refusal": None}


class CompletionFormat(OpenAIFormat):
    """Answers of /v1/completions."""

    id_prefix = "cmpl-"
    object_whole = object_chunk = "text_completion"

    def __init__(self, head: Head, *, include_usage: bool, choices: int = 1, top: int | None = None) -> None:
        super().__init__(head, include_usage=include_usage, choices=choices, top=top)
        self._legacy = [LegacyLogprobs(top or 0) for _ in range(choices)]

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _content(self, outcome: Outcome, index: int) -> dict[str, Any]:
        return {"text": outcome.text}

    def _shape(self, positions: list[Position], index: int) -> dict[str, Any]:
        return self._legacy[index].shape(positions)


def event(value: object) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def around(chunk: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes before and after the only empty text value of a chunk.

    Searched from the end: a model may be named anything, but nothing after the text is a text.
    """
    before, _, after = event(chunk).rpartition(b'""')
    return before, after


def call_id(answer: str, index: int, number: int, *, short: bool = False) -> str:
    """A name for a call, the same whenever it is asked for: no two calls of answers with ids of their own
    share one."""
    digest = hashlib.sha256(f"{answer}/{index}/{number}".encode()).hexdigest()
    return digest[:9] if short else f"call_{digest[:24]}"


def _call_delta(call: dict[str, Any]) -> dict[str, Any]:
    return {"delta": {"tool_calls": [call]}}
