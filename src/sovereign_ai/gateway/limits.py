"""How much was asked for, and whether more may be. Pure: both clocks are arguments.

Per minute we count in a sliding window of 60 s, in slots of one second. A token bucket would be one number
instead of 61, but lets twice its limit through within a minute (a full bucket, and what flows in meanwhile),
and cannot take a reservation back exactly: what a bucket has lost since is gone. Here a settled request is as
if its true number of tokens had been known at its beginning.

No clock is trusted. `now` is monotonic, `wall` is unix seconds; either may jump. The window's own time never
goes back, and days and months are counted by name, so that a day that is left and entered again has kept its
count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import date, timedelta
from functools import lru_cache

import msgspec

from sovereign_ai.errors import QuotaExceeded, RateLimited, TokensLimited
from sovereign_ai.gateway.admission import Limits

WINDOW_S = 60
PERIODS_KEPT = 3
"""Days (and months) whose counts are remembered: yesterday's requests are settled today."""

_EPOCH = date(1970, 1, 1)
DAY_S = 86400


class Rate(msgspec.Struct, frozen=True):
    """A limit per minute of `requests` or `tokens`, what is left of it, and seconds until all of it is."""

    kind: str
    limit: int
    left: int
    reset_s: float


class Window:
    """What happened in the last 60 s. An event counts until its whole second is 60 s ago."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        self._total = 0
        self._second = 0
        self._offset = 0.0

    def total(self, now: float) -> int:
        """Counted in the last 60 s."""
        second = self._at(now)
        while self._slots and self._slots[0][0] < second - WINDOW_S:
            self._total -= self._slots.popleft()[1]
        return self._total

    def add(self, count: int, now: float) -> list[int]:
        """The slot that it was counted in, for `correct`."""
        second = self._at(now)
        if not self._slots or self._slots[-1][0] != second:
            self._slots.append([second, 0])
        slot = self._slots[-1]
        slot[1] += count
        self._total += count
        return slot

    def correct(self, slot: list[int], difference: int) -> None:
        """What was counted in `slot` was `difference` more. Nothing, where the slot counts no longer."""
        slot[1] += difference
        if self._slots and slot[0] >= self._slots[0][0]:
            self._total += difference

    def wait_s(self, count: int, limit: int, now: float) -> float | None:
        """Seconds until `count` more stay within `limit`, 0: now; None: never."""
        left = self.total(now) + count - limit
        if left <= 0:
            return 0.0
        for second, counted in self._slots:
            left -= counted
            if left <= 0:
                return second + WINDOW_S + 1 - (now + self._offset)
        return None

    def reset_s(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return self._slots[-1][0] + WINDOW_S + 1 - (now + self._offset) if self.total(now) else 0.0

    def _at(self, now: float) -> int:
        """The window's own second. A clock that jumped back goes on from where it was."""
        second = math.floor(now + self._offset)
        if second < self._second:
            self._offset += self._second - second
            second = self._second
        self._second = second
        return second


class Budget:
    """Tokens spent by period: `2026-01-31` or `2026-01`."""

    def __init__(self, spent: Mapping[str, int] | None = None) -> None:
        self._spent = dict(spent or {})

    def spent(self, period: str) -> int:
        return self._spent.get(period, 0)

    def add(self, period: str, tokens: int) -> None:
        # To the end, because the one longest unused is forgotten: a clock that is set wrong for a while must
        # not push today out.
        self._spent[period] = max(0, self._spent.pop(period, 0) + tokens)
        if len(self._spent) > PERIODS_KEPT:
            del self._spent[next(iter(self._spent))]


class Reservation:
    """Tokens that a request may take, and where they were counted."""

    def __init__(self, tokens: int, slot: list[int], day: str, month: str) -> None:
        self.tokens, self.slot, self.day, self.month = tokens, slot, day, month


class Meter:
    """Of one key or one model. The limits are arguments: they may be others for each request."""

    def __init__(
        self, days: Mapping[str, int] | None = None, months: Mapping[str, int] | None = None
    ) -> None:
        self.running = 0
        self.requests, self.tokens = Window(), Window()
        self.days, self.months = Budget(days), Budget(months)

    def check_request(self, limits: Limits, now: float, whose: str) -> None:
        """Raises RateLimited unless one more request may begin. `whose` completes "The limit of …"."""
        most = limits.concurrency
        if most is not None and self.running >= most:
            raise RateLimited(
                f"The limit of {whose} is {_count(most, 'request')} at the same time",
                reason="concurrency",
                retry_after_s=1.0,
            )
        self._check_rate(limits, now, whose)

    def _check_rate(self, limits: Limits, now: float, whose: str) -> None:
        most = limits.requests_per_minute
        wait_s = 0.0 if most is None else self.requests.wait_s(1, most, now)
        if wait_s != 0:
            raise RateLimited(
                f"The limit of {whose} is {_count(most or 0, 'request')} per minute",
                reason="requests_per_minute",
                retry_after_s=wait_s,
            )

    def begin(self, now: float) -> None:
        self.running += 1
        self.requests.add(1, now)

    def end(self) -> None:
        self.running -= 1

    def check_tokens(self, limits: Limits, tokens: int, now: float, wall: float, whose: str) -> None:
        """Raises TokensLimited or QuotaExceeded unless so many tokens may be spent."""
        most = limits.tokens_per_minute
        if most is not None and (wait_s := self.tokens.wait_s(tokens, most, now)) != 0:
            raise TokensLimited(
                f"The limit of {whose} is {most:,} tokens per minute; {_asked(tokens)}",
                reason="tokens_per_minute",
                retry_after_s=wait_s,
            )
        if limits.tokens_per_day is not None:
            spent, left_s = self.days.spent(day_of(wall)), until_tomorrow_s(wall)
            _check_budget(limits.tokens_per_day, spent, tokens, "day", whose, left_s)
        if limits.tokens_per_month is not None:
            spent, left_s = self.months.spent(month_of(wall)), until_next_month_s(wall)
            _check_budget(limits.tokens_per_month, spent, tokens, "month", whose, left_s)

    def reserve(self, tokens: int, now: float, wall: float) -> Reservation:
        """Count them as spent until `settle` knows better."""
        day, month = day_of(wall), month_of(wall)
        self.days.add(day, tokens)
        self.months.add(month, tokens)
        return Reservation(tokens, self.tokens.add(tokens, now), day, month)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """So many it were in the end, whatever was reserved."""
        difference = tokens - reservation.tokens
        reservation.tokens = tokens
        self.tokens.correct(reservation.slot, difference)
        self.days.add(reservation.day, difference)
        self.months.add(reservation.month, difference)


def day_of(wall: float) -> str:
    """`2026-01-31`, in UTC."""
    return _day_name(math.floor(wall / DAY_S))


def month_of(wall: float) -> str:
    """`2026-01`, in UTC."""
    return day_of(wall)[:7]


def until_tomorrow_s(wall: float) -> float:
    return DAY_S - _since_midnight_s(wall)


def until_next_month_s(wall: float) -> float:
    today = _EPOCH + timedelta(days=math.floor(wall / DAY_S))
    first = date(today.year + today.month // 12, today.month % 12 + 1, 1)
    return (first - today).days * DAY_S - _since_midnight_s(wall)


def _since_midnight_s(wall: float) -> float:
    """`%` rounds otherwise than the division that names the day."""
    return wall - math.floor(wall / DAY_S) * DAY_S


@lru_cache(maxsize=8)
def _day_name(days: int) -> str:
    """`days` since 1970. It is asked for several times a request, and changes once a day."""
    return (_EPOCH + timedelta(days=days)).isoformat()


def _check_budget(most: int, spent: int, tokens: int, period: str, whose: str, left_s: float) -> None:
    if spent + tokens <= most:
        return
    left = f"{max(0, most - spent):,}"
    raise QuotaExceeded(
        f"The budget of {whose} is {most:,} tokens per {period} (UTC), of which {left} are left; "
        f"{_asked(tokens)}",
        reason=f"tokens_per_{period}",
        retry_after_s=left_s if tokens <= most else None,
    )


def _asked(tokens: int) -> str:
    return f"this request may take {tokens:,}, prompt and longest answer together: lower max_tokens"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
