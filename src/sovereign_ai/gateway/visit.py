"""What the gateway knows of the request that the current task serves."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sovereign_ai.gateway.admission import KeyRecord
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.limits import Meter, Reservation

if TYPE_CHECKING:
    from sovereign_ai.gateway.tracing import Trace


class Visit:
    """A request with a good key, from the check of the key to its last byte. `deadline` of waiting, on the
    monotonic clock."""

    def __init__(self, record: RequestRecord, key: KeyRecord, deadline: float) -> None:
        self.record, self.key, self.deadline = record, key, deadline
        self.failed = False
        """Whether the last endpoint failed before the client saw anything of it."""
        self.begun: list[Meter] = []
        """Meters that count it as running."""
        self.reserved: list[list[tuple[Meter, Reservation]]] = []
        """For each of its parts: where its tokens are counted."""
        self.elsewhere: Callable[[], bool] | None = None
        """Whether another model could answer now; None where none may."""
        self.trace: Trace | None = None
        """Its spans; None where none are made."""


CURRENT: ContextVar[Visit | None] = ContextVar("visit", default=None)
"""Between the one who knows the key (app) and the one who knows the tokens (usher) lie the formats, which
need to know neither. Tasks that a request starts inherit it."""
