from __future__ import annotations

import json
from typing import Any

from sovereign_ai.gateway.wire import openapi

TREE = json.loads(openapi.document())


def schema_of(path: str) -> Any:
    content = TREE["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return TREE["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]


def test_every_reference_leads_somewhere() -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    names = {reference.rpartition("/")[2] for reference in references(TREE)}
    assert names <= set(TREE["components"]["schemas"])
    assert len(names) > 30


def test_limits_are_in_it() -> None:
    fields = schema_of("/v1/chat/completions")["properties"]
    assert fields["n"] == {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}
    assert fields["store"] == {"const": False}
    assert fields["user"] == {"type": "string"}
    assert schema_of("/v1/messages")["required"] == ["model", "messages", "max_tokens"]


def test_unknown_fields_are_refused_and_it_says_so() -> None:
    assert all(schema_of(post.path)["additionalProperties"] is False for post in openapi.POSTS)


def test_streams() -> None:
    for post in openapi.POSTS:
        answer = TREE["paths"][post.path]["post"]["responses"]["200"]["content"]
        assert ("text/event-stream" in answer) == post.streams
