"""Rerank, tokenize and detokenize through the whole gateway."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.gateway.wire.rerank import cosine
from tests.gateway.fake_triton import FakeTriton, vector
from tests.gateway.running import CONTEXT, in_loop, running
from tests.gateway.test_tools import TOOL, knows_tools

DOCUMENTS: list[Any] = ["x" * 9, {"text": "ab"}, "abc"]


@in_loop
async def test_documents_are_ranked_by_cosine() -> None:
    async with running(FakeTriton()) as gateway:
        body = {"model": "minilm", "query": "ab", "documents": DOCUMENTS}
        status, answer = await gateway.post("/v1/rerank", body)
        assert status == 200
        assert answer["id"] == "rerank-1d"
        assert [result["index"] for result in answer["results"]] == [1, 2, 0]
        assert answer["results"][0]["relevance_score"] == pytest.approx(1.0)
        assert answer["results"][0]["document"] == {"text": "ab"}
        assert answer["results"][2]["relevance_score"] == pytest.approx(cosine(vector("ab"), vector("x" * 9)))
        assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


@in_loop
async def test_the_best_alone() -> None:
    async with running(FakeTriton()) as gateway:
        body = {"model": "minilm", "query": "ab", "documents": DOCUMENTS, "top_n": 1}
        _, answer = await gateway.post("/v1/rerank", {**body, "return_documents": False})
        assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": [{"title": "x", "text": "y"}]}, "documents[0].title"),
        ({"documents": ["ok", "w " * 9]}, "documents[1]"),
        ({"query": "w " * 9}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ({"model": "smol"}, "model"),
    ],
)
@in_loop
async def test_rerank_refusals(fields: dict[str, Any], param: str) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        body = {"model": "minilm", "query": "ab", "documents": DOCUMENTS, **fields}
        status, answer = await gateway.post("/v1/rerank", body)
        assert (status, answer["error"]["param"]) == (400, param)
        assert fake.bodies == []


def test_a_vector_without_direction_is_like_nothing() -> None:
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0.0
    assert cosine([1.0, 0.0], [-2.0, 0.0]) == -1.0


@in_loop
async def test_tokens_and_back() -> None:
    async with running(FakeTriton(), prompts=knows_tools()) as gateway:
        body = {"model": "smol", "prompt": "a b", "return_token_strs": True}
        status, answer = await gateway.post("/v1/tokenize", body)
        assert (status, answer) == (
            200,
            {"count": 2, "max_model_len": CONTEXT, "tokens": [0, 0], "token_strs": ["[UNK]", "[UNK]"]},
        )
        status, answer = await gateway.post("/v1/detokenize", {"model": "smol", "tokens": [0, 0]})
        assert (status, answer) == (200, {"prompt": "[UNK] [UNK]"})
        messages = [{"role": "user", "content": "x"}]
        _, plain = await gateway.post("/v1/tokenize", {"model": "smol", "messages": messages})
        _, tools = await gateway.post(
            "/v1/tokenize", {"model": "smol", "messages": messages, "tools": [TOOL]}
        )
        assert (plain["count"], plain["token_strs"], tools["count"]) == (2, None, 3)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/tokenize", {}, "prompt"),
        ("/v1/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/v1/tokenize", {"prompt": "x", "add_generation_prompt": False}, "prompt"),
        ("/v1/tokenize", {"prompt": "x", "continue_final_message": True}, "continue_final_message"),
        ("/v1/detokenize", {"tokens": [0, 1]}, "tokens[1]"),
        ("/v1/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/v1/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
@in_loop
async def test_token_refusals(path: str, fields: dict[str, Any], param: str) -> None:
    async with running(FakeTriton()) as gateway:
        status, answer = await gateway.post(path, {"model": "smol", **fields})
        assert (status, answer["error"]["param"]) == (400, param)
