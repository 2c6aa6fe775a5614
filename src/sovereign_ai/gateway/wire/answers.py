"""The shapes of answers, for the API's own description. Answers themselves are written by the formats."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct):
    content: list[ChosenLogprob]
    refusal: None


class AnsweredFunction(Struct):
    name: str
    arguments: str


class AnsweredCall(Struct):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = []


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionAnswer(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class EmbeddingItem(Struct):
    """`embedding` as base64 is little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(Struct):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: PromptUsage


class RankedDocument(Struct):
    text: str


class RankedResult(Struct):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(Struct):
    id: str
    model: str
    results: list[RankedResult]
    usage: PromptUsage


class ResponseAnswer(Struct):
    """`output`: items of the types `message` and `function_call`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    incomplete_details: dict[str, str] | None


class MessageUsage(Struct):
    input_tokens: int
    output_tokens: int


class MessageAnswer(Struct):
    """`content`: blocks of the types `text` and `tool_use`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "tool_use", "stop_sequence"]
    stop_sequence: str | None
    usage: MessageUsage


class CountAnswer(Struct):
    input_tokens: int


class TokenizeAnswer(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Struct):
    prompt: str


class ModelAnswer(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelsAnswer(Struct):
    object: Literal["list"]
    data: list[ModelAnswer]


class ErrorFields(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct):
    error: ErrorFields


class MessageErrorFields(Struct):
    type: str
    message: str


class MessageErrorAnswer(Struct):
    """Anthropic's shape, for its clients."""

    type: Literal["error"]
    error: MessageErrorFields
