"""Functions that a model may call: how a client declares them, and how it says which must be called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sovereign_ai.gateway.wire.parsing import Body, invalid

MAX_TOOLS = 128
"""OpenAI's own limit."""

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

_encode = msgspec.json.Encoder().encode

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_.-]+$")]


class Function(Body, frozen=True, kw_only=True):
    """`parameters` is a JSON schema. `strict` asks that arguments follow it, which only grammars promise."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema(self) -> dict[str, Any]:
        return NO_PARAMETERS if self.parameters is None else self.parameters

    def for_template(self) -> dict[str, Any]:
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.schema}}


class Tool(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: Function


class FunctionName(Body, frozen=True, kw_only=True):
    name: Name


class NamedChoice(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedChoice
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


class Calling(msgspec.Struct, frozen=True):
    """What a request says of calls: `choice` is `auto`, `required`, or the name of the only function."""

    functions: tuple[Function, ...]
    choice: str
    named: bool
    parallel: bool

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    @property
    def forced(self) -> bool:
        return self.named or self.choice == "required"

    def for_template(self) -> list[dict[str, Any]]:
        return [function.for_template() for function in self.functions]

    def structure(self, form: str | None) -> dict[str, Any] | None:
        """What the answer's text must be, in vLLM's words; None: anything. `form`: of the model's calls.

        Raises InvalidRequest where `strict` is asked for and cannot be kept.
        """
        if self.forced:
            return {"json": self.schema()}
        strict = next((index for index, one in enumerate(self.functions) if one.strict), None)
        if strict is None:
            return None
        if form != "hermes":
            raise invalid(
                f"`strict` of `tools[{strict}]` cannot be kept by this model while it may choose to call: "
                "leave it out, or send `tool_choice` `required` or a function's name",
                f"tools[{strict}]",
            )
        return {"structural_tag": _encode(self._tags()).decode()}

    def schema(self) -> dict[str, Any]:
        """The JSON that a forced answer must be: the arguments of the named function, or a list of calls."""
        if self.named:
            return next(function.schema for function in self.functions if function.name == self.choice)
        calls = {"type": "array", "minItems": 1, "items": {"anyOf": [_call(f) for f in self.functions]}}
        return calls if self.parallel else {**calls, "maxItems": 1}

    def _tags(self) -> dict[str, Any]:
        """Any text, but behind Hermes' mark a call: xgrammar's structural tag,
        https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html."""
        tags = [_tag(function) for function in self.functions]
        form = {"type": "triggered_tags", "triggers": [HERMES_OPEN], "tags": tags}
        return {"type": "structural_tag", "format": {**form, "stop_after_first": not self.parallel}}


def calling(
    tools: list[Tool] | None,
    choice: ToolChoice | None,
    parallel: bool | None,
) -> Calling | None:
    """None: no calls. Raises InvalidRequest where the fields contradict each other."""
    if not tools:
        _refuse_without_tools(choice, parallel)
        return None
    functions = tuple(tool.function for tool in tools)
    _check_names(functions)
    if choice == "none":
        return None
    named = isinstance(choice, NamedChoice)
    word = choice.function.name if isinstance(choice, NamedChoice) else choice or "auto"
    found = Calling(functions, word, named, parallel is not False)
    if named and word not in found.names:
        raise invalid(f"`tool_choice` names `{word}`, which is not in `tools`", "tool_choice")
    return found


def _refuse_without_tools(choice: ToolChoice | None, parallel: bool | None) -> None:
    if choice not in (None, "none", "auto"):
        raise invalid("`tool_choice` needs `tools`", "tool_choice")
    if parallel is not None:
        raise invalid("`parallel_tool_calls` needs `tools`", "parallel_tool_calls")


def _check_names(functions: tuple[Function, ...]) -> None:
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise invalid(f"`{function.name}` is in `tools` twice", f"tools[{index}].function.name")
        seen.add(function.name)


def _tag(function: Function) -> dict[str, Any]:
    schema = function.schema if function.strict else {"type": "object"}
    return {
        "begin": f'{HERMES_OPEN}\n{{"name": "{function.name}", "arguments": ',
        "content": {"type": "json_schema", "json_schema": schema},
        "end": f"}}\n{HERMES_CLOSE}",
    }


def _call(function: Function) -> dict[str, Any]:
    properties = {"name": {"const": function.name}, "parameters": function.schema}
    return {"type": "object", "properties": properties, "required": ["name", "parameters"],
            "additionalProperties": False}  # fmt: skip
