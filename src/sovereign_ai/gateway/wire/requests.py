"""OpenAI request bodies → validated structs.

The rule: a field either has its effect, or has a value that means "no effect", or the request is refused
with the field's name. Nothing is dropped in silence. Every refusal is an InvalidRequest whose `param` is the
field's path, written as OpenAI writes it (`messages[0].content[1].type`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from sovereign_ai.errors import InvalidRequest

MAX_EMBEDDING_INPUTS = 2048
"""Texts in one embeddings request: OpenAI's own limit."""

_ANY_TEXT = object()
_NEUTRAL: dict[str, Any] = {"n": 1, "best_of": 1, "logit_bias": {}, "user": _ANY_TEXT}
_NEUTRAL_CHAT: dict[str, Any] = {
    **_NEUTRAL,
    "logprobs": False,
    "tools": [],
    "response_format": {"type": "text"},
}
_NEUTRAL_COMPLETION: dict[str, Any] = {**_NEUTRAL, "echo": False}
_NEUTRAL_EMBEDDINGS: dict[str, Any] = {"user": _ANY_TEXT}
_NEUTRAL_STREAM_OPTIONS: dict[str, Any] = {"include_obfuscation": False}

_SUPPORTED = {
    "role": "system, developer, user, assistant",
    "type": "text",
    "encoding_format": "float, base64",
}
_JSON_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_MESSAGE_LIMIT = 400
"""Characters of an error message: a client's own value is echoed in it and may be megabytes."""

_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Positive = Annotated[int, Meta(ge=1)]
_NonEmpty = Annotated[str, Meta(min_length=1)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that a client sends."""


class TextPart(_Body, frozen=True, kw_only=True):
    """The only kind of content part that a text model understands."""

    type: Literal["text"]
    text: str


class Message(_Body, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates expect it.

        Parts are joined by line breaks, as vLLM's own server does for templates that take plain text.
        `developer` is OpenAI's newer word for `system`; templates know only the older one.
        """
        text = (
            self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        )
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return message if self.name is None else {**message, "name": self.name}


class StreamOptions(_Body, frozen=True, kw_only=True):
    include_usage: bool = False


class Generation(_Body, frozen=True, kw_only=True):
    """What chat and completion requests have in common."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: _Positive | None = None
    stop: _NonEmpty | list[_NonEmpty] | None = None
    seed: _Int64 | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def answer_limit(self) -> int | None:
        """Most tokens of the answer that the client allows; None: as many as the context has room for."""
        return self.max_tokens

    def sampling(self, max_tokens: int) -> dict[str, Any]:
        """vLLM's sampling parameters. What the client left out stays out: vLLM's defaults are OpenAI's."""
        names = ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**given, "max_tokens": max_tokens}


class ChatRequest(Generation, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Positive | None = None

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Generation, frozen=True, kw_only=True):
    prompt: str | list[str]

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class EmbeddingsRequest(_Body, frozen=True, kw_only=True):
    model: str
    input: _NonEmpty | Annotated[list[_NonEmpty], Meta(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: _Positive | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


_Request = TypeVar("_Request", bound=_Body)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest."""
    tree = _supported_fields(_object(body), ChatRequest, _NEUTRAL_CHAT)
    if isinstance(messages := tree.get("messages"), list):
        _refuse_other_parts(messages)
        tree["messages"] = [_without_empty(message) for message in messages]
    request = _convert(_with_stream_options(tree), ChatRequest)
    _check_stream_options(request)
    if None not in (request.max_tokens, request.max_completion_tokens):
        _check_same_limits(request)
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises InvalidRequest."""
    tree = _supported_fields(_object(body), CompletionRequest, _NEUTRAL_COMPLETION)
    _refuse_tokens(tree, "prompt")
    if isinstance(prompts := tree.get("prompt"), list) and len(prompts) != 1:
        raise InvalidRequest(
            f"`prompt` has {len(prompts)} texts; exactly one per request is supported",
            param="prompt",
            code="invalid_value",
        )
    request = _convert(_with_stream_options(tree), CompletionRequest)
    _check_stream_options(request)
    return request


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """Raises InvalidRequest."""
    tree = _supported_fields(_object(body), EmbeddingsRequest, _NEUTRAL_EMBEDDINGS)
    _refuse_tokens(tree, "input")
    return _convert(tree, EmbeddingsRequest)


def answer_budget(prompt_tokens: int, limit: int | None, context: int, *, param: str) -> int:
    """Tokens that the answer may have: `limit`, or all that the context leaves free.

    Raises InvalidRequest (context_length_exceeded) when prompt and answer together do not fit.
    """
    wanted = 1 if limit is None else limit
    if prompt_tokens + wanted <= context:
        return context - prompt_tokens if limit is None else limit
    asked = f"your prompt has {prompt_tokens} tokens"
    if limit is not None:
        asked = (
            f"you asked for {prompt_tokens + limit} ({prompt_tokens} in the prompt, {limit} for the answer)"
        )
    raise InvalidRequest(
        f"This model's maximum context length is {context} tokens, but {asked}. Shorten the prompt"
        + (" or ask for fewer tokens." if limit is not None else "."),
        param=param,
        code="context_length_exceeded",
    )


def check_embedding_lengths(counts: list[int], context: int) -> None:
    """Raises InvalidRequest that names the first text of more than `context` tokens."""
    for index, count in enumerate(counts):
        if count > context:
            raise InvalidRequest(
                f"This model's maximum context length is {context} tokens, but input {index} has {count}.",
                param=f"input[{index}]" if len(counts) > 1 else "input",
                code="context_length_exceeded",
            )


def _object(body: bytes) -> dict[str, Any]:
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {_json_problem(error, body)}", code="invalid_json"
        ) from error
    if not isinstance(tree, dict):
        raise InvalidRequest("The body must be a JSON object", code="invalid_json")
    return tree


def _json_problem(error: Exception, body: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} in a text)"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problem = str(error).removeprefix("JSON is malformed: ")
    return problem if "byte" in problem else f"{problem} (byte {len(body)})"


def _supported_fields(
    tree: dict[str, Any], kind: type[_Body], neutral: Mapping[str, Any], at: str = ""
) -> dict[str, Any]:
    """The fields of `tree` that have an effect; raises for those that would have one, were they supported."""
    given = {name: value for name, value in tree.items() if value is not None}
    kept = {name: value for name, value in given.items() if name in kind.__struct_fields__}
    for name, value in given.items():
        if name not in kept and not _is_neutral(value, neutral.get(name)):
            raise _unsupported(f"{at}{name}", takes_other=name in neutral)
    return kept


def _is_neutral(value: Any, neutral: Any) -> bool:
    if neutral is _ANY_TEXT:
        return isinstance(value, str)
    # `True == 1` in Python, but `"n": true` is a mistake to point out
    return type(value) is type(neutral) and bool(value == neutral)


def _unsupported(param: str, *, takes_other: bool = False) -> InvalidRequest:
    what = "with this value is not supported" if takes_other else "is not supported"
    return InvalidRequest(f"`{param}` {what}"[:_MESSAGE_LIMIT], param=param, code="unsupported_parameter")


def _without_empty(message: Any) -> Any:
    """Clients send an answer's message back as they got it, with `refusal: null` and `annotations: []`."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name == "content" or value not in (None, [])}


def _refuse_other_parts(messages: list[Any]) -> None:
    """By its type, which says more than the first field of an image that we do not know."""
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise _invalid(f"Invalid value {part['type']!r} - at `$.messages[{i}].content[{j}].type`")


def _with_stream_options(tree: dict[str, Any]) -> dict[str, Any]:
    options = tree.get("stream_options")
    if not isinstance(options, dict):
        return tree
    kept = _supported_fields(options, StreamOptions, _NEUTRAL_STREAM_OPTIONS, "stream_options.")
    return {**tree, "stream_options": kept}


def _refuse_tokens(tree: dict[str, Any], name: str) -> None:
    value = tree.get(name)
    if isinstance(value, list) and any(isinstance(item, (int, list)) for item in value):
        raise InvalidRequest(
            f"`{name}` as token numbers is not supported: send text", param=name, code="unsupported_parameter"
        )


def _check_stream_options(request: Generation) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "`stream_options` needs `stream: true`", param="stream_options", code="invalid_value"
        )


def _check_same_limits(request: ChatRequest) -> None:
    if request.max_tokens != request.max_completion_tokens:
        raise InvalidRequest(
            "`max_tokens` and `max_completion_tokens` differ: send one of them",
            param="max_tokens",
            code="invalid_value",
        )


def _convert(tree: dict[str, Any], kind: type[_Request]) -> _Request:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error


def _invalid(text: str) -> InvalidRequest:
    """msgspec's wording of what is wrong, in the words of JSON."""
    problem, _, path = text.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    if match := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        param = f"{path}.{match[1]}" if path else match[1]
        return InvalidRequest(f"`{param}` is required", param=param, code="missing_required_parameter")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        return _unsupported(f"{path}.{match[1]}")
    return InvalidRequest(_explained(problem, path)[:_MESSAGE_LIMIT], param=path, code="invalid_value")


def _explained(problem: str, path: str) -> str:
    words = re.sub(r"\b(str|int|float|bool)\b", lambda word: _JSON_WORDS[word[0]], problem).replace("`", "")
    choices = _SUPPORTED.get(path.rpartition(".")[2], "") if problem.startswith("Invalid") else ""
    if choices:
        return f"Invalid `{path}`: {problem.rpartition('value ')[2]} is not supported, only {choices}"
    return f"Invalid `{path}`: {words[:1].lower()}{words[1:]}"
