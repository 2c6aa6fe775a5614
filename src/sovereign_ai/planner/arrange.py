"""Wishes and an inventory → the best plan: candidates, an exact choice, and what each device then holds.
Pure."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from sovereign_ai.catalog.releases import DEFAULT_RELEASE, Release, release
from sovereign_ai.catalog.speed import Constants
from sovereign_ai.config import PlannerSettings
from sovereign_ai.errors import PlanError
from sovereign_ai.planner import reasons
from sovereign_ai.planner.arguments import engine_arguments, engine_environment
from sovereign_ai.planner.candidates import SCALE, Candidate, Search, Tried, check_tier
from sovereign_ai.planner.cpu import CPU_VLLM, cpu_fit, need, settle
from sovereign_ai.planner.packing import Demand, Option, Placement, Pool, Problem
from sovereign_ai.planner.pins import resolve_pins
from sovereign_ai.planner.rooms import NOTHING_MEASURED, Room, Site, sites
from sovereign_ai.planner.sizing import MARGIN_BYTES, Fit, enlarge, is_made, with_curve
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Deployment, Inventory, Node, Plan, Rejected, Tier, Unplaced

LARGE = 64
"""Devices from which on a plan may be 1 % below the best: proving the rest takes longer than it is worth."""

LARGE_GAP = 0.01

LEAST_WEIGHT = 0.001
"""Of the model with the largest share: below it, scores could no longer tell good from bad."""

TIME_LIMIT_S = 20.0
"""Bound on one search, for instances that nobody has seen; the best found is taken, and the plan says so."""

UNPROVED = "the search ran out of time: this plan fits, a better one may exist"


class Chosen(NamedTuple):
    """One copy on its devices. `shared`: others are on its device too."""

    wish: Wish
    fit: Fit
    shared: bool

    @property
    def rooms(self) -> tuple[Room, ...]:
        return self.fit.layout.rooms


class Study(NamedTuple):
    """All that a plan was chosen from."""

    sites: tuple[Site, ...]
    warnings: tuple[str, ...]
    candidates: list[list[Candidate]]
    tried: list[list[Tried]]


def study(
    inventory: Inventory,
    tiers: Sequence[Tier],
    wishes: Sequence[Wish],
    *,
    engine: Release,
    settings: PlannerSettings,
    current: Plan | None = None,
    measured: Mapping[str, Constants] = NOTHING_MEASURED,
    mixing: bool = False,
    thorough: bool = False,
) -> Study:
    """The ways to serve every wish; `thorough`: those that are not worth a try too. Raises ConfigError for
    pins and tiers that contradict the inventory."""
    pins = resolve_pins(inventory, wishes)
    where, warnings = sites(inventory, tiers, pins=pins, current=current, measured=measured)
    search = Search(where, engine, settings.prefer, mixing=mixing, thorough=thorough)
    candidates, tried = [], []
    for wish, weight in zip(wishes, _weights(wishes), strict=True):
        check_tier(wish, where)
        found, looked_at = search.candidates(wish, pins.get(wish.name, frozenset()), weight)
        candidates.append(found)
        tried.append(looked_at)
    return Study(where, warnings, candidates, tried)


def _weights(wishes: Sequence[Wish]) -> list[float]:
    """What a model's speed counts: 1 for the model with the largest share of the traffic."""
    largest = max((wish.share for wish in wishes), default=1.0)
    return [max(LEAST_WEIGHT, wish.share / largest) for wish in wishes]


def make_plan(
    inventory: Inventory,
    tiers: Sequence[Tier],
    wishes: Sequence[Wish],
    *,
    engine: Release | None = None,
    settings: PlannerSettings = PlannerSettings(),  # noqa: B008  frozen
    current: Plan | None = None,
    measured: Mapping[str, Constants] = NOTHING_MEASURED,
) -> Plan:
    """The best plan; the same inputs give the same plan, byte for byte.

    `current` is the plan that runs now: a copy moves only where that buys more than `settings.move_cost`.
    `measured`: card's name → what was measured on it, in place of what the catalog knows of its engine.
    Raises PlanError where a wish fits nowhere at all, with what is missing; a wish that only loses its
    place to others is in the plan's `unplaced`."""
    engine = engine or release(DEFAULT_RELEASE)
    made = None
    # Mixtures of cards for everybody only where like cards do not serve everybody.
    for mixing in (False, True):
        found = study(
            inventory,
            tiers,
            wishes,
            engine=engine,
            settings=settings,
            current=current,
            measured=measured,
            mixing=mixing,
        )
        made = _arranged(found, wishes, engine, settings, current, scarce=mixing)
        if not made.unplaced:
            break
    assert made is not None  # noqa: S101  the loop has run
    return msgspec.structs.replace(
        made,
        tiers=tuple(tiers),
        inventory=digest(inventory),
        warnings=(*made.warnings, *_warnings(inventory, made, engine)),
    )


def _datacenter(node: Node) -> bool:
    """Whether all of a node's cards are data-centre cards, which CUDA's compatibility package serves."""
    consumer = ("GEFORCE", "RTX", "GTX", "TITAN", "QUADRO")
    return not any(word in device.name.upper() for device in node.devices for word in consumer)


def _warnings(inventory: Inventory, made: Plan, engine: Release) -> list[str]:
    """Drivers that are too old for the release, on nodes that are to run it; and cards at fault."""
    used = {one.node for one in made.deployments if one.release}
    old = [
        f"node {node.name}: {reason}"
        for node in inventory.nodes
        if node.name in used
        and (reason := engine.refuses_driver(node.driver_version, datacenter=_datacenter(node)))
    ]
    faults = [
        f"node {node.name}: {device.id} ({device.name}) is left out: {device.fault}"
        for node in inventory.nodes
        for device in node.devices
        if device.fault
    ]
    return old + faults


def _arranged(
    found: Study,
    wishes: Sequence[Wish],
    engine: Release,
    settings: PlannerSettings,
    current: Plan | None,
    *,
    scarce: bool,
) -> Plan:
    """`scarce`: not everybody had a place before. Among many cards sharing is looked at only then: it costs
    half the speed, and offering it everywhere makes the choice several times as large."""
    if not found.sites:
        raise PlanError("no device is in any tier", "see what each says of itself: sovereign inventory")
    impossible = [at for at, ways in enumerate(found.candidates) if not ways]
    if impossible:
        raise reasons.nothing_fits([(wishes[at], found.tried[at]) for at in impossible])
    large = sum(len(pool.rooms) for site in found.sites for pool in site.pools) > LARGE
    problem, ways = _problem(found, wishes, settings, current, sharing=scarce or not large)
    from sovereign_ai.planner.solver import solve  # loads HiGHS: half a second, and only planning needs it

    solved = solve(problem, gap=LARGE_GAP if large else 0.0, time_limit_s=TIME_LIMIT_S)
    crowd = Counter(device for one in solved.placements for device in one.devices)
    chosen = _settled(
        [
            _chosen(found, wishes, ways[one.option], one, shared=crowd[one.devices[0]] > 1)
            for one in solved.placements
        ],
        engine,
    )
    made = _deployments(
        [_curved(one, engine) for one in _of_one_context(chosen)],
        wishes,
        engine,
        {wish.name: tried for wish, tried in zip(wishes, found.tried, strict=True)},
    )
    return Plan(
        tiers=(),
        deployments=made,
        rejected=reasons.rejected(wishes, found.tried, made),
        unplaced=_unplaced(chosen, wishes),
        warnings=(*found.warnings, *([] if solved.proved else [UNPROVED])),
    )


def options_of(
    inventory: Inventory,
    tiers: Sequence[Tier],
    wish: Wish,
    made: Plan,
    *,
    engine: Release,
    settings: PlannerSettings = PlannerSettings(),  # noqa: B008  frozen
    measured: Mapping[str, Constants] = NOTHING_MEASURED,
) -> tuple[Rejected, ...]:
    """Every option of `wish` that `made` does not take, with the reason."""
    found = study(
        inventory, tiers, [wish], engine=engine, settings=settings, measured=measured, thorough=True
    )
    mine = [one for one in made.deployments if one.model == wish.name]
    return reasons.explain(wish, found.tried[0], [reasons.taken(one) for one in mine])


def digest(inventory: Inventory) -> str:
    """A short name for what a plan was made for."""
    return hashlib.sha256(msgspec.json.encode(inventory)).hexdigest()[:12]


Way = tuple[int, int]
"""(wish, candidate) by their numbers."""


def _problem(
    found: Study,
    wishes: Sequence[Wish],
    settings: PlannerSettings,
    current: Plan | None,
    *,
    sharing: bool = True,
) -> tuple[Problem, list[Way]]:
    pools = [pool for site in found.sites for pool in site.pools]
    held = {
        (one.model, one.node, frozenset(one.devices), one.format)
        for one in (current.deployments if current else ())
    }
    options: list[Option] = []
    ways: list[Way] = []
    for at, (wish, weight) in enumerate(zip(wishes, _weights(wishes), strict=True)):
        bonus = round(settings.move_cost * SCALE * weight)
        for number, way in enumerate(found.candidates[at]):
            rooms = [room for pool, count in way.uses for room in pools[pool].rooms[:count]]
            whole = all(count == len(pools[pool].rooms) for pool, count in way.uses)
            here = (wish.name, rooms[0].node, frozenset(room.id for room in rooms), way.fit.format)
            offered = way if sharing or way.alone is None else way._replace(shared_score=None)
            options.append(_option(at, number, offered, bonus if whole and here in held else 0))
            ways.append((at, number))
    return (
        Problem(
            pools=tuple(
                Pool(
                    node=pool.node,
                    count=len(pool.rooms),
                    capacity_bytes=_capacity(pool.first, pool.usable_bytes),
                )
                for pool in pools
            ),
            demands=tuple(
                Demand(name=wish.name, copies=wish.replicas, priority=wish.priority) for wish in wishes
            ),
            options=tuple(options),
        ),
        ways,
    )


def _capacity(room: Room, usable_bytes: int) -> int:
    return max(0, usable_bytes - (MARGIN_BYTES if room.device.kind == "gpu" else 0))


def _option(at: int, number: int, way: Candidate, bonus: int) -> Option:
    score = way.score if way.score is not None else way.shared_score
    assert score is not None  # noqa: S101  a candidate works alone or shared
    return Option(
        demand=at,
        uses=way.uses,
        score=score + bonus,
        shared_score=None if way.shared_score is None else way.shared_score + bonus,
        need_bytes=way.least.needed_bytes if way.least else 0,
        key=f"{at:06}/{way.uses}/{way.fit.format}/{way.fit.layout.tp}/{number:06}",
    )


def _chosen(found: Study, wishes: Sequence[Wish], way: Way, placement: Placement, *, shared: bool) -> Chosen:
    """The copy on the devices that it was given: the candidate was sized on others like them. One that was
    ready to share but is alone (`shared` false) has the device for itself."""
    at, number = way
    candidate = found.candidates[at][number]
    sized = candidate.least if shared or candidate.alone is None else candidate.alone
    assert sized is not None  # noqa: S101  what is not sized is not offered
    pools = [pool for site in found.sites for pool in site.pools]
    given = [pools[pool].rooms[place] for pool, place in placement.devices]
    rooms = sorted(given, key=lambda room: (-room.card.bandwidth, room.device.index, room.id))
    layout = msgspec.structs.replace(sized.layout, rooms=tuple(rooms))
    return Chosen(wishes[at], msgspec.structs.replace(sized, layout=layout), shared)


def _settled(chosen: Sequence[Chosen], engine: Release) -> list[Chosen]:
    """What is left on a device that copies share goes to their KV caches."""
    sharing: dict[tuple[str, str], list[Chosen]] = defaultdict(list)
    settled: list[Chosen] = []
    for one in chosen:
        room = one.rooms[0]
        if one.shared or room.device.kind == "cpu":
            sharing[room.key].append(one)
        else:
            settled.append(one)
    for group in sharing.values():
        cpu = group[0].rooms[0].device.kind == "cpu"
        settled += _on_one_cpu(group) if cpu else _on_one_gpu(group, engine)
    return settled


def _on_one_cpu(group: Sequence[Chosen]) -> list[Chosen]:
    """Embedding models keep what they have; the others share the rest by the CPU's rule."""
    free = group[0].rooms[0].usable_bytes
    embeddings = [one for one in group if one.wish.model.task == "embed"]
    chats = [one for one in group if one.wish.model.task == "chat"]
    left = free - sum(one.fit.needed_bytes for one in embeddings)
    needs = settle([need(one.wish, free, context=one.fit.context) for one in chats], left)
    return embeddings + [
        one._replace(fit=cpu_fit(settled, one.fit.layout)) for one, settled in zip(chats, needs, strict=True)
    ]


def _on_one_gpu(group: Sequence[Chosen], engine: Release) -> list[Chosen]:
    room = group[0].rooms[0]
    chats = sum(1 for one in group if one.wish.model.task == "chat")
    left = room.usable_bytes - MARGIN_BYTES - sum(one.fit.needed_bytes for one in group)
    return [
        one._replace(fit=enlarge(one.wish, one.fit, left // chats, engine))
        if one.wish.model.task == "chat"
        else one
        for one in group
    ]


def _of_one_context(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Copies of a model answer behind one name: what one of them cannot take, none may promise."""
    least: dict[str, int] = {}
    for one in chosen:
        least[one.wish.name] = min(least.get(one.wish.name, one.fit.context), one.fit.context)
    return [
        one._replace(fit=msgspec.structs.replace(one.fit, context=least[one.wish.name])) for one in chosen
    ]


def _curved(one: Chosen, engine: Release) -> Chosen:
    if one.wish.model.task == "embed" or one.rooms[0].device.kind == "cpu":
        return one
    return one._replace(fit=with_curve(one.wish, one.fit, engine))


def _deployments(
    chosen: Sequence[Chosen],
    wishes: Sequence[Wish],
    engine: Release,
    tried: Mapping[str, Sequence[Tried]],
) -> tuple[Deployment, ...]:
    """In the order of the wishes; copies by node and slot."""
    order = {wish.name: at for at, wish in enumerate(wishes)}
    ranked = sorted(
        chosen,
        key=lambda one: (
            order[one.wish.name],
            one.rooms[0].node,
            min(room.device.index for room in one.rooms),
        ),
    )
    copies: Counter[str] = Counter()
    found = []
    for one in ranked:
        because = reasons.because(one.wish, one.fit, tried[one.wish.name])
        found.append(_deployment(one, copies[one.wish.name], engine, because))
        copies[one.wish.name] += 1
    return tuple(found)


def _deployment(one: Chosen, replica: int, engine: Release, because: str) -> Deployment:
    fit, model = one.fit, one.wish.model
    cpu = one.rooms[0].device.kind == "cpu"
    return Deployment(
        model=model.name,
        version=model.version,
        task=model.task,
        engine="triton",
        backend="vllm" if model.task == "chat" else "embedding",
        node=one.rooms[0].node,
        tier=one.rooms[0].tier.name,
        devices=tuple(room.id for room in one.rooms),
        context=fit.context,
        max_num_seqs=fit.rung.max_num_seqs,
        memories=fit.memories,
        engine_args=engine_arguments(one.wish, fit, engine),
        environment={} if cpu else engine_environment(fit),
        reason=reasons.why(one.wish, fit, shared=one.shared) + because,
        replica=replica,
        release="" if cpu else engine.name,
        vllm=str(CPU_VLLM) if cpu else engine.vllm,
        tp=fit.layout.tp,
        pp=fit.layout.pp,
        layer_partition=fit.partition,
        format=fit.format,
        to_make=not cpu and model.task == "chat" and not is_made(one.wish, fit.format),
        kv_tokens=fit.kv_tokens,
        speed=fit.speed,
    )


def _unplaced(chosen: Sequence[Chosen], wishes: Sequence[Wish]) -> tuple[Unplaced, ...]:
    copies = Counter(one.wish.name for one in chosen)
    winners = sorted({one.wish.name for one in chosen})
    return tuple(
        Unplaced(
            model=wish.name,
            reason=f"{copies[wish.name]} of {wish.replicas} copies have a place; the devices serve "
            + ", ".join(winners),
        )
        for wish in wishes
        if copies[wish.name] < wish.replicas
    )
