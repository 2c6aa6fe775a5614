"""Which of a route's endpoints gets the next request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

AFFINITY_BLOCKS = 8
"""So many blocks of a prompt's beginning read before are worth one request: an endpoint that has them may be
busier by one. More would let one long conversation crowd an endpoint while others idle."""


class Candidate(Protocol):
    """`outstanding` counts requests that were sent and are not answered yet, `weight` is the endpoint's
    predicted speed (in any unit that the route's endpoints share), `context` tokens it holds at most."""

    @property
    def name(self) -> str: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def context(self) -> int: ...
    @property
    def available(self) -> bool: ...


_C = TypeVar("_C", bound=Candidate)
_NOBODY: Mapping[str, int] = {}


def pick(candidates: Iterable[_C], *, tokens: int = 0, seen: Mapping[str, int] = _NOBODY) -> _C | None:
    """The available candidate that would be done first, the earlier of equals; None without any.

    `tokens`: what the prompt and its answer need at least; smaller contexts are passed over. `seen`: endpoint
    → blocks of the prompt's beginning that it has read before.
    """
    fitting = (one for one in candidates if one.available and one.context >= tokens)
    return min(fitting, key=lambda one: _wait(one, seen.get(one.name, 0)), default=None)


def _wait(candidate: Candidate, blocks: int) -> float:
    """Work ahead of the next request and that request itself, in time by the endpoint's own speed."""
    saved = min(1.0, blocks / AFFINITY_BLOCKS)
    return (candidate.outstanding + 1 - saved) / candidate.weight
