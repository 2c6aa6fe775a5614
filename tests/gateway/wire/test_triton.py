from __future__ import annotations

import json
import struct

import pytest

from sovereign_ai.errors import InvalidRequest, UpstreamFailed
from sovereign_ai.gateway.wire import triton
from sovereign_ai.gateway.wire.triton import Event


def test_generate_body_asks_for_everything_the_answer_needs() -> None:
    body = json.loads(triton.generate_body("hi", {"max_tokens": 3, "stop": ["\n"]}))
    assert json.loads(body.pop("sampling_parameters")) == {"max_tokens": 3, "stop": ["\n"]}
    assert body == {
        "text_input": "hi",
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_an_event_as_seen_on_the_wire() -> None:
    event = triton.read_event(
        b'{"finish_reason":"None","model_name":"smol","model_version":"1",'
        b'"num_input_tokens":37,"num_output_tokens":1,"text_output":" France"}'
    )
    assert event == Event(" France", "None", 37, 1)


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"text_output": 1}', b'{"text_output":"\xff"}'])
def test_something_else_is_a_failure_of_the_engine(payload: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        triton.read_event(payload)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (None, None),
        ("None", None),
        ("", None),
        ("stop", "stop"),
        ("length", "length"),
        ("repetition", "stop"),
    ],
)
def test_finish_reasons(reason: str | None, expected: str | None) -> None:
    assert triton.finish_reason(Event(finish_reason=reason)) == expected


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_engine_that_gives_up_has_not_finished(reason: str) -> None:
    with pytest.raises(UpstreamFailed):
        triton.finish_reason(Event(finish_reason=reason))


def test_error_messages() -> None:
    assert triton.error_message(b'{"error":"no"}') == "no"
    assert triton.error_message(b'data: {"error":"no"}\n\n') == "no"
    assert triton.error_message(b"<html>\xff") == "<html>\ufffd"


def test_a_refusal_is_named_after_what_was_asked_for() -> None:
    fields = {"structured_outputs": "text.format", "logit_bias": "logit_bias"}

    def named(message: str, fields: dict[str, str] = fields) -> str | None:
        return triton.named_refusal(InvalidRequest(message), fields).param

    assert named("Unexpected keyword argument 'logit_bias'") == "logit_bias"
    assert named("'NoneType' object has no attribute 'lora_name'") == "text.format"
    assert named("token 5 in logit_bias is out of vocabulary") == "logit_bias"
    assert named("Grammar error: no") == "text.format"
    assert named("Grammar error: no", {"logit_bias": "logit_bias"}) is None
    assert named("something else") is None
    assert named("something else", {}) is None
    known = InvalidRequest("x", param="y")
    assert triton.named_refusal(known, fields) is known


def test_refusals() -> None:
    assert isinstance(triton.refusal(400, "top_p must be in (0, 1]"), InvalidRequest)
    assert isinstance(triton.refusal(400, "Request for unknown model: 'x' is not found"), UpstreamFailed)
    assert isinstance(triton.refusal(500, "anything"), UpstreamFailed)


def test_dead_model_processes() -> None:
    assert triton.is_dead("Stub process 'smol_0_0' is not healthy.")
    assert triton.is_dead("EngineCore encountered an issue. See stack trace (above) for the root cause.")
    assert isinstance(triton.refusal(400, "EngineCore encountered an issue."), UpstreamFailed)
    assert not triton.is_dead("busy")


def test_infer_body() -> None:
    body = json.loads(triton.infer_body(["a", "b"]))
    assert body["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]}]
    assert [output["name"] for output in body["outputs"]] == ["embedding", "num_tokens"]


def infer_answer(
    *, rows: int, promised: int, names: tuple[str, str] = ("embedding", "num_tokens")
) -> tuple[bytes, int]:
    outputs = [
        {
            "name": names[1],
            "datatype": "INT32",
            "shape": [rows, 1],
            "parameters": {"binary_data_size": 4 * rows},
        },
        {
            "name": names[0],
            "datatype": "FP32",
            "shape": [promised, 2],
            "parameters": {"binary_data_size": 8 * rows},
        },
    ]
    head = json.dumps({"outputs": outputs}).encode()
    counts, vectors = struct.pack(f"<{rows}i", *range(rows)), struct.pack(f"<{2 * rows}f", *range(2 * rows))
    return head + counts + vectors, len(head)


def test_embeddings_in_any_order_of_outputs() -> None:
    body, head = infer_answer(rows=2, promised=2)
    found = triton.read_embeddings(body, head, texts=2)
    assert (found.dimensions, found.tokens) == (2, (0, 1))
    assert [struct.unpack("<2f", row) for row in found.rows()] == [(0, 1), (2, 3)]


@pytest.mark.parametrize("texts", [1, 3])
def test_a_wrong_number_of_embeddings_is_a_failure(texts: int) -> None:
    body, head = infer_answer(rows=2, promised=2)
    with pytest.raises(UpstreamFailed, match="number"):
        triton.read_embeddings(body, head, texts)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b"", 0),
        (b"\xff", 1),
        (b"{}", 2),
        infer_answer(rows=1, promised=1, names=("vector", "num_tokens")),
        (infer_answer(rows=1, promised=1)[0][:-5], infer_answer(rows=1, promised=1)[1]),
        (infer_answer(rows=1, promised=1)[0][:-9], infer_answer(rows=1, promised=1)[1]),
    ],
)
def test_anything_else_is_a_failure(body: bytes, head: int) -> None:
    with pytest.raises(UpstreamFailed):
        triton.read_embeddings(body, head, texts=1)
