"""When an endpoint that fails is left alone, and when it is tried again. Pure: the time is an argument.

closed ──LEAST_FAILURES in a row──► open ──its pause is over──► half-open ──one success──► closed
                                      ▲                            │
                                      └──── one failure: twice the pause ◄

Health checks ask whether a server answers; the breaker sees whether it answers requests, which a server that
is "ready" may well not.
"""

from __future__ import annotations

LEAST_FAILURES = 5
"""Failures in a row before an endpoint is ejected. One in ten at random makes five in a row once in 100,000
requests; a broken engine makes them at once."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Breaker:
    """Of one endpoint. `allows` before a request, `success` or `failure` after it."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until: float | None = None
        self._trial_since: float | None = None
        self.ejections = 0

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is ejected, a trial under way included."""
        return self._open_until is not None

    @property
    def is_troubled(self) -> bool:
        """Whether the last request failed: only then a success changes anything."""
        return self._failures > 0 or self.is_open

    def allows(self, now: float) -> bool:
        """Whether a request may go there. Half-open: only while no trial is under way."""
        if self._open_until is None:
            return True
        return now >= self._open_until and not self._trying(now)

    def began(self, now: float) -> None:
        """A request goes there: half-open, it is the trial."""
        if self._open_until is not None and now >= self._open_until:
            self._trial_since = now

    def success(self) -> None:
        self._failures, self._pause_s = 0, FIRST_PAUSE_S
        self._open_until = self._trial_since = None

    def failure(self, now: float) -> bool:
        """Whether this one ejects the endpoint."""
        self._failures += 1
        if self._open_until is not None:
            if self._trial_since is None:
                return False  # it was sent before the ejection: nothing new
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        elif self._failures < LEAST_FAILURES:
            return False
        self._open_until, self._trial_since = now + self._pause_s, None
        self.ejections += 1
        return True

    def _trying(self, now: float) -> bool:
        """A trial that was never ended (its client left) does not keep the endpoint out for ever."""
        return self._trial_since is not None and now - self._trial_since < LONGEST_PAUSE_S
