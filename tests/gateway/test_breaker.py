from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sovereign_ai.gateway.breaker import FIRST_PAUSE_S, LEAST_FAILURES, LONGEST_PAUSE_S, Breaker


def ejected() -> Breaker:
    breaker = Breaker()
    assert [breaker.failure(0.0) for _ in range(LEAST_FAILURES)] == [False] * (LEAST_FAILURES - 1) + [True]
    return breaker


def test_failures_in_a_row_eject() -> None:
    breaker = ejected()
    assert breaker.is_open
    assert not breaker.allows(FIRST_PAUSE_S - 0.001)
    assert breaker.ejections == 1


def test_one_success_between_them_does_not() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(LEAST_FAILURES - 1):
            assert not breaker.failure(0.0)
        breaker.success()
    assert breaker.allows(0.0)


def test_after_the_pause_one_request_tries() -> None:
    breaker = ejected()
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.began(FIRST_PAUSE_S)
    assert not breaker.allows(FIRST_PAUSE_S)
    breaker.success()
    assert breaker.allows(FIRST_PAUSE_S)
    assert not breaker.is_open


def test_a_trial_that_fails_doubles_the_pause() -> None:
    breaker, now = ejected(), FIRST_PAUSE_S
    for pause in (4.0, 8.0, 16.0, 32.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S):
        breaker.began(now)
        assert breaker.failure(now)
        assert not breaker.allows(now + pause - 0.001)
        now += pause
        assert breaker.allows(now)


def test_what_was_sent_before_the_ejection_changes_nothing() -> None:
    breaker = ejected()
    assert not breaker.failure(1.0)
    assert breaker.allows(FIRST_PAUSE_S)


def test_a_trial_that_never_ends_does_not_keep_it_out_for_ever() -> None:
    breaker = ejected()
    breaker.began(FIRST_PAUSE_S)
    assert not breaker.allows(FIRST_PAUSE_S + LONGEST_PAUSE_S - 1)
    assert breaker.allows(FIRST_PAUSE_S + LONGEST_PAUSE_S)


def test_one_failure_in_ten_hardly_ever_ejects() -> None:
    dice, breaker = random.Random(1), Breaker()
    for _ in range(100_000):
        if dice.random() < 0.1:
            breaker.failure(0.0)
        else:
            breaker.success()
    assert breaker.ejections <= 5  # once in 100,000 by chance


class Story(RuleBasedStateMachine):
    """Any order of requests, outcomes and waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.running = Breaker(), 0.0, 0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        if self.breaker.allows(self.now):
            half_open = self.breaker.is_open
            self.breaker.began(self.now)
            self.running += 1
            # Half-open, one is enough.
            assert not (half_open and self.breaker.allows(self.now))

    @rule(well=st.booleans())
    def end(self, well: bool) -> None:
        if not self.running:
            return
        self.running -= 1
        if well:
            self.breaker.success()
            assert self.breaker.allows(self.now)
        else:
            before = self.breaker.ejections
            is_ejected = self.breaker.failure(self.now)
            assert self.breaker.ejections - before == is_ejected
            assert not (is_ejected and self.breaker.allows(self.now))

    @invariant()
    def it_is_never_out_for_longer_than_a_pause_and_a_trial(self) -> None:
        assert self.breaker.allows(self.now + 2 * LONGEST_PAUSE_S)


TestStory = Story.TestCase
