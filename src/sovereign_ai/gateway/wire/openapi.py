"""The API's own description, an OpenAPI 3.1 document made from the structs that requests are read into.

https://spec.openapis.org/oas/v3.1.0. Fields that are taken with one value only are in it with that value.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from sovereign_ai import __version__
from sovereign_ai.gateway.wire import answers, anthropic, requests, rerank, responses_api, tokens
from sovereign_ai.gateway.wire.formats import encode
from sovereign_ai.gateway.wire.parsing import ANY_TEXT, Body
from sovereign_ai.gateway.wire.responses import ANTHROPICS

_REF = "#/components/schemas/{name}"

_DESCRIPTION = (
    "A field has its effect, or a value that asks for nothing, or the request is refused with the field's "
    "name: nothing is dropped in silence. `null` is the same as leaving a field out."
)


class Post(msgspec.Struct, frozen=True):
    """One path: what is sent there, what comes back, and whether that may be a stream of events."""

    path: str
    summary: str
    request: type[Body]
    answer: type[msgspec.Struct]
    streams: bool = False


POSTS = (
    Post(
        "/v1/chat/completions",
        "The assistant's next message",
        requests.ChatRequest,
        answers.ChatAnswer,
        streams=True,
    ),
    Post(
        "/v1/completions",
        "The text that follows",
        requests.CompletionRequest,
        answers.CompletionAnswer,
        streams=True,
    ),
    Post(
        "/v1/responses",
        "OpenAI's Responses API without its memory",
        responses_api.ResponsesRequest,
        answers.ResponseAnswer,
        streams=True,
    ),
    Post(
        "/v1/messages",
        "Anthropic's Messages API",
        anthropic.MessagesRequest,
        answers.MessageAnswer,
        streams=True,
    ),
    Post(
        "/v1/messages/count_tokens",
        "Tokens of a message's prompt",
        anthropic.CountRequest,
        answers.CountAnswer,
    ),
    Post("/v1/embeddings", "Vectors of texts", requests.EmbeddingsRequest, answers.EmbeddingsAnswer),
    Post(
        "/v1/rerank",
        "Documents by the cosine of their embeddings to the query's",
        rerank.RerankRequest,
        answers.RerankAnswer,
    ),
    Post("/v1/tokenize", "The tokens of a text", tokens.TokenizeRequest, answers.TokenizeAnswer),
    Post("/v1/detokenize", "The text of tokens", tokens.DetokenizeRequest, answers.DetokenizeAnswer),
)

_GETS: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    ("/v1/models", "The models that are served", answers.ModelsAnswer),
    ("/v1/models/{id}", "One of them", answers.ModelAnswer),
)


@functools.cache
def document() -> bytes:
    """The document as JSON."""
    return encode(as_tree())


def as_tree() -> dict[str, Any]:
    """The document as JSON's types."""
    kinds: list[type[msgspec.Struct]] = [answers.ErrorAnswer, answers.MessageErrorAnswer]
    kinds += [kind for post in POSTS for kind in (post.request, post.answer)]
    kinds += [answer for _, _, answer in _GETS]
    refs, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = dict(zip(kinds, refs, strict=True))
    for post in POSTS:
        schemas[_name(by_kind[post.request])]["properties"].update(_neutral(post.request))
    paths = {post.path: {"post": _post(post, by_kind)} for post in POSTS}
    paths |= {path: {"get": _get(path, summary, by_kind[kind], by_kind)} for path, summary, kind in _GETS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sovereign AI gateway", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _post(post: Post, refs: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": refs[post.answer]}}
    if post.streams:
        content["text/event-stream"] = {}
    return {
        "summary": post.summary,
        "operationId": _operation("post", post.path),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": refs[post.request]}},
        },
        "responses": {"200": {"description": "The answer", "content": content}, **_errors(refs, post.path)},
    }


def _get(path: str, summary: str, ref: dict[str, Any], refs: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": ref}}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": _operation("get", path),
        "responses": {"200": {"description": "The answer", "content": content}, **_errors(refs, path)},
    }
    if "{id}" in path:
        operation["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return operation


def _errors(refs: dict[Any, Any], path: str) -> dict[str, Any]:
    kinds: list[type[msgspec.Struct]] = [answers.ErrorAnswer]
    if path.startswith(ANTHROPICS):
        kinds.append(answers.MessageErrorAnswer)
    content = {"application/json": {"schema": {"anyOf": [refs[kind] for kind in kinds]}}}
    words = (
        ("4XX", "The request cannot be answered as it is: the error says why"),
        ("5XX", "The gateway or the engine behind it failed or is not ready"),
    )
    return {status: {"description": text, "content": content} for status, text in words}


def _neutral(kind: type[Body]) -> dict[str, Any]:
    """Fields that are taken with one value only."""
    return {
        name: {"type": "string"} if value is ANY_TEXT else {"const": value}
        for name, value in kind.NEUTRAL.items()
    }


def _name(ref: dict[str, Any]) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _operation(method: str, path: str) -> str:
    return "_".join([method, *(part.strip("{}") for part in path.split("/") if part != "v1" and part)])
