"""Which of a route's endpoints gets the next request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """`outstanding` counts requests that were sent and are not answered yet."""

    @property
    def outstanding(self) -> int: ...
    @property
    def healthy(self) -> bool: ...


_C = TypeVar("_C", bound=Candidate)


def pick(candidates: Iterable[_C]) -> _C | None:
    """The healthy candidate with the least outstanding requests, the earlier of equals; None without any."""
    healthy = (candidate for candidate in candidates if candidate.healthy)
    return min(healthy, key=lambda candidate: candidate.outstanding, default=None)
