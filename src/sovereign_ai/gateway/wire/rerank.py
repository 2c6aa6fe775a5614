"""Documents in the order of their likeness to a query: the request and answer of Cohere's and Jina's rerank.

The score is the cosine of the embeddings of query and document, from -1 to 1: what an embedding model can
say. A cross-encoder's scores would be other numbers.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from sovereign_ai.gateway.wire.formats import encode
from sovereign_ai.gateway.wire.parsing import ANY_TEXT, Body
from sovereign_ai.gateway.wire.requests import NonEmpty, Positive

MAX_DOCUMENTS = 1000
"""Cohere's limit."""


class Document(Body, frozen=True, kw_only=True):
    text: NonEmpty


class RerankRequest(Body, frozen=True, kw_only=True):
    """`top_n`: so many of the best; all where it is left out."""

    NEUTRAL: ClassVar = {"user": ANY_TEXT}
    model: str
    query: NonEmpty
    documents: Annotated[list[NonEmpty | Document], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Positive | None = None
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        return [one.text if isinstance(one, Document) else one for one in self.documents]


def rerank_body(
    request: RerankRequest, id_: str, query: bytes, documents: Sequence[bytes], tokens: int
) -> bytes:
    """`query` and `documents`: vectors of little-endian float32; `tokens`: of all texts together."""
    scores = [cosine(array("f", query), array("f", row)) for row in documents]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    texts = request.texts if request.return_documents else []
    results = [_result(index, scores[index], texts) for index in order[: request.top_n]]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"id": id_, "model": request.model, "results": results, "usage": usage})


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """0 where a vector has no direction."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / length if length else 0.0


def _result(index: int, score: float, texts: Sequence[str]) -> dict[str, Any]:
    result = {"index": index, "relevance_score": score}
    return {**result, "document": {"text": texts[index]}} if texts else result
