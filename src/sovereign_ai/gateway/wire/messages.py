"""Messages of a conversation, as clients send them and as chat templates expect them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sovereign_ai.errors import InvalidRequest
from sovereign_ai.gateway.wire.parsing import Body, invalid


class TextPart(Body, frozen=True, kw_only=True):
    """The only kind of content part that a text model understands."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def plain_text(content: Content) -> str:
    """Parts are joined by line breaks, as vLLM's own server does for templates that take plain text."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class CalledFunction(Body, frozen=True, kw_only=True):
    """`arguments` is JSON in a text."""

    name: str
    arguments: str


class ToolCall(Body, frozen=True, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction

    def for_template(self, at: str) -> dict[str, Any]:
        """Templates write the arguments as JSON themselves: they expect an object."""
        function = {"name": self.function.name, "arguments": _arguments(self.function.arguments, at)}
        return {"id": self.id, "type": self.type, "function": function}


class _Named(Body, frozen=True, kw_only=True, tag_field="role"):
    content: Content
    name: str | None = None

    def for_template(self, at: str) -> dict[str, Any]:
        role = str(self.__struct_config__.tag)
        # `developer` is OpenAI's newer word for `system`; templates know only the older one
        message = {"role": "system" if role == "developer" else role, "content": plain_text(self.content)}
        return message if self.name is None else {**message, "name": self.name}


class SystemMessage(_Named, frozen=True, kw_only=True, tag="system"):
    pass


class DeveloperMessage(_Named, frozen=True, kw_only=True, tag="developer"):
    pass


class UserMessage(_Named, frozen=True, kw_only=True, tag="user"):
    pass


class AssistantMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None

    def for_template(self, at: str) -> dict[str, Any]:
        if self.content is None and not self.tool_calls:
            raise InvalidRequest(
                f"`{at}.content` is required", param=f"{at}.content", code="missing_required_parameter"
            )
        message: dict[str, Any] = {"role": "assistant", "content": plain_text(self.content or "")}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            calls = enumerate(self.tool_calls)
            message["tool_calls"] = [call.for_template(f"{at}.tool_calls[{i}]") for i, call in calls]
        return message


class ToolMessage(Body, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """What a called function gave back."""

    content: Content
    tool_call_id: str
    name: str | None = None

    def for_template(self, at: str) -> dict[str, Any]:
        message = {"role": "tool", "content": plain_text(self.content), "tool_call_id": self.tool_call_id}
        return message if self.name is None else {**message, "name": self.name}


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def for_template(messages: list[Message], at: str = "messages") -> list[dict[str, Any]]:
    """The messages as chat templates expect them. Raises InvalidRequest with the place of what is wrong."""
    return [message.for_template(f"{at}[{index}]") for index, message in enumerate(messages)]


def _arguments(text: str, at: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        param = f"{at}.function.arguments"
        raise invalid(f"`{param}` is not a JSON object", param) from error


def prepared(messages: Any) -> Any:
    """What a client sends back as it got it: an answer's message has `refusal: null` and `annotations: []`.

    Raises InvalidRequest for a content part that is no text, by its type: that says more than the first
    field of an image that we do not know.
    """
    if not isinstance(messages, list):
        return messages
    _refuse_other_parts(messages)
    return [_without_empty(message) for message in messages]


def _without_empty(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name == "content" or value not in (None, [])}


def _refuse_other_parts(messages: list[Any]) -> None:
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            if kind != "text":
                at = f"messages[{i}].content[{j}].type"
                raise invalid(f"Invalid `{at}`: {kind!r} is not supported, only text", at)
