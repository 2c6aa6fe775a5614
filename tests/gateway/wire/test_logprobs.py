from __future__ import annotations

import json

import pytest

from sovereign_ai.errors import UpstreamFailed
from sovereign_ai.gateway.wire.logprobs import (
    IMPOSSIBLE,
    Entry,
    LegacyLogprobs,
    chat_content,
    read_positions,
)


def test_as_seen_on_the_wire() -> None:
    text = (
        '[{"57": {"logprob": -1.5, "rank": 3, "decoded_token": "I"},'
        ' "49": {"logprob": -0.5, "rank": 1, "decoded_token": "A"}}]'
    )
    assert read_positions(text) == [{"57": Entry(-1.5, 3, "I"), "49": Entry(-0.5, 1, "A")}]


@pytest.mark.parametrize("text", [None, "null", "[]", "[{}]"])
def test_none(text: str | None) -> None:
    assert read_positions(text) == []


def test_infinity_as_python_writes_it() -> None:
    text = json.dumps([{"1": {"logprob": float("-inf"), "rank": 1, "decoded_token": "-Infinity"}}])
    assert read_positions(text) == [{"1": Entry(IMPOSSIBLE, 1, "-Infinity")}]


def test_something_else_is_a_failure_of_the_engine() -> None:
    with pytest.raises(UpstreamFailed):
        read_positions('{"a": 1}')


def test_the_token_that_came_is_the_first_whatever_its_rank() -> None:
    position = {"9": Entry(-3.0, 7, "c"), "1": Entry(-0.1, 1, "a"), "2": Entry(-0.2, 2, "b")}
    (token,) = chat_content([position], 2)
    assert token["token"] == "c"
    assert [entry["token"] for entry in token["top_logprobs"]] == ["a", "b"]
    assert chat_content([position], 0)[0]["top_logprobs"] == []


def test_legacy_without_alternatives() -> None:
    shape = LegacyLogprobs(0).shape([{"9": Entry(-3.0, None, None)}])
    assert shape == {"tokens": [""], "token_logprobs": [-3.0], "top_logprobs": None, "text_offset": [0]}
