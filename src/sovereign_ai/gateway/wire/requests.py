"""OpenAI's request bodies: chat, completions, embeddings."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from sovereign_ai.errors import InvalidRequest
from sovereign_ai.gateway.wire.messages import Message, prepared
from sovereign_ai.gateway.wire.parsing import (
    ANY_TEXT,
    Body,
    convert,
    decode_object,
    invalid,
    supported_fields,
    unsupported,
)
from sovereign_ai.gateway.wire.structured import ResponseFormat, as_json
from sovereign_ai.gateway.wire.tools import Calling, ToolChoice, Tools, calling

MAX_EMBEDDING_INPUTS = 2048
"""Texts in one embeddings request: OpenAI's own limit."""

MAX_CHOICES = 8
"""Answers to one prompt. Each is a generation of its own, and takes a place in the engine's batch."""

MAX_TOP_LOGPROBS = 20
"""Most alternatives per token: OpenAI's limit, and vLLM's default one."""

_NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "user": ANY_TEXT,
    "safety_identifier": ANY_TEXT,
    "prompt_cache_key": ANY_TEXT,
    "store": False,
    "metadata": {},
    "service_tier": "auto",
}

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1)]
NonEmpty = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

_PASSED_ON = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "stop", "stop_token_ids", "include_stop_str_in_output", "seed", "min_tokens", "ignore_eos",
    "skip_special_tokens", "logit_bias",
)  # fmt: skip
"""Fields that are vLLM's own, by the same names."""

_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "top_k": (-1, 0),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "logit_bias": ({},),
    "stop_token_ids": ([],),
}
"""vLLM's defaults, which are not sent: releases differ in how they write "off"."""


class StreamOptions(Body, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {"include_obfuscation": False}
    include_usage: bool = False


class Generation(Body, frozen=True, kw_only=True):
    """What chat and completion requests have in common."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    max_tokens: Positive | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    stop: NonEmpty | list[NonEmpty] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: Int64 | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def answer_limit(self) -> int | None:
        """Most tokens of the answer that the client allows; None: as many as the context has room for."""
        return self.max_tokens

    @property
    @abstractmethod
    def top(self) -> int | None:
        """Alternatives per token whose log-probabilities are asked for; None: no log-probabilities."""

    def sampling(self, max_tokens: int, choice: int = 0) -> dict[str, Any]:
        """vLLM's sampling parameters. What the client left out stays out: vLLM's defaults are OpenAI's.

        Several choices of one seed would be one choice several times: each has a seed of its own, counted on
        from the client's as vLLM does.
        """
        values = ((name, getattr(self, name)) for name in _PASSED_ON)
        given = {
            name: value
            for name, value in values
            if value is not None and value not in _WITHOUT_EFFECT.get(name, ())
        }
        if self.seed is not None and choice:
            given["seed"] = (self.seed + choice + 2**63) % 2**64 - 2**63
        if "logit_bias" in given:
            given["logit_bias"] = {str(token): bias for token, bias in given["logit_bias"].items()}
        if self.top is not None:
            given["logprobs"] = self.top
        return {**given, "max_tokens": max_tokens}


class ChatRequest(Generation, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {**_NEUTRAL, "modalities": ["text"], "functions": [], "verbosity": "medium"}
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def calling(self) -> Calling | None:
        return calling(self.tools, self.tool_choice, self.parallel_tool_calls)

    def structure(self, form: str | None = None) -> dict[str, Any] | None:
        """What the answer's text must be, in vLLM's words; None: anything. `form`: of the model's calls.

        Raises InvalidRequest where it cannot be had.
        """
        if (calls := self.calling) is not None:
            return calls.structure(form)
        return None if self.response_format is None else as_json(self.response_format)


class CompletionRequest(Generation, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {**_NEUTRAL, "echo": False}
    prompt: str | list[str]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def top(self) -> int | None:
        return self.logprobs


class EmbeddingsRequest(Body, frozen=True, kw_only=True):
    NEUTRAL: ClassVar = {"user": ANY_TEXT}
    model: str
    input: NonEmpty | Annotated[list[NonEmpty], Meta(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def parse_chat(body: bytes) -> ChatRequest:
    """Raises InvalidRequest."""
    tree = supported_fields(decode_object(body), ChatRequest)
    if "messages" in tree:
        tree["messages"] = prepared(tree["messages"])
    request = convert(_with_stream_options(tree), ChatRequest)
    _check_generation(request)
    if None not in (request.max_tokens, request.max_completion_tokens):
        _check_same_limits(request)
    check_chat(request)
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises InvalidRequest."""
    tree = supported_fields(decode_object(body), CompletionRequest)
    refuse_tokens(tree, "prompt")
    if isinstance(prompts := tree.get("prompt"), list) and len(prompts) != 1:
        raise invalid(f"`prompt` has {len(prompts)} texts; exactly one per request is supported", "prompt")
    request = convert(_with_stream_options(tree), CompletionRequest)
    _check_generation(request)
    return request


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """Raises InvalidRequest."""
    tree = supported_fields(decode_object(body), EmbeddingsRequest)
    refuse_tokens(tree, "input")
    return convert(tree, EmbeddingsRequest)


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


def check_token_ids(request: Generation, vocabulary: int) -> None:
    """Raises InvalidRequest for tokens that the model does not have: some engines stop at them."""
    for name, ids in (("logit_bias", request.logit_bias), ("stop_token_ids", request.stop_token_ids)):
        for token in ids or ():
            if token >= vocabulary:
                raise invalid(f"`{name}`: this model has {vocabulary} tokens, and none is {token}", name)


def check_embedding_lengths(counts: list[int], context: int, name: str = "input") -> None:
    """Raises InvalidRequest that names the first text of more than `context` tokens."""
    for index, count in enumerate(counts):
        if count > context:
            raise InvalidRequest(
                f"This model's maximum context length is {context} tokens, but {name} {index} has {count}.",
                param=f"{name}[{index}]" if len(counts) > 1 else name,
                code="context_length_exceeded",
            )


def refuse_tokens(tree: dict[str, Any], name: str) -> None:
    value = tree.get(name)
    if isinstance(value, list) and any(isinstance(item, (int, list)) for item in value):
        raise InvalidRequest(
            f"`{name}` as token numbers is not supported: send text", param=name, code="unsupported_parameter"
        )


def check_chat(request: ChatRequest) -> None:
    """Raises InvalidRequest where fields contradict each other."""
    calls = request.calling
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("`top_logprobs` needs `logprobs: true`", "top_logprobs")
    if calls is not None and request.logprobs:
        raise unsupported("logprobs", because="together with `tools`")
    if calls is not None and request.response_format is not None and as_json(request.response_format):
        raise unsupported("response_format", because="together with `tools`")


def _with_stream_options(tree: dict[str, Any]) -> dict[str, Any]:
    options = tree.get("stream_options")
    if not isinstance(options, dict):
        return tree
    return {**tree, "stream_options": supported_fields(options, StreamOptions, "stream_options.")}


def _check_generation(request: Generation) -> None:
    if request.stream_options is not None and not request.stream:
        raise invalid("`stream_options` needs `stream: true`", "stream_options")
    if request.min_tokens is not None and request.min_tokens > (request.answer_limit or request.min_tokens):
        raise invalid("`min_tokens` is more than the answer may have at most", "min_tokens")


def _check_same_limits(request: ChatRequest) -> None:
    if request.max_tokens != request.max_completion_tokens:
        raise invalid("`max_tokens` and `max_completion_tokens` differ: send one of them", "max_tokens")
