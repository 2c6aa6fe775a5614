from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import ApiError, QuotaExceeded, RateLimited, TokensLimited, UpstreamUnavailable
from sovereign_ai.gateway import messages
from sovereign_ai.gateway.admission import Limits, digest
from sovereign_ai.gateway.limits import Rate
from sovereign_ai.gateway.messages import Frames, Message, error_of, pack, refusal_of
from sovereign_ai.gateway.totals import Family
from tests.gateway.running import KEY, key_table

RECORD = key_table().records[digest(KEY)]
RATES = [Rate("tokens", 10, 3, 1.5)]
REFUSAL = messages.Refusal("RateLimited", "too many", "concurrency", 1.0)
FAMILIES = [Family("a", "b", "counter", [("a_total", {"x": "y"}, 1.0)])]
ROW = (1.5, "key-1", "m", None, 200, 3, 4, None, 0.5, 0.0, 0, 1, None)

TO_COORDINATOR: list[Message] = [
    messages.Look(1, RECORD),
    messages.Enter(2, RECORD),
    messages.Leave(2, 7),
    messages.TakeBack(2),
    messages.Admit(2, 1, "m", 100, 12.5),
    messages.Release(2, 1),
    messages.Used(ROW),
    messages.Happened("m", "up", "dead"),
    messages.Busy("m", "up", 3),
    messages.Numbers(0, FAMILIES),
    messages.Scrape(4),
    messages.Ready(),
    messages.Broken("UsageError", "no", "do"),
]
TO_WORKER: list[Message] = [
    messages.Entered(2, RATES),
    messages.Admitted(2, 1, RATES, {"up": 3}),
    messages.Refused(2, 1, REFUSAL, True, RATES),
    messages.Happened("m", "up", "failed"),
    messages.Health([("m", "up", True)]),
    messages.Scrape(4),
    messages.Totals(4, b"text"),
]


def test_every_message_arrives_as_it_was_sent() -> None:
    read = Frames()
    sent = b"".join(map(pack, TO_COORDINATOR))
    assert [messages.from_worker(body) for body in read.feed(sent)] == TO_COORDINATOR
    sent = b"".join(map(pack, TO_WORKER))
    assert [messages.from_coordinator(body) for body in read.feed(sent)] == TO_WORKER


def test_the_limits_of_a_key_travel_with_it() -> None:
    limited = messages.Enter(1, type(RECORD)(id="k", name="n", prefix="", digest="", created=0.0,
                                             limits=Limits(tokens_per_day=5)))  # fmt: skip
    (body,) = Frames().feed(pack(limited))
    assert messages.from_worker(body) == limited


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_frames_may_be_cut_anywhere(texts: list[bytes], data: st.DataObject) -> None:
    sent = [messages.Totals(number, text) for number, text in enumerate(texts)]
    stream = b"".join(map(pack, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    read, found = Frames(), []
    for piece in pieces:
        found += [messages.from_coordinator(body) for body in read.feed(piece)]
    assert found == sent


@pytest.mark.parametrize("kind", [RateLimited, TokensLimited, QuotaExceeded])
@pytest.mark.parametrize("retry_after_s", [None, 2.5])
def test_a_refusal_is_raised_again_as_it_was(kind: type[RateLimited], retry_after_s: float | None) -> None:
    again = error_of(refusal_of(kind("no", reason="tokens_per_day", retry_after_s=retry_after_s)))
    assert type(again) is kind
    assert isinstance(again, RateLimited)
    assert (again.message, again.reason, again.retry_after_s) == ("no", "tokens_per_day", retry_after_s)


@pytest.mark.parametrize("kind", [UpstreamUnavailable, ApiError])
def test_so_is_what_is_no_limit(kind: type[ApiError]) -> None:
    again = error_of(refusal_of(kind("no", code="queue_timeout")))
    assert type(again) is kind
    assert (again.message, again.code) == ("no", "queue_timeout")
