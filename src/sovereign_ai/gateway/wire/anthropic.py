"""Anthropic's Messages API: its requests as chat requests, and answers in its shape.

https://docs.anthropic.com/en/api/messages. What it has beyond OpenAI's chat and what is kept of it: a last
message of the assistant is the beginning of the answer; the stop sequence that ended an answer is told;
`cache_control` asks for what engines do anyway, so it is without effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from sovereign_ai.errors import ApiError
from sovereign_ai.gateway.wire import messages as chat
from sovereign_ai.gateway.wire import tools as chat_tools
from sovereign_ai.gateway.wire.formats import Ending, Format, Head, Outcome, Usage, call_id, encode
from sovereign_ai.gateway.wire.parsing import (
    ANY_TEXT,
    Body,
    convert,
    decode_object,
    invalid,
    supported_fields,
)
from sovereign_ai.gateway.wire.requests import ChatRequest, NonEmpty, Positive
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class CacheControl(Body, frozen=True, kw_only=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None


class ToolUseBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Body, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    @property
    def text(self) -> str:
        """Templates know no failed results: it is said in words."""
        text = _text(self.content or "")
        return f"Error: {text}" if self.is_error else text


class UserTurn(Body, frozen=True, kw_only=True, tag_field="role", tag="user"):
    content: str | list[TextBlock | ToolResultBlock]


class AssistantTurn(Body, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    content: str | list[TextBlock | ToolUseBlock]


class AnthropicTool(Body, frozen=True, kw_only=True):
    name: chat_tools.Name
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class AutoChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="none"):
    pass


class ToolNameChoice(Body, frozen=True, kw_only=True, tag_field="type", tag="tool"):
    name: chat_tools.Name
    disable_parallel_tool_use: bool | None = None


class Metadata(Body, frozen=True, kw_only=True):
    """`user_id` is for the caller's own books."""

    user_id: str | None = None


class CountRequest(Body, frozen=True, kw_only=True):
    """What tokens are counted of."""

    NEUTRAL: ClassVar = {"thinking": {"type": "disabled"}, "container": ANY_TEXT, "mcp_servers": []}
    model: str
    messages: Annotated[list[UserTurn | AssistantTurn], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=chat_tools.MAX_TOOLS)] | None = None
    tool_choice: AutoChoice | AnyChoice | NoChoice | ToolNameChoice | None = None

    @property
    def beginning(self) -> str:
        """The answer's beginning, where the last message is the assistant's."""
        last = self.messages[-1]
        return _text(last.content) if isinstance(last, AssistantTurn) and not _uses(last) else ""

    def as_chat(self) -> ChatRequest:
        """Raises InvalidRequest where fields contradict each other."""
        turns = self.messages[:-1] if self.beginning else self.messages
        if not turns:
            raise invalid("`messages` needs one of the user before the assistant's", "messages")
        system = [] if self.system is None else [chat.SystemMessage(content=_text(self.system))]
        return ChatRequest(
            model=self.model,
            messages=[*system, *(message for turn in turns for message in _messages(turn))],
            tools=None if self.tools is None else [_tool(tool) for tool in self.tools],
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=self._parallel,
        )

    @property
    def _parallel(self) -> bool | None:
        disabled = getattr(self.tool_choice, "disable_parallel_tool_use", None)
        return None if not self.tools or disabled is None else not disabled


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {**CountRequest.NEUTRAL, "service_tier": "auto"}
    max_tokens: Positive
    stop_sequences: list[NonEmpty] | None = None
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None

    def as_chat(self) -> ChatRequest:
        """With stop sequences left in the text: from nothing else is known which of them it was."""
        return msgspec.structs.replace(
            super().as_chat(),
            max_tokens=self.max_tokens,
            stop=self.stop_sequences or None,
            include_stop_str_in_output=bool(self.stop_sequences),
            stream=self.stream,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )


def parse_messages(body: bytes) -> MessagesRequest:
    """Raises InvalidRequest."""
    return convert(supported_fields(decode_object(body), MessagesRequest), MessagesRequest)


def parse_count(body: bytes) -> CountRequest:
    """Raises InvalidRequest."""
    return convert(supported_fields(decode_object(body), CountRequest), CountRequest)


def count_body(tokens: int) -> bytes:
    return encode({"input_tokens": tokens})


class AnthropicFormat(Format):
    """Answers of /v1/messages. `prompt_tokens` as counted before: the stream begins with them."""

    def __init__(self, head: Head, prompt_tokens: int) -> None:
        self._head, self._prompt_tokens = head, prompt_tokens
        self._block = -1
        self._open = ""
        self._ending = Ending("stop")
        self._before = self._after = b""

    def first(self) -> bytes:
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=message)

    def text(self, text: str, index: int = 0) -> bytes:
        begun = b"" if self._open == "text" else self._begin("text", {"type": "text", "text": ""})
        return begun + self._before + encode(text) + self._after

    def call(self, call: Called, index: int = 0) -> bytes:
        made = call_id(self._head.id, 0, call.number)
        return self._begin("tool_use", {"type": "tool_use", "id": made, "name": call.name, "input": {}})

    def arguments(self, piece: Arguments, index: int = 0) -> bytes:
        return self._before + encode(piece.text) + self._after

    def last(self, ending: Ending, index: int = 0) -> bytes:
        self._ending = ending
        return self._end_block()

    def end(self, usage: Usage) -> bytes:
        counted = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        return _event("message_delta", delta=_stopped(self._ending), usage=counted) + _event("message_stop")

    def body(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        (outcome,) = outcomes
        blocks: list[dict[str, Any]] = [{"type": "text", "text": outcome.text}] if outcome.text else []
        for number, call in enumerate(outcome.calls):
            made = call_id(self._head.id, 0, number)
            blocks.append(
                {"type": "tool_use", "id": made, "name": call.name, "input": _input(call.arguments)}
            )
        counted = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        return encode({**self._message(blocks), **_stopped(outcome.ending), "usage": counted})

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._head.id, "type": "message", "role": "assistant", "model": self._head.model}
        return {**head, "content": content}

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        ended = self._end_block()
        self._block += 1
        self._open = kind
        delta = {"type": "text_delta", "text": ""}
        if kind == "tool_use":
            delta = {"type": "input_json_delta", "partial_json": ""}
        chunk = _event("content_block_delta", index=self._block, delta=delta)
        self._before, _, self._after = chunk.rpartition(b'""')
        return ended + _event("content_block_start", index=self._block, content_block=block)

    def _end_block(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._block)


def error_body(error: ApiError) -> bytes:
    """Anthropic's error object."""
    return encode({"type": "error", "error": _error(error)})


def error_event(error: ApiError) -> bytes:
    """The error as an event, for a stream whose status line is already sent."""
    return _event("error", error=_error(error))


_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _error(error: ApiError) -> dict[str, Any]:
    return {"type": _ERROR_TYPES.get(error.http_status, "api_error"), "message": error.message}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"


def _stopped(ending: Ending) -> dict[str, Any]:
    return {"stop_reason": _REASONS.get(ending.reason, ending.reason), "stop_sequence": ending.stop}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object. Where the answer's limit cut them off there is none to give."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _text(content: str | Sequence[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _uses(turn: AssistantTurn) -> list[ToolUseBlock]:
    blocks = () if isinstance(turn.content, str) else turn.content
    return [block for block in blocks if isinstance(block, ToolUseBlock)]


def _messages(turn: UserTurn | AssistantTurn) -> list[chat.Message]:
    """One turn as chat messages: results of tools are messages of their own, before what the user says."""
    if isinstance(turn, AssistantTurn):
        calls = [_called(use) for use in _uses(turn)]
        return [chat.AssistantMessage(content=_text(turn.content), tool_calls=calls or None)]
    if isinstance(turn.content, str):
        return [chat.UserMessage(content=turn.content)]
    found: list[chat.Message] = [
        chat.ToolMessage(content=block.text, tool_call_id=block.tool_use_id)
        for block in turn.content
        if isinstance(block, ToolResultBlock)
    ]
    if any(isinstance(block, TextBlock) for block in turn.content) or not found:
        found.append(chat.UserMessage(content=_text(turn.content)))
    return found


def _called(use: ToolUseBlock) -> chat.ToolCall:
    function = chat.CalledFunction(name=use.name, arguments=encode(use.input).decode())
    return chat.ToolCall(id=use.id, type="function", function=function)


def _tool(tool: AnthropicTool) -> chat_tools.Tool:
    function = chat_tools.Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return chat_tools.Tool(type="function", function=function)


def _choice(
    choice: AutoChoice | AnyChoice | NoChoice | ToolNameChoice | None,
) -> chat_tools.ToolChoice | None:
    if isinstance(choice, ToolNameChoice):
        named = chat_tools.FunctionName(name=choice.name)
        return chat_tools.NamedChoice(type="function", function=named)
    words: dict[type, Literal["none", "auto", "required"]] = {
        AutoChoice: "auto", AnyChoice: "required", NoChoice: "none"
    }  # fmt: skip
    return None if choice is None else words[type(choice)]
