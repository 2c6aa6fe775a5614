"""Response bodies that are not generated text, as bytes: embeddings, models, errors."""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Literal

from sovereign_ai.errors import ApiError
from sovereign_ai.gateway.wire import anthropic
from sovereign_ai.gateway.wire.formats import encode
from sovereign_ai.spec import Route

OWNER = "sovereign"
ANTHROPICS = "/v1/messages"
"""Beginning of the paths whose clients are Anthropic's."""


def embeddings_body(
    rows: Sequence[bytes], encoding: Literal["float", "base64"], model: str, tokens: int
) -> bytes:
    """`rows`: one vector each, little-endian float32; `tokens`: of all texts together."""
    convert = _as_base64 if encoding == "base64" else _as_floats
    data = [{"object": "embedding", "index": i, "embedding": convert(row)} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"object": "list", "data": data, "model": model, "usage": usage})


def _as_base64(row: bytes) -> str:
    return b64encode(row).decode()


def _as_floats(row: bytes) -> list[float]:
    # array uses the machine's byte order; every machine that engines and gateway run on is little-endian
    return array("f", row).tolist()


def model_body(route: Route) -> bytes:
    return encode(_model(route))


def models_body(routes: Sequence[Route]) -> bytes:
    return encode({"object": "list", "data": [_model(route) for route in routes]})


def _model(route: Route) -> dict[str, Any]:
    return {
        "id": route.model,
        "object": "model",
        "created": route.created,
        "owned_by": OWNER,
        "max_model_len": route.context,
    }


def error_body(error: ApiError, path: str = "") -> bytes:
    """The error object that clients of `path` know: OpenAI's, or Anthropic's."""
    if path.startswith(ANTHROPICS):
        return anthropic.error_body(error)
    fields = {"message": error.message, "type": error.error_type, "param": error.param, "code": error.code}
    return encode({"error": fields})


def error_event(error: ApiError, path: str = "") -> bytes:
    """The error as an event, for a stream whose status line is already sent."""
    if path.startswith(ANTHROPICS):
        return anthropic.error_event(error)
    return b"data: " + error_body(error) + b"\n\n"


def plain_body(value: object) -> bytes:
    """JSON of the gateway's own pages (health and readiness)."""
    return encode(value)
