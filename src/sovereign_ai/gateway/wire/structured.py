"""Answers that must be JSON: OpenAI's `response_format` in the words of vLLM's structured outputs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from sovereign_ai.gateway.wire.parsing import Body


class TextFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Anything."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class JsonSchema(Body, frozen=True, kw_only=True):
    """`name` and `description` are labels. The grammar follows `schema` whether `strict` or not."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema_: dict[str, Any] = field(name="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


def as_json(wanted: ResponseFormat) -> dict[str, Any] | None:
    """vLLM's `structured_outputs`; None where any text will do."""
    if isinstance(wanted, JsonSchemaFormat):
        return {"json": wanted.json_schema.schema_}
    return {"json_object": True} if isinstance(wanted, JsonObjectFormat) else None
