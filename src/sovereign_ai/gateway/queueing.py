"""The queue before one model: who goes next, and who finds no place. Pure: the time is an argument.

Interactive requests go before batch ones. Within a priority the keys take turns, whatever number of requests
each of them has waiting; within a key the first goes first. When all places are taken, a newcomer displaces
the newest request of the key that holds most places, where that is of a lower priority or holds at least two
more than the newcomer's own key: one key that floods a queue keeps nobody else out of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sovereign_ai.gateway.admission import Priority

PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


class Ticket:
    """A request that waits or runs. `deadline`: of waiting, on the clock of `Line.admit`."""

    def __init__(self, key: str, priority: Priority, deadline: float) -> None:
        self.key, self.priority, self.deadline = key, priority, deadline


class Line:
    """The queue of one model, and how many of its requests run. At most `places` wait."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._waiting: dict[Priority, dict[str, dict[Ticket, None]]] = {one: {} for one in PRIORITIES}
        self._count = 0
        self._running: set[Ticket] = set()

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    @property
    def running(self) -> int:
        return len(self._running)

    def join(self, ticket: Ticket, capacity: int) -> Ticket | None:
        """Run at once where there is room and nobody waits, else wait. Returns who has to go where no place
        is left: the newcomer, or somebody whom it displaced."""
        if not self._count and self.running < capacity:
            self._running.add(ticket)
            return None
        if self._count >= self.places:
            victim = self._victim(ticket)
            if victim is None:
                return ticket
            self.leave(victim)
            self._add(ticket)
            return victim
        self._add(ticket)
        return None

    def admit(self, capacity: int, now: float) -> list[Ticket]:
        """Let as many in as `capacity` has room for. Who waited beyond its deadline is dropped."""
        admitted: list[Ticket] = []
        while self._count and self.running < capacity:
            ticket = self._next()
            if now < ticket.deadline:
                self._running.add(ticket)
                admitted.append(ticket)
        return admitted

    def leave(self, ticket: Ticket) -> None:
        """It has ended, or waits no longer. Who is not here may leave too."""
        if ticket in self._running:
            self._running.discard(ticket)
            return
        queue = self._waiting[ticket.priority].get(ticket.key, {})
        if ticket in queue:
            del queue[ticket]
            self._count -= 1
            if not queue:
                del self._waiting[ticket.priority][ticket.key]

    def waiting(self) -> Iterator[Ticket]:
        for keys in self._waiting.values():
            for queue in keys.values():
                yield from queue

    def is_running(self, ticket: Ticket) -> bool:
        return ticket in self._running

    def _add(self, ticket: Ticket) -> None:
        self._waiting[ticket.priority].setdefault(ticket.key, {})[ticket] = None
        self._count += 1

    def _next(self) -> Ticket:
        """Taken out of the queue; its key goes to the end of the round."""
        keys = next(keys for keys in self._waiting.values() if keys)
        key = next(iter(keys))
        queue = keys.pop(key)
        ticket = next(iter(queue))
        del queue[ticket]
        self._count -= 1
        if queue:
            keys[key] = queue
        return ticket

    def _victim(self, newcomer: Ticket) -> Ticket | None:
        """Called with a full queue only; one without places has nobody to displace."""
        priority = next((one for one in reversed(PRIORITIES) if self._waiting[one]), None)
        if priority is None:
            return None
        queues = self._waiting[priority]
        longest = max(queues.values(), key=len)
        mine = len(queues.get(newcomer.key, ()))
        lower = PRIORITIES.index(priority) > PRIORITIES.index(newcomer.priority)
        fairer = priority == newcomer.priority and len(longest) >= mine + 2
        return next(reversed(longest)) if lower or fairer else None
