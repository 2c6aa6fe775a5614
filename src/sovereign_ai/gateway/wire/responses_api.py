"""OpenAI's Responses API, as far as it goes without a memory: requests as chat requests, answers in its
shape.

https://platform.openai.com/docs/api-reference/responses. Nothing is stored here: a conversation is sent as a
whole each time, and what needs a store is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from sovereign_ai.gateway.wire import messages as chat
from sovereign_ai.gateway.wire import structured
from sovereign_ai.gateway.wire import tools as chat_tools
from sovereign_ai.gateway.wire.formats import Ending, Format, Head, Outcome, Usage, WholeCall, call_id, encode
from sovereign_ai.gateway.wire.parsing import ANY_TEXT, Body, convert, decode_object, supported_fields
from sovereign_ai.gateway.wire.requests import ChatRequest, NonEmpty, Positive, check_chat
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called


class InputText(Body, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Body, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """As an answer had it. What it was annotated with is nothing to a model."""

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


InputContent = str | list[InputText | OutputText]


class InputMessage(Body, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """`id` and `status` are an answer's, sent back."""

    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class InputCall(Body, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class InputCallOutput(Body, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


Item = InputMessage | InputCall | InputCallOutput


class FunctionTool(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    name: chat_tools.Name
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class FunctionChoice(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    name: chat_tools.Name


class SchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema_: dict[str, Any] = field(name="schema")
    description: str | None = None
    strict: bool | None = None


class TextSettings(Body, frozen=True, kw_only=True):
    format: structured.TextFormat | structured.JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Body, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {
        "store": False,
        "user": ANY_TEXT,
        "safety_identifier": ANY_TEXT,
        "prompt_cache_key": ANY_TEXT,
        "metadata": {},
        "service_tier": "auto",
        "truncation": "disabled",
        "background": False,
        "include": [],
        "top_logprobs": 0,
        "reasoning": {},
    }
    model: str
    input: NonEmpty | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stream: bool = False
    text: TextSettings | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=chat_tools.MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None

    def as_chat(self) -> ChatRequest:
        """Raises InvalidRequest where fields contradict each other."""
        given = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        system = [] if self.instructions is None else [chat.SystemMessage(content=self.instructions)]
        request = ChatRequest(
            model=self.model,
            messages=[*system, *_messages(given)],
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            response_format=_response_format(self.text),
            tools=None if self.tools is None else [_tool(tool) for tool in self.tools],
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls if self.tools else None,
        )
        check_chat(request)
        return request

    def echoed(self) -> dict[str, Any]:
        """What an answer repeats of its request."""
        tools = [_echoed_tool(tool) for tool in self.tools or ()]
        choice = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": _echoed_format(self.text)},
            "tool_choice": {"type": "function", "name": choice.name}
            if isinstance(choice, FunctionChoice)
            else choice or "auto",
            "tools": tools,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
        }


def parse_responses(body: bytes) -> ResponsesRequest:
    """Raises InvalidRequest."""
    tree = supported_fields(decode_object(body), ResponsesRequest)
    if isinstance(items := tree.get("input"), list):
        # clients leave out the type of messages
        tree["input"] = [_typed(item) for item in items]
    return convert(tree, ResponsesRequest)


class ResponsesFormat(Format):
    """Answers of /v1/responses. Every event of a stream carries its number."""

    def __init__(self, head: Head, echoed: dict[str, Any]) -> None:
        self._head, self._echoed = head, echoed
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._written: list[str] = []
        self._open = ""
        self._before = self._middle = b""
        self._ending = Ending("stop")

    def first(self) -> bytes:
        response = self._response("in_progress", [], None)
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def text(self, text: str, index: int = 0) -> bytes:
        begun = b"" if self._open == "message" else self._begin_message()
        return begun + self._delta(text)

    def call(self, call: Called, index: int = 0) -> bytes:
        ended = self._end_item()
        item = self._call_item(WholeCall(call.name, ""), len(self._items), call.number, "in_progress")
        return ended + self._begin(item, "response.function_call_arguments.delta", {})

    def arguments(self, piece: Arguments, index: int = 0) -> bytes:
        return self._delta(piece.text)

    def last(self, ending: Ending, index: int = 0) -> bytes:
        self._ending = ending
        return self._end_item()

    def end(self, usage: Usage) -> bytes:
        status = _status(self._ending)
        response = self._response(status, self._items, usage, self._ending)
        return self._event(f"response.{status}", response=response)

    def body(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        (outcome,) = outcomes
        items = []
        if outcome.text or not outcome.calls:
            items.append(self._message_item(outcome.text, 0, _status(outcome.ending)))
        for number, call in enumerate(outcome.calls):
            items.append(self._call_item(call, len(items), number, "completed"))
        return encode(self._response(_status(outcome.ending), items, usage, outcome.ending))

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _delta(self, text: str) -> bytes:
        """Only number and text differ from one to the next."""
        self._written.append(text)
        number = b"%d" % self._number
        self._number += 1
        return self._before + number + self._middle + encode(text) + b"}\n\n"

    def _begin_message(self) -> bytes:
        ended = self._end_item()
        item = {**self._message_item("", len(self._items), "in_progress"), "content": []}
        at = {"item_id": item["id"], "output_index": len(self._items), "content_index": 0}
        begun = self._begin(item, "response.output_text.delta", {"content_index": 0, "logprobs": []})
        return ended + begun + self._event("response.content_part.added", **at, part=_part(""))

    def _begin(self, item: dict[str, Any], deltas: str, more: dict[str, Any]) -> bytes:
        at = {"item_id": item["id"], "output_index": len(self._items), **more}
        self._open, self._item, self._written = item["type"], item, []
        self._before = b'event: %s\ndata: {"type":"%s","sequence_number":' % ((deltas.encode(),) * 2)
        self._middle = b"," + encode(at)[1:-1] + b',"delta":'
        return self._event("response.output_item.added", output_index=len(self._items), item=item)

    def _end_item(self) -> bytes:
        if not self._open:
            return b""
        text, kind, self._open = "".join(self._written), self._open, ""
        at = {"item_id": self._item["id"], "output_index": len(self._items)}
        end = self._end_message(text, at) if kind == "message" else self._end_call(text, at)
        done = self._event("response.output_item.done", output_index=len(self._items), item=self._item)
        self._items.append(self._item)
        return end + done

    def _end_message(self, text: str, at: dict[str, Any]) -> bytes:
        self._item = self._message_item(text, len(self._items), _status(self._ending))
        at = {**at, "content_index": 0}
        said = self._event("response.output_text.done", **at, text=text, logprobs=[])
        return said + self._event("response.content_part.done", **at, part=_part(text))

    def _end_call(self, text: str, at: dict[str, Any]) -> bytes:
        self._item = {**self._item, "arguments": text, "status": "completed"}
        name = self._item["name"]
        return self._event("response.function_call_arguments.done", **at, name=name, arguments=text)

    def _message_item(self, text: str, index: int, status: str) -> dict[str, Any]:
        made = "msg_" + call_id(self._head.id, index, -1).removeprefix("call_")
        return {
            "id": made, "type": "message", "role": "assistant", "status": status, "content": [_part(text)]
        }  # fmt: skip

    def _call_item(self, call: WholeCall, index: int, number: int, status: str) -> dict[str, Any]:
        made = call_id(self._head.id, 0, number)
        return {
            "id": made.replace("call_", "fc_"), "type": "function_call", "call_id": made, "name": call.name,
            "arguments": call.arguments, "status": status,
        }  # fmt: skip

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: Usage | None, ending: Ending | None = None
    ) -> dict[str, Any]:
        cut = ending is not None and ending.reason == "length"
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "model": self._head.model,
            "output": output,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": None if usage is None else _usage(usage),
            **self._echoed,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    """Nothing is known of cached tokens or of reasoning, for which OpenAI's clients want numbers."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _status(ending: Ending) -> str:
    return "incomplete" if ending.reason == "length" else "completed"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _typed(item: Any) -> Any:
    return {"type": "message", **item} if isinstance(item, dict) and "role" in item else item


def _text(content: InputContent) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _messages(items: Sequence[Item]) -> list[chat.Message]:
    """Calls that follow each other are one message of the assistant."""
    made: list[chat.Message] = []
    for item in items:
        if isinstance(item, InputMessage):
            made.append(_message(item))
        elif isinstance(item, InputCallOutput):
            output = _text(list(item.output) if isinstance(item.output, list) else item.output)
            made.append(chat.ToolMessage(content=output, tool_call_id=item.call_id))
        else:
            last = made.pop() if made and isinstance(made[-1], chat.AssistantMessage) else None
            made.append(_with_call(last, item))
    return made


def _message(item: InputMessage) -> chat.Message:
    kinds: dict[str, type[chat.UserMessage | chat.AssistantMessage | chat.SystemMessage]] = {
        "user": chat.UserMessage, "assistant": chat.AssistantMessage
    }  # fmt: skip
    return kinds.get(item.role, chat.SystemMessage)(content=_text(item.content))


def _with_call(last: chat.Message | None, item: InputCall) -> chat.AssistantMessage:
    function = chat.CalledFunction(name=item.name, arguments=item.arguments)
    call = chat.ToolCall(id=item.call_id, type="function", function=function)
    if isinstance(last, chat.AssistantMessage):
        return chat.AssistantMessage(content=last.content, tool_calls=[*(last.tool_calls or ()), call])
    return chat.AssistantMessage(tool_calls=[call])


def _response_format(text: TextSettings | None) -> structured.ResponseFormat | None:
    wanted = None if text is None else text.format
    if not isinstance(wanted, SchemaFormat):
        return wanted
    schema = structured.JsonSchema(name=wanted.name, schema_=wanted.schema_, strict=wanted.strict)
    return structured.JsonSchemaFormat(json_schema=schema)


def _echoed_format(text: TextSettings | None) -> dict[str, Any]:
    wanted = None if text is None else text.format
    if isinstance(wanted, SchemaFormat):
        return {
            "type": "json_schema", "name": wanted.name, "schema": wanted.schema_,
            "description": wanted.description, "strict": wanted.strict,
        }  # fmt: skip
    return {"type": "json_object" if isinstance(wanted, structured.JsonObjectFormat) else "text"}


def _tool(tool: FunctionTool) -> chat_tools.Tool:
    function = chat_tools.Function(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return chat_tools.Tool(type="function", function=function)


def _echoed_tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function", "name": tool.name, "description": tool.description,
        "parameters": tool.parameters, "strict": bool(tool.strict),
    }  # fmt: skip


def _choice(choice: str | FunctionChoice | None) -> chat_tools.ToolChoice | None:
    if isinstance(choice, FunctionChoice):
        named = chat_tools.FunctionName(name=choice.name)
        return chat_tools.NamedChoice(type="function", function=named)
    return choice  # type: ignore[return-value]  # one of the three words that both have
