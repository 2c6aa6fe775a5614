from __future__ import annotations

from datetime import UTC, datetime
from math import floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sovereign_ai.errors import QuotaExceeded, RateLimited, TokensLimited
from sovereign_ai.gateway.admission import NO_LIMITS, Limits
from sovereign_ai.gateway.limits import (
    PERIODS_KEPT,
    Budget,
    Meter,
    Reservation,
    Window,
    day_of,
    month_of,
    until_next_month_s,
    until_tomorrow_s,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
LIMIT = 100


def test_days_and_months_are_those_of_utc() -> None:
    assert (day_of(NOON), month_of(NOON)) == ("2026-01-31", "2026-01")
    assert until_tomorrow_s(NOON) == 12 * 3600
    assert until_next_month_s(NOON) == 12 * 3600
    december = datetime(2026, 12, 30, 23, tzinfo=UTC).timestamp()
    assert until_next_month_s(december) == 25 * 3600
    assert day_of(-1.0) == "1969-12-31"


@given(st.floats(min_value=-1e9, max_value=1e10))
@example(-5e-324)
def test_the_next_period_begins_when_it_is_said_to(wall: float) -> None:
    assert 0 <= until_tomorrow_s(wall) <= until_next_month_s(wall)
    assert day_of(wall + until_tomorrow_s(wall) + 1) > day_of(wall)
    assert month_of(wall + until_next_month_s(wall) + 1) > month_of(wall)


class Counted(RuleBasedStateMachine):
    """A window against a list of all events, in which nothing is ever thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.now = Window(), 1000.25
        self.events: list[tuple[list[int], list[float]]] = []

    @rule(seconds=st.floats(min_value=0, max_value=90))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(0, 50))
    def add(self, count: int) -> None:
        if self.window.wait_s(count, LIMIT, self.now) == 0:
            self.events.append((self.window.add(count, self.now), [self.now, count]))

    @rule(index=st.integers(0, 30), part=st.floats(0, 1))
    def correct(self, index: int, part: float) -> None:
        if index < len(self.events):
            slot, event = self.events[index]
            less = floor(event[1] * part)
            self.window.correct(slot, -less)
            event[1] -= less

    @rule(count=st.integers(0, 120))
    def wait(self, count: int) -> None:
        """It passes then, and one second earlier it would not."""
        wait_s = self.window.wait_s(count, LIMIT, self.now)
        if wait_s is None:
            assert count > LIMIT
        elif wait_s:
            assert self._within(self.now + wait_s) + count <= LIMIT
            assert self._within(self.now + wait_s - 1) + count > LIMIT

    def _within(self, now: float) -> float:
        return sum(count for _, (at, count) in self.events if floor(now) - floor(at) <= 60)

    @invariant()
    def never_more_than_the_limit_in_any_minute(self) -> None:
        assert self.window.total(self.now) == self._within(self.now)
        assert sum(count for _, (at, count) in self.events if self.now - at <= 60) <= LIMIT


TestWindow = Counted.TestCase


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 60)), max_size=30))
def test_whatever_the_clock_does_the_window_neither_overflows_nor_sticks(
    steps: list[tuple[float, int]],
) -> None:
    window, now = Window(), 0.0
    for now, count in steps:
        wait_s = window.wait_s(count, LIMIT, now)
        assert wait_s is not None
        assert 0 <= wait_s <= 61
        if wait_s == 0:
            window.add(count, now)
        assert window.total(now) <= LIMIT
    assert window.total(now + 61) == 0


def test_a_correction_of_what_counts_no_longer() -> None:
    window = Window()
    slot = window.add(5, 0.0)
    assert window.total(100.0) == 0
    window.correct(slot, -3)
    window.add(1, 100.0)
    window.correct(slot, -2)
    assert window.total(100.0) == 1


def test_a_budget_remembers_some_periods() -> None:
    budget = Budget({"a": 1})
    for period in ("b", "c", "a", "d"):
        budget.add(period, 10)
    assert [budget.spent(period) for period in "abcd"] == [11, 0, 10, 10]
    assert PERIODS_KEPT == 3
    budget.add("b", -5)
    assert budget.spent("b") == 0


def test_without_limits_everything_passes() -> None:
    meter = Meter()
    meter.check_request(NO_LIMITS, 0.0, "this key")
    meter.check_tokens(NO_LIMITS, 10**12, 0.0, NOON, "this key")


def test_concurrency() -> None:
    meter = Meter()
    meter.begin(0.0)
    with pytest.raises(RateLimited, match="1 request at the same time") as caught:
        meter.check_request(Limits(concurrency=1), 0.0, "this key")
    assert (caught.value.http_status, caught.value.code) == (429, "rate_limit_exceeded")
    assert (caught.value.reason, caught.value.retry_after_s) == ("concurrency", 1.0)
    meter.end()
    meter.check_request(Limits(concurrency=1), 0.0, "this key")


def test_requests_per_minute() -> None:
    meter, limits = Meter(), Limits(requests_per_minute=2)
    for now in (0.5, 10.0):
        meter.check_request(limits, now, "this key")
        meter.begin(now)
        meter.end()
    with pytest.raises(RateLimited, match="2 requests per minute") as caught:
        meter.check_request(limits, 20.0, "this key")
    assert caught.value.retry_after_s == 41.0
    meter.check_request(limits, 61.0, "this key")


def test_requests_per_minute_of_none_at_all() -> None:
    with pytest.raises(RateLimited) as caught:
        Meter().check_request(Limits(requests_per_minute=0), 0.0, "this key")
    assert caught.value.retry_after_s is None


def test_tokens_per_minute() -> None:
    meter, limits = Meter(), Limits(tokens_per_minute=100)
    first = meter.reserve(90, 0.0, NOON)
    with pytest.raises(TokensLimited, match="may take 20, prompt and longest answer") as caught:
        meter.check_tokens(limits, 20, 1.0, NOON, "this key")
    assert caught.value.retry_after_s == 60.0
    meter.settle(first, 30)
    meter.check_tokens(limits, 20, 1.0, NOON, "this key")
    with pytest.raises(TokensLimited) as never:
        meter.check_tokens(limits, 101, 1.0, NOON, "this key")
    assert never.value.retry_after_s is None


def test_budgets() -> None:
    meter = Meter({"2026-01-31": 40}, {"2026-01": 400})
    meter.check_tokens(Limits(tokens_per_day=50), 10, 0.0, NOON, "this key")
    with pytest.raises(QuotaExceeded, match="of which 10 are left") as caught:
        meter.check_tokens(Limits(tokens_per_day=50), 11, 0.0, NOON, "this key")
    assert (caught.value.error_type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert (caught.value.reason, caught.value.retry_after_s) == ("tokens_per_day", 12 * 3600)
    with pytest.raises(QuotaExceeded, match="of which 0 are left") as caught:
        meter.check_tokens(Limits(tokens_per_month=400), 1, 0.0, NOON, "this key")
    assert caught.value.reason == "tokens_per_month"
    with pytest.raises(QuotaExceeded) as caught:
        meter.check_tokens(Limits(tokens_per_day=50), 51, 0.0, NOON, "this key")
    assert caught.value.retry_after_s is None, "it never will"
    meter.check_tokens(Limits(tokens_per_day=50), 50, 0.0, NOON + 86400, "this key")


def test_what_is_settled_tomorrow_counts_today() -> None:
    meter = Meter()
    held = meter.reserve(100, 0.0, NOON)
    meter.settle(held, 7)
    meter.settle(held, 7)
    assert (meter.days.spent("2026-01-31"), meter.months.spent("2026-01")) == (7, 7)
    assert meter.days.spent("2026-02-01") == 0


class Spending(RuleBasedStateMachine):
    """Requests come, end and are settled while both clocks jump; no limit is ever exceeded."""

    limits = Limits(concurrency=3, requests_per_minute=10, tokens_per_minute=100, tokens_per_day=300)

    def __init__(self) -> None:
        super().__init__()
        self.meter, self.now, self.wall = Meter(), 0.0, NOON
        self.held: list[Reservation] = []
        self.spent: dict[str, int] = {}

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    @rule(seconds=st.floats(-100_000, 100_000))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.wall = min(NOON + 80_000, max(NOON - 80_000, self.wall + seconds))

    @rule(tokens=st.integers(1, 120))
    def ask(self, tokens: int) -> None:
        try:
            self.meter.check_request(self.limits, self.now, "it")
            self.meter.check_tokens(self.limits, tokens, self.now, self.wall, "it")
        except RateLimited as error:
            assert error.retry_after_s is None or error.retry_after_s > 0
            return
        self.meter.begin(self.now)
        self.held.append(self.meter.reserve(tokens, self.now, self.wall))

    @rule(part=st.floats(0, 1), index=st.integers(0, 2))
    def end(self, part: float, index: int) -> None:
        if index < len(self.held):
            held = self.held.pop(index)
            used = floor(held.tokens * part)
            self.meter.settle(held, used)
            self.meter.end()
            self.spent[held.day] = self.spent.get(held.day, 0) + used

    @invariant()
    def within_all_limits(self) -> None:
        assert self.meter.running == len(self.held) <= 3
        assert 0 <= self.meter.tokens.total(self.now) <= 100
        assert self.meter.requests.total(self.now) <= 10
        for day in {*self.spent, *(held.day for held in self.held)}:
            reserved = sum(held.tokens for held in self.held if held.day == day)
            assert self.meter.days.spent(day) == self.spent.get(day, 0) + reserved <= 300


TestMeter = Spending.TestCase


def test_when_a_window_is_empty_again() -> None:
    window = Window()
    assert window.reset_s(5.0) == 0
    window.add(1, 5.5)
    window.add(1, 7.5)
    assert window.reset_s(10.0) == 58.0
