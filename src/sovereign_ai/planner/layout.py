"""Which devices run which rank, and the settings they can be given. Pure."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from sovereign_ai.catalog.gpus import capability
from sovereign_ai.planner import memory
from sovereign_ai.planner.rooms import Room
from sovereign_ai.spec import LinkKind, Noun


class Rung(NamedTuple):
    """Settings, from generous to frugal."""

    max_num_seqs: int
    batched_tokens: int
    eager: bool


BATCHES = (256, 128, 64, 32, 16, 8)
"""Values of max_num_seqs that are tried."""

FRUGAL_TOKENS = 512
"""Tokens of a step where memory is short: prompts are computed in more, smaller steps."""


@cache
def ladder(concurrency: int) -> tuple[Rung, ...]:
    """Settings to try for so many requests at once, the last three being frugal: the smallest batch, then
    short steps, then no CUDA graphs."""
    least = max(BATCHES[-1], 1 << (concurrency - 1).bit_length())
    sizes = [size for size in BATCHES if size >= least] or [least]
    rungs = [Rung(size, memory.BATCHED_TOKENS, False) for size in sizes]
    return (*rungs, Rung(sizes[-1], FRUGAL_TOKENS, False), Rung(sizes[-1], FRUGAL_TOKENS, True))


class Layout(Noun, frozen=True, kw_only=True):
    """Devices in the order of ranks: `pp` stages of `tp` devices each; `link` is the weakest among them."""

    rooms: tuple[Room, ...]
    tp: int = 1
    pp: int = 1
    link: LinkKind = "host"

    @property
    def stages(self) -> tuple[tuple[Room, ...], ...]:
        return tuple(self.rooms[at : at + self.tp] for at in range(0, len(self.rooms), self.tp))

    @property
    def mixed(self) -> bool:
        """Whether the cards are of different kinds."""
        return len({room.card.name for room in self.rooms}) > 1

    @property
    def capability(self) -> str:
        """The oldest card's: every rank runs the same kernels."""
        return min((room.device.compute_capability or "0.0" for room in self.rooms), key=capability)

    @property
    def cards(self) -> str:
        """`2× RTX 3080 10GB at TP=2`."""
        names: dict[str, int] = {}
        for room in self.rooms:
            name = room.card.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
            names[name] = names.get(name, 0) + 1
        ways = [f"TP={self.tp}"] * (self.tp > 1) + [f"PP={self.pp}"] * (self.pp > 1)
        cards = " + ".join(f"{count}× {name}" for name, count in names.items())
        return " ".join([cards, *(["at"] if ways else []), *ways])

    @property
    def label(self) -> str:
        """`2× RTX 3080 10GB at TP=2 (tier primary, node rig)`."""
        tiers = ", ".join(dict.fromkeys(room.tier.name for room in self.rooms))
        return f"{self.cards} (tier {tiers}, node {self.rooms[0].node})"
