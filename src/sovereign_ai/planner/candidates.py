"""Every way to serve a model on an inventory, and what each is worth; the rest with the reasons. Pure."""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from sovereign_ai.catalog.formats import format_facts
from sovereign_ai.catalog.releases import Release
from sovereign_ai.config import Prefer
from sovereign_ai.errors import ConfigError
from sovereign_ai.planner.cpu import least_on_cpu
from sovereign_ai.planner.embedding import fit_embedding
from sovereign_ai.planner.groups import Group, layouts, like_groups, mixed_groups, pinned_group
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.rooms import Pool, Site, every_room
from sovereign_ai.planner.sizing import Fit, Misfit, fit, formats_for
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Format

SCALE = 10_000
"""What the speed of the best option is worth, for the model with the largest share."""

FIDELITY = {0: 2.5, 1: 1.25, 2: 0.0}
"""What faithful weights are worth beside it: as given, 8 bit, 4 bit. Each step is worth more than all
speed, so that nothing is quantized that fits as it is, and nothing to 4 bit that fits in 8: 8 bit keeps 99
to 100 % of a model's quality, 4 bit 96 to 99 % (https://arxiv.org/abs/2411.02355). A policy, not a
measurement; `prefer: speed` leaves it out."""

PROMPT_SHARE = 0.1
"""Weight of prompt speed beside decoding in the (geometric) mean: of two that decode alike, the one that
reads prompts faster wins."""

SHARING = 0.5
"""What a copy's speed is worth on a device that it shares: two that compute at once have half of it each."""

EMBEDDING_WEIGHT = 0.2
"""What an embedding model's speed is worth against a chat model's: its answer is one pass, not hundreds."""

CARD = 0.05
"""What each further card costs, as a part of the best speed: a card left free takes over when another
dies."""

MIXING = 1.3
"""What it costs to mix kinds of cards, likewise: a little more than a step of fidelity, so that 8-bit
weights on cards that match come before faithful ones on cards that wait for each other."""

MIXING_FOR_SPEED = 0.15
"""The same with `prefer: speed`: a mixture has to be that much faster."""

CONTEXT = 0.03
"""What each doubling of the context beyond the least is worth where none is wished for, likewise."""

BASE = 2.0
"""What any way is worth, likewise: more than all costs together, or those of little worth would be told apart
no more."""

EMBEDDING_CARD = 0.4
"""What having the largest card to itself costs an embedding model, smaller ones in proportion: twice what
being the fastest is worth to it. It holds a gigabyte or two; large cards are for those that fill them."""

SPARE = 20
"""What using no memory at all would be worth: of two equal options the smaller cards win."""


class Tried(NamedTuple):
    """One way, and what became of it."""

    layout: Layout
    format: Format
    result: Fit | Misfit


class Candidate(NamedTuple):
    """A way that works. `uses` are (pool, how many) by the pools' numbers over all sites. `alone` has the
    devices for itself; `least` is the smallest that serves, for a device that is shared. Both were sized on
    devices like these, not on these very ones."""

    uses: tuple[tuple[int, int], ...]
    alone: Fit | None
    least: Fit | None
    score: int | None
    shared_score: int | None

    @property
    def fit(self) -> Fit:
        found = self.alone or self.least
        assert found is not None  # noqa: S101  a candidate has one of them
        return found


class _Way(NamedTuple):
    """A candidate before it is valued."""

    uses: tuple[tuple[int, int], ...]
    alone: Fit | None
    least: Fit | None


_Sized = tuple[Fit | Misfit, Fit | Misfit | None]


class Search:
    """Looks for the ways of one wish after the other; equal groups of cards on other nodes are sized once.

    What is looked at: groups of like cards, tensor-parallel ones before pipelines; mixtures of cards only
    for a wish that like cards hold nowhere in 8 bit, or with `mixing`. In a group of several cards the most
    faithful format that fits is taken (with `prefer: speed` all are compared). `thorough` looks at
    everything, to explain it."""

    def __init__(
        self,
        sites: Sequence[Site],
        release: Release,
        prefer: Prefer,
        *,
        mixing: bool = False,
        thorough: bool = False,
    ) -> None:
        self._sites, self._release, self._prefer = sites, release, prefer
        self._mixing, self._thorough = mixing or thorough, thorough
        self._numbers: dict[int, int] = {}
        self._kinds: dict[int, int] = {}
        known: dict[tuple[object, ...], int] = {}
        for number, pool in enumerate(pool for site in sites for pool in site.pools):
            self._numbers[id(pool)] = number
            self._kinds[id(pool)] = known.setdefault(_kind(pool), len(known))
        self._wishes: dict[tuple[object, ...], int] = {}
        self._sized: dict[tuple[object, ...], list[tuple[Tried, _Sized]]] = {}

    def candidates(
        self, wish: Wish, pinned: frozenset[tuple[str, str]], weight: float
    ) -> tuple[list[Candidate], list[Tried]]:
        """What works, valued with `weight` (the wish's share, 1 for the largest); and what was tried, equal
        groups of cards once. `pinned` are the devices that the wish insists on."""
        tried: dict[int, Tried] = {}
        ways: list[_Way] = []
        number = self._wishes.setdefault(_content(wish), len(self._wishes))
        if pinned:
            for site in self._sites:
                ways += self._of_group(wish, number, site, pinned_group(site, pinned), tried)
            return self._valued(wish, ways, weight), list(tried.values())
        single = wish.model.task == "embed"
        allowed = [(site, _alike(_allowed(site, wish))) for site in self._sites]
        for site, kinds in allowed:
            for pools in kinds:
                ways += self._of_like(wish, number, site, pools, 1 if single else None, tried)
        if not single and (self._mixing or not self._held(wish, ways, fidelity_at_most=1)):
            for site, kinds in allowed:
                for group in mixed_groups(kinds):
                    ways += self._of_group(wish, number, site, group, tried)
        return self._valued(wish, ways, weight), list(tried.values())

    def _of_like(
        self,
        wish: Wish,
        number: int,
        site: Site,
        pools: Sequence[Pool],
        most: int | None,
        tried: dict[int, Tried],
    ) -> list[_Way]:
        """One card, two, … of one kind. A pipeline is of use only where no fewer cards hold the model
        well."""
        ways: list[_Way] = []
        for group in like_groups(pools, most):
            pipelines = self._thorough or not self._held(wish, ways, fidelity_at_most=0)
            ways += self._of_group(wish, number, site, group, tried, pipelines=pipelines)
        return ways

    def _held(self, wish: Wish, ways: Sequence[_Way], *, fidelity_at_most: int) -> bool:
        """Whether one of them has the model so faithfully."""
        return any(way.alone and fidelity(wish, way.alone.format) <= fidelity_at_most for way in ways)

    def _of_group(
        self,
        wish: Wish,
        number: int,
        site: Site,
        group: Group,
        tried: dict[int, Tried],
        *,
        pipelines: bool = True,
    ) -> list[_Way]:
        if not group:
            return []
        link = site.link(room.id for pool, count in group for room in pool.rooms[:count])
        kinds: Counter[int] = Counter()
        for pool, count in group:
            kinds[self._kinds[id(pool)]] += count
        key = (number, pipelines, link, *kinds.items())
        if key not in self._sized:
            found = [
                sized
                for layout in layouts(group, link, pipelines=pipelines)
                for sized in self._of_layout(wish, layout)
            ]
            self._sized[key] = found
        uses = tuple((self._numbers[id(pool)], count) for pool, count in group)
        ways = []
        for one, (alone, least) in self._sized[key]:
            tried.setdefault(id(one), one)
            works = alone if isinstance(alone, Fit) else None, least if isinstance(least, Fit) else None
            if works != (None, None):
                ways.append(_Way(uses, *works))
        return ways

    def _of_layout(self, wish: Wish, layout: Layout) -> list[tuple[Tried, _Sized]]:
        found: list[tuple[Tried, _Sized]] = []
        enough: int | None = None
        for form in _formats(wish, layout, self._release):
            rank = format_facts(form).rank
            if enough is not None and rank > enough and not self._thorough:
                break
            sized = self._size(wish, layout, form)
            found.append((Tried(layout, form, sized[0]), sized))
            # A single device may be shared, for which a smaller format is another chance.
            if isinstance(sized[0], Fit) and len(layout.rooms) > 1 and self._prefer == "quality":
                enough = rank
        return found

    def _size(self, wish: Wish, layout: Layout, form: Format) -> _Sized:
        if layout.rooms[0].device.kind == "cpu":
            on_cpu = least_on_cpu(wish, layout)
            return on_cpu, on_cpu
        if wish.model.task == "embed":
            embedding = fit_embedding(wish, layout)
            return embedding, embedding
        least = fit(wish, layout, form, self._release, least=True) if len(layout.rooms) == 1 else None
        return fit(wish, layout, form, self._release), least

    def _valued(self, wish: Wish, ways: Sequence[_Way], weight: float) -> list[Candidate]:
        fits = {id(one): one for way in ways for one in (way.alone, way.least) if one}
        best = max((pace(one) for one in fits.values()), default=1.0)
        most = max((one.total_bytes for one in fits.values()), default=1)
        largest = max((one.layout.rooms[0].cuda_bytes for one in fits.values()), default=1)
        alone = {key: self._value(wish, one, 1.0, best, most, largest, weight) for key, one in fits.items()}
        shared = {
            key: self._value(wish, one, SHARING, best, most, largest, weight) for key, one in fits.items()
        }
        return [
            Candidate(
                way.uses,
                way.alone,
                way.least,
                alone[id(way.alone)] if way.alone else None,
                shared[id(way.least)] if way.least else None,
            )
            for way in ways
        ]

    def _value(
        self, wish: Wish, found: Fit, part: float, best: float, most: int, largest: int, weight: float
    ) -> int:
        """`part` of the speed counts, and of the card; `largest` is the largest card there is."""
        counts = part * (EMBEDDING_WEIGHT if wish.model.task == "embed" else 1.0)
        faithful = FIDELITY[fidelity(wish, found.format)] if self._prefer == "quality" else 0.0
        longer = CONTEXT * math.log2(found.context / wish.least_context) if wish.model.task == "chat" else 0.0
        mixing = MIXING if self._prefer == "quality" else MIXING_FOR_SPEED
        cards = CARD * (len(found.layout.rooms) - 1) + mixing * found.layout.mixed
        if wish.model.task == "embed":
            cards += part * EMBEDDING_CARD * found.layout.rooms[0].cuda_bytes / largest
        worth = SCALE * (BASE + faithful + counts * pace(found) / best + longer - cards)
        worth += SPARE * (1 - found.total_bytes / most)
        return 1 + max(0, round(weight * worth))


def _check_pinned_tier(wish: Wish, sites: Sequence[Site]) -> None:
    for room in every_room(sites):
        pinned = any(room.id.startswith(name) for name in wish.devices)
        if pinned and wish.tier not in (room.tier.name, room.tier.role):
            raise ConfigError(
                f"{wish.at}`{wish.name}` insists on {room.id}, which is in tier `{room.tier.name}`, "
                f"and on tier `{wish.tier}`",
                "leave one of the two out",
            )


def _allowed(site: Site, wish: Wish) -> list[Pool]:
    tiers = ((pool, pool.first.tier) for pool in site.pools)
    return [pool for pool, tier in tiers if wish.tier in (None, tier.name, tier.role)]


def _alike(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Pools of one tier whose cards are equally fast and large, best first."""
    found: dict[tuple[object, ...], list[Pool]] = defaultdict(list)
    for pool in pools:
        found[pool.first.tier.name, pool.first.card.key, pool.first.cuda_bytes].append(pool)
    return list(found.values())


def _kind(pool: Pool) -> tuple[object, ...]:
    """What decides how a model is set up on cards of a pool."""
    room = pool.first
    return (
        room.card.key,
        room.card.host_bytes_per_s,
        room.cuda_bytes,
        pool.usable_bytes,
        room.device.compute_capability,
        room.device.kind,
    )


def _content(wish: Wish) -> tuple[object, ...]:
    """What decides how a wish is set up: two models of one shape are set up alike."""
    model = wish.model
    return (
        model.shape,
        model.task,
        model.given_format,
        wish.context,
        wish.concurrency,
        wish.formats,
        wish.stored,
        wish.min_tokens_per_s,
    )


def fidelity(wish: Wish, form: Format) -> int:
    """0 for the checkpoint as it is, even a quantized one; else by the format."""
    return 0 if form == wish.model.given_format else format_facts(form).rank


def pace(found: Fit) -> float:
    """One number for a fit's speed: the geometric mean of one stream and of the full batch, tokens a
    second, and a little of prompts."""
    speed = found.speed
    decode = math.sqrt(max(speed.decode_one, 1e-9) * max(speed.decode_full, 1e-9))
    return float(decode ** (1 - PROMPT_SHARE) * max(speed.prefill, 1e-9) ** PROMPT_SHARE)


def _formats(wish: Wish, layout: Layout, release: Release) -> tuple[Format, ...]:
    if wish.model.task == "embed" or layout.rooms[0].device.kind == "cpu":
        return ("float32",)
    return formats_for(wish, layout.capability, release)


def check_tier(wish: Wish, sites: Sequence[Site]) -> None:
    """Raises ConfigError where the wish names a tier that does not exist, or devices outside of it."""
    tiers = {room.tier.name: room.tier for site in sites for pool in site.pools for room in pool.rooms}
    known = {*tiers, *(tier.role for tier in tiers.values())}
    if wish.tier is None:
        return None
    if wish.tier in known:
        return _check_pinned_tier(wish, sites)
    near = difflib.get_close_matches(wish.tier, sorted(known), n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"tiers here: {', '.join(sorted(known))}"
    raise ConfigError(f"{wish.at}there is no tier `{wish.tier}` for `{wish.name}`", hint)
