from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.wire.sse import EventSplitter

_PAYLOADS = st.lists(st.text().map(lambda text: b'{"text_output":%s}' % _json(text)), max_size=6)


def _json(text: str) -> bytes:
    return json.dumps(text).encode()


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(_PAYLOADS, st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_any_cutting_of_the_stream_gives_the_same_events(
    payloads: list[bytes], places: list[int], end: bytes
) -> None:
    splitter = EventSplitter()
    stream = b"".join(b"data: " + payload + end for payload in payloads)
    found = [event for part in _cut(stream, places) for event in splitter.feed(part)]
    assert found == payloads


def test_an_unfinished_event_is_held_back() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2") == [b"1"]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\n\n") == [b"2"]


def test_other_lines_are_no_events() -> None:
    assert EventSplitter().feed(b": comment\nevent: x\nid: 1\ndata:3\n\n") == [b"3"]
