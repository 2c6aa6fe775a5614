"""The agent's rounds: each one measures, whatever the API server does, and tells it what it does not know."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from sovereign_ai.agent.announcing import announced, announcement, handed_out_twice
from sovereign_ai.agent.board import Board, Snapshot
from sovereign_ai.agent.knowledge import Change, changes, differing, remembered, wanted_tokens
from sovereign_ai.agent.measuring import Reading
from sovereign_ai.agent.nodeapi import NodeApi, NodeFacts
from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.published import tokens_of
from sovereign_ai.spec import Node

log = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_MAX_S = 5.0, 60.0
"""Before an API server that failed is asked again: doubled each time, up to a minute."""
PENDING_MAX = 64
"""Events that wait for the API server; the oldest give way, and are in the log."""


class Agent:
    """What one node's agent knows from round to round. `clock` gives seconds since 1970.

    `hand_out=False`: keep every token at 0, because another mechanism hands the cards out.
    """

    def __init__(
        self,
        measure: Callable[[], Reading],
        api: NodeApi,
        board: Board,
        clock: Callable[[], float],
        *,
        hand_out: bool = True,
    ) -> None:
        self._measure, self._api, self._board, self._clock = measure, api, board, clock
        self._hand_out = hand_out
        self._node: Node | None = None
        self._tokens: dict[str, str] = {}
        self._trouble = self._conflict = ""
        self._pending: deque[Change] = deque(maxlen=PENDING_MAX)
        self._waiting = 0
        self._serial = count()
        self._failures, self._ask_again = 0, 0.0
        self.failure = ""
        """Why the cluster does not know what was measured; "" where it does."""

    def round(self) -> None:
        """Measure once and publish it. Raises InventoryError only where this machine cannot be measured."""
        reading, now = self._measure(), self._clock()
        facts = self._asked(now)
        before = self._node or (announced(facts.annotations) if facts else None)
        self._node = node = remembered(before, reading)
        trouble = reading.trouble if reading.trouble != self._trouble else ""
        self._trouble = reading.trouble
        self._note(changes(before, node, trouble))
        known = {*self._tokens, *(tokens_of(facts.capacity) if facts else ())}
        self._tokens = wanted_tokens(node, known, hand_out=self._hand_out)
        if facts is not None:
            self._publish(facts, node, now)
        self._board.show(Snapshot(node, reading.states, dict(self._tokens), now, not self.failure))

    def _note(self, found: Iterable[Change]) -> None:
        for change in found:
            log.log(logging.WARNING if change.warning else logging.INFO, "%s: %s", *change[:2])
            self._pending.append(change)

    def _asked(self, now: float) -> NodeFacts | None:
        """What the cluster says of the node; None while it cannot be asked."""
        if now < self._ask_again:
            return None
        try:
            return self._api.read()
        except InventoryError as error:
            self._failed(error, now)
            return None

    def _publish(self, facts: NodeFacts, node: Node, now: float) -> None:
        """The tokens first: a lost card is to get no pod."""
        try:
            self._set_tokens(facts)
            if wanted := announcement(node, facts.annotations, now):
                self._api.annotate(wanted)
        except InventoryError as error:
            self._failed(error, now)
            return
        if self._failures:
            log.info("the cluster is told again, after %d failures", self._failures)
        self._failures, self._ask_again, self.failure = 0, 0.0, ""
        self._board.published(now)
        self._check_conflict(node.name, facts)
        self._tell(now)

    def _set_tokens(self, facts: NodeFacts) -> None:
        wrong = differing(facts.capacity, self._tokens) | differing(facts.allocatable, self._tokens)
        if not wrong:
            return
        self._api.set_tokens(wrong)
        for name, value in sorted(wrong.items()):
            log.info("%s: %s, was %s", name, value, facts.capacity.get(name, "not there"))

    def _check_conflict(self, name: str, facts: NodeFacts) -> None:
        found = handed_out_twice(name, facts.capacity, self._tokens)
        if found and found != self._conflict:
            self._note([Change("GpuHandedOutTwice", found, warning=True)])
        self._conflict = found

    def _tell(self, now: float) -> None:
        """Events. Where they are not taken the tokens are true all the same: they are tried next round."""
        try:
            while self._pending:
                self._api.tell(self._pending[0], now, next(self._serial))
                self._pending.popleft()
        except InventoryError as error:
            self._board.failed()
            if len(self._pending) != self._waiting:
                log.warning("%d events wait: %s", len(self._pending), error.message)
        self._waiting = len(self._pending)

    def _failed(self, error: InventoryError, now: float) -> None:
        delay = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(self._failures, 10))
        self._failures, self._ask_again = self._failures + 1, now + delay
        self.failure = error.message
        self._board.failed()
        hint = f"; {error.hint}" if error.hint else ""
        log.warning("%s%s; measuring goes on, asked again in %.0f s", error.message, hint, delay)
