from __future__ import annotations

import base64
import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import InvalidRequest, UpstreamFailed
from sovereign_ai.gateway.wire import responses
from sovereign_ai.spec import Route

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)


def event(data: bytes) -> Any:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    return json.loads(data[6:])


@given(FLOATS)
def test_base64_embeddings_hold_little_endian_float32(values: list[float]) -> None:
    row = struct.pack(f"<{len(values)}f", *values)
    body = json.loads(responses.embeddings_body([row], "base64", "m", 5))
    decoded = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack(f"<{len(values)}f", decoded) == tuple(values)


@given(FLOATS)
def test_float_embeddings_lose_nothing(values: list[float]) -> None:
    row = struct.pack(f"<{len(values)}f", *values)
    body = json.loads(responses.embeddings_body([row, row], "float", "m", 5))
    assert [item["embedding"] for item in body["data"]] == [values, values]
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_models() -> None:
    route = Route(model="smol", task="chat", context=8192, folder="/m", endpoints=(), created=9)
    one = {"id": "smol", "object": "model", "created": 9, "owned_by": "sovereign", "max_model_len": 8192}
    assert json.loads(responses.model_body(route)) == one
    assert json.loads(responses.models_body([route])) == {"object": "list", "data": [one]}


def test_errors_have_openais_shape() -> None:
    error = InvalidRequest("no", param="n", code="unsupported_parameter")
    shape = {"message": "no", "type": "invalid_request_error", "param": "n", "code": "unsupported_parameter"}
    assert json.loads(responses.error_body(error)) == {"error": shape}
    assert event(responses.error_event(UpstreamFailed("gone")))["error"]["type"] == "server_error"


def test_errors_have_anthropics_shape_for_its_clients() -> None:
    body = json.loads(responses.error_body(InvalidRequest("no", param="n"), "/v1/messages/count_tokens"))
    assert body == {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    name, _, data = responses.error_event(UpstreamFailed("gone"), "/v1/messages").partition(b"\n")
    assert name == b"event: error"
    assert event(data)["error"] == {"type": "api_error", "message": "gone"}


def test_plain_body() -> None:
    assert responses.plain_body({"status": "ok"}) == b'{"status":"ok"}'
