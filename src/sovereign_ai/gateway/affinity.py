"""Which endpoint has read the beginning of a prompt before, so that its KV cache is used again. Pure.

Engines keep the keys and values of prompts in blocks, each of which is good only behind the same beginning.
So a prompt is cut into blocks of characters, each is named by a hash over itself and all before it, and the
map remembers who was sent it last. A conversation's next turn begins with all of the last one, a shared
system prompt with itself: both find their way back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

BLOCK_CHARACTERS = 512
"""About 128 tokens: eight of vLLM's blocks. Shorter prompts are cheaper to read than to steer."""

MAX_BLOCKS = 64
"""Blocks of a prompt that are looked at, 32,768 characters: what all turns share is at the beginning."""

CAPACITY = 65_536
"""Blocks remembered, the longest unused forgotten first: about 10 MB."""


class Affinity:
    """Of one model. Endpoints by name."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def shares(self, text: str) -> dict[str, int]:
        """Endpoint → blocks of the beginning of `text` that it has read, one behind the other."""
        found: dict[str, int] = {}
        for count, key in enumerate(_keys(text), start=1):
            name = self._seen.get(key)
            if name is None:
                break
            found[name] = count
        return found

    def remember(self, text: str, name: str) -> None:
        """`text` was sent to the endpoint `name`."""
        for key in _keys(text):
            self._seen[key] = name
            self._seen.move_to_end(key)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)


def _keys(text: str) -> Iterator[int]:
    """Hashes of the whole blocks of `text`, each over all before it. Python's own hash is seeded anew in
    every process, so nobody can aim at collisions; one would only cost a slower answer."""
    key = 0
    for start in range(
        0, min(len(text) // BLOCK_CHARACTERS, MAX_BLOCKS) * BLOCK_CHARACTERS, BLOCK_CHARACTERS
    ):
        key = hash((key, text[start : start + BLOCK_CHARACTERS]))
        yield key
