from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sovereign_ai.gateway.admission import Priority
from sovereign_ai.gateway.queueing import PRIORITIES, Line, Ticket

FAR = 1e9


def waiting(line: Line, *keys: str, priority: Priority = "interactive") -> list[Ticket]:
    tickets = [Ticket(key, priority, FAR) for key in keys]
    for ticket in tickets:
        assert line.join(ticket, 0) is None
    return tickets


def order(line: Line) -> str:
    return "".join(ticket.key for ticket in line.admit(1000, 0.0))


def test_with_room_nobody_waits() -> None:
    line = Line(0)
    ticket = Ticket("a", "interactive", FAR)
    assert line.join(ticket, 1) is None
    assert (line.running, len(line), line.is_running(ticket)) == (1, 0, True)
    late = Ticket("a", "interactive", FAR)
    assert line.join(late, 1) is late, "no place to wait"
    line.leave(ticket)
    line.leave(ticket)
    assert line.running == 0


def test_nobody_overtakes_who_waits() -> None:
    line = Line(10)
    first = waiting(line, "a")
    assert line.join(Ticket("b", "batch", FAR), 5) is None
    assert line.running == 0
    assert line.admit(1, 0.0) == first


def test_keys_take_turns() -> None:
    line = Line(10)
    waiting(line, *"aaaabbc")
    assert order(line) == "abcabaa"


def test_interactive_before_batch() -> None:
    line = Line(10)
    waiting(line, "x", "y", priority="batch")
    waiting(line, "a", "a")
    assert order(line) == "aaxy"


def test_a_key_does_not_lose_its_turn_by_leaving_the_queue_empty() -> None:
    line = Line(10)
    waiting(line, *"aab")
    assert [ticket.key for ticket in line.admit(1, 0.0)] == ["a"]
    waiting(line, "c")
    assert [ticket.key for ticket in line.admit(4, 0.0)] == ["b", "a", "c"]


def test_who_waited_too_long_is_dropped() -> None:
    line = Line(10)
    late = Ticket("a", "interactive", 5.0)
    line.join(late, 0)
    (other,) = waiting(line, "b")
    assert line.admit(1, 5.0) == [other]
    line.leave(late)
    assert len(line) == 0


def test_who_leaves_frees_a_place() -> None:
    line = Line(1)
    (first,) = waiting(line, "a")
    line.leave(first)
    line.leave(first)
    assert line.join(Ticket("b", "interactive", FAR), 0) is None


def test_a_full_queue_refuses() -> None:
    line = Line(2)
    waiting(line, "a", "b")
    newcomer = Ticket("c", "interactive", FAR)
    assert line.join(newcomer, 0) is newcomer
    own = Ticket("a", "interactive", FAR)
    assert line.join(own, 0) is own


def test_a_key_that_floods_the_queue_keeps_nobody_out() -> None:
    line = Line(3)
    tickets = waiting(line, "a", "a", "a")
    assert line.join(Ticket("b", "interactive", FAR), 0) is tickets[2]
    third = Ticket("b", "interactive", FAR)
    assert line.join(third, 0) is third, "two and two would be no fairer than this"
    assert sorted(ticket.key for ticket in line.waiting()) == ["a", "a", "b"]


def test_interactive_displaces_batch_but_never_the_reverse() -> None:
    line = Line(2)
    tickets = waiting(line, "x", "x", priority="batch")
    assert line.join(Ticket("a", "interactive", FAR), 0) is tickets[1]
    assert line.join(Ticket("a", "interactive", FAR), 0) is tickets[0]
    newcomer = Ticket("b", "batch", FAR)
    assert line.join(newcomer, 0) is newcomer


class Queue(RuleBasedStateMachine):
    """Any sequence of arrivals, departures, changes of capacity and of time."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.now, self.capacity = Line(6), 0.0, 2
        self.there: list[Ticket] = []
        self.over = 0

    @rule(key=st.sampled_from("abc"), priority=st.sampled_from(PRIORITIES), patience=st.floats(0, 20))
    def arrive(self, key: str, priority: Priority, patience: float) -> None:
        ticket = Ticket(key, priority, self.now + patience)
        before = len(self.line)
        gone = self.line.join(ticket, self.capacity)
        if gone is None:
            self.there.append(ticket)
            return
        assert before == len(self.line) == 6
        assert not self.line.is_running(gone)
        if gone is not ticket:
            self.there[self.there.index(gone)] = ticket
            assert (gone.priority, ticket.priority) == ("batch", "interactive") or gone.key != ticket.key

    @rule(index=st.integers(0, 20))
    def leave(self, index: int) -> None:
        if index < len(self.there):
            self.line.leave(self.there.pop(index))

    @rule(capacity=st.integers(0, 5))
    def capacity_changes(self, capacity: int) -> None:
        self.capacity = capacity

    @rule(seconds=st.floats(-5, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def admit(self) -> None:
        room = max(0, self.capacity - self.line.running)
        waiting = list(self.line.waiting())
        admitted = self.line.admit(self.capacity, self.now)
        living = [ticket for ticket in waiting if self.now < ticket.deadline]
        assert len(admitted) == min(room, len(living))
        assert all(ticket in living and self.line.is_running(ticket) for ticket in admitted)
        priorities = [PRIORITIES.index(ticket.priority) for ticket in admitted]
        assert priorities == sorted(priorities)
        self._takes_turns(living, admitted)
        dropped = {*waiting} - {*admitted} - {*self.line.waiting()}
        assert all(self.now >= ticket.deadline for ticket in dropped)
        self.there = [ticket for ticket in self.there if ticket not in dropped]

    def _takes_turns(self, living: list[Ticket], admitted: list[Ticket]) -> None:
        """Who still waits has had at most one turn less than anybody of its priority."""
        for priority in PRIORITIES:
            got = Counter(ticket.key for ticket in admitted if ticket.priority == priority)
            left = {t.key for t in living if t.priority == priority and t not in admitted}
            assert all(got[key] >= max(got.values(), default=0) - 1 for key in left)

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        waiting = list(self.line.waiting())
        running = [ticket for ticket in self.there if self.line.is_running(ticket)]
        assert len(waiting) == len({*waiting}) == len(self.line) <= 6
        assert self.line.running == len(running)
        assert {*waiting, *running} == {*self.there}


TestQueue = Queue.TestCase
