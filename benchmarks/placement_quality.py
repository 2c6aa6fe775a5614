"""What the plan is worth against the placement rule of the best known open cluster manager, on all examples.

    .venv/bin/python benchmarks/placement_quality.py

The rule, as GPUStack's documentation and source state it for vLLM: a model needs 1.2 × its checkpoint + 2
GiB; one card is taken if 90 % of its memory is enough, else cards of one node, largest memory first, until
90 % of their sum is enough, split by tensor parallelism over all of them. Models are placed in the order of
factory.yaml; a card serves one model; weights stay as they are. Its placements are then held against the
same formulas as ours: would they start with the context that is asked for, and how fast would they be? Both
sides' speeds are predictions, not measurements."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sovereign_ai import catalog
from sovereign_ai.catalog.releases import DEFAULT_RELEASE, release
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import load_factory
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.planner import Wish, make_plan
from sovereign_ai.planner.embedding import fit_embedding
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.rooms import Room, Site, every_room, sites
from sovereign_ai.planner.sizing import Fit, Misfit, fit, formats_for
from sovereign_ai.spec import Deployment
from sovereign_ai.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
FACTOR = 1.2
EXTRA_BYTES = 2 << 30
SHARE = 0.9


class Row(NamedTuple):
    """One copy of a model on both sides; None: not placed, or not able to run."""

    example: str
    model: str
    rule: str
    rule_fits: bool
    rule_alone: float | None
    rule_full: float | None
    ours: str
    ours_alone: float | None
    ours_full: float | None


def rule_layout(wish: Wish, free: Sequence[Room], where: Sequence[Site]) -> Layout | None:
    """The cards that the rule takes, over the links that they have."""
    need = FACTOR * 2 * wish.model.shape.parameters + EXTRA_BYTES
    ordered = sorted(free, key=lambda room: (-room.device.memory_bytes, room.node, room.device.index))
    for room in ordered:
        if SHARE * room.device.memory_bytes >= need:
            return Layout(rooms=(room,))
    for node in dict.fromkeys(room.node for room in ordered):
        cards = [room for room in ordered if room.node == node and room.device.kind == "gpu"]
        for count in range(2, len(cards) + 1):
            together = SHARE * sum(room.device.memory_bytes for room in cards[:count])
            if together >= need and wish.model.shape.heads % count == 0:
                link = next(site for site in where if site.node == node).link(
                    room.id for room in cards[:count]
                )
                return Layout(rooms=tuple(cards[:count]), tp=count, link=link)
    return None


def evaluate(example: Path) -> Iterator[Row]:
    factory = load_factory(example / "factory.yaml")
    inventory = load_inventory(example / "inventory.json")
    tiers = form_tiers(inventory, factory.tiers, catalog_bandwidths(inventory))
    wishes = wishes_for(
        factory.models or catalog.default_entries(), Store(example / "none", example / "none")
    )
    engine = release(factory.engine.release or DEFAULT_RELEASE)
    plan = make_plan(inventory, tiers, wishes, engine=engine, settings=factory.planner)
    where = sites(inventory, tiers)[0]
    free = list(every_room(where))
    for wish in wishes:
        mine = [one for one in plan.deployments if one.model == wish.name]
        for copy in range(wish.replicas):
            layout = rule_layout(wish, free, where)
            if layout is not None and layout.rooms[0].device.kind == "gpu":
                free = [room for room in free if room not in layout.rooms]
            ours = mine[copy] if copy < len(mine) else None
            yield row(example.name, wish, layout, try_rule(wish, layout, engine.name), ours)


def try_rule(wish: Wish, layout: Layout | None, release_name: str) -> Fit | Misfit:
    engine = release(release_name)
    if layout is None:
        return Misfit(reason="not placed")
    if wish.model.task == "embed":
        return fit_embedding(wish, layout)
    if layout.rooms[0].device.kind == "cpu":
        return Misfit(reason="the rule places on GPUs only")
    return fit(wish, layout, formats_for(wish, layout.capability, engine)[0], engine)


def row(example: str, wish: Wish, layout: Layout | None, found: Fit | Misfit, ours: Deployment | None) -> Row:
    fits = isinstance(found, Fit)
    speed = found.speed if isinstance(found, Fit) else None
    chat = wish.model.task == "chat"
    rule = layout.cards if layout else "–"
    if isinstance(found, Misfit):
        rule += f": {found.reason}" if layout else "not placed"
    mine = ours.speed if ours else None
    return Row(
        example=example,
        model=wish.name,
        rule=rule.removeprefix("–"),
        rule_fits=fits,
        rule_alone=speed.decode_one if speed and chat else None,
        rule_full=speed.decode_full if speed and chat else None,
        ours=ours.reason.partition(":")[0] if ours else "not placed",
        ours_alone=mine.decode_one if mine and chat else None,
        ours_full=mine.decode_full if mine and chat else None,
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def show(rows: Sequence[Row]) -> None:
    print(
        "| example | model | the rule | starts? | tokens/s alone / full | this plan | tokens/s alone / full |"
    )
    print("|---|---|---|---|---:|---|---:|")
    for one in rows:
        print(
            f"| {one.example} | {one.model} | {one.rule} | {'yes' if one.rule_fits else 'no'} "
            f"| {number(one.rule_alone)} / {number(one.rule_full)} | {one.ours} "
            f"| {number(one.ours_alone)} / {number(one.ours_full)} |"
        )
    placed = sum(one.ours != "not placed" for one in rows)
    starts = sum(one.rule_fits for one in rows)
    wrong = sum(not one.rule_fits and one.rule != "not placed" for one in rows)
    print(f"\n{len(rows)} copies: the rule serves {starts} and places {wrong} that would not start;")
    print(f"the plan serves {placed}")
    ratios = [one.ours_full / one.rule_full for one in rows if one.ours_full and one.rule_full]
    if ratios:
        alone = [one.ours_alone / one.rule_alone for one in rows if one.ours_alone and one.rule_alone]
        print(
            f"where both serve a chat model: {len(ratios)} copies, plan / rule "
            f"{min(alone):.2f} to {max(alone):.2f} alone, {min(ratios):.2f} to {max(ratios):.2f} in full"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="write the rows here as JSON")
    options = parser.parse_args()
    rows = [one for example in sorted(EXAMPLES.iterdir()) if example.is_dir() for one in evaluate(example)]
    show(rows)
    if options.out:
        record = {"date": time.strftime("%Y-%m-%d"), "rows": [one._asdict() for one in rows]}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
