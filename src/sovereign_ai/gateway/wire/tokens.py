"""Texts as tokens and back, in the shape of vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from sovereign_ai.errors import InvalidRequest
from sovereign_ai.gateway.wire.formats import encode
from sovereign_ai.gateway.wire.messages import Message, prepared
from sovereign_ai.gateway.wire.parsing import Body, convert, decode_object, invalid, supported_fields
from sovereign_ai.gateway.wire.requests import TokenId
from sovereign_ai.gateway.wire.tools import Tools

MAX_TOKENS = 1_000_000
"""Tokens in one request: more than any model's context."""


class TokenizeRequest(Body, frozen=True, kw_only=True):
    """A `prompt`, or `messages` through the chat template, which writes the special tokens itself."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: Tools | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body, frozen=True, kw_only=True):
    model: str
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """Raises InvalidRequest."""
    tree = supported_fields(decode_object(body), TokenizeRequest)
    if "messages" in tree:
        tree["messages"] = prepared(tree["messages"])
    request = convert(tree, TokenizeRequest)
    if request.prompt is None and request.messages is None:
        raise InvalidRequest(
            "`prompt` or `messages` is required", param="prompt", code="missing_required_parameter"
        )
    if request.prompt is not None and request.messages is not None:
        raise invalid("`prompt` and `messages` exclude each other: send one of them", "prompt")
    if request.prompt is not None and (request.tools or not request.add_generation_prompt):
        raise invalid("`tools` and `add_generation_prompt` belong to `messages`", "prompt")
    return request


def check_tokens(tokens: list[int], vocabulary: int) -> None:
    """Raises InvalidRequest for a token that the model does not have."""
    for index, token in enumerate(tokens):
        if token >= vocabulary:
            raise invalid(f"This model has {vocabulary} tokens, and none is {token}", f"tokens[{index}]")


def tokenize_body(tokens: list[int], texts: list[str] | None, context: int) -> bytes:
    body: dict[str, Any] = {"count": len(tokens), "max_model_len": context, "tokens": tokens}
    return encode({**body, "token_strs": texts})


def detokenize_body(text: str) -> bytes:
    return encode({"prompt": text})
