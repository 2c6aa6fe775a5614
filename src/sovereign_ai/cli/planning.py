"""`sovereign plan`: what would run where, explained; and what would be if the machine were another."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from sovereign_ai import catalog
from sovereign_ai.catalog.releases import DEFAULT_RELEASE, Release, release
from sovereign_ai.catalog.speed import Constants
from sovereign_ai.cli import plan_tables, tables
from sovereign_ai.cli.measured import measured
from sovereign_ai.cli.survey import Source, survey
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import Factory, Paths
from sovereign_ai.console import Console, as_json
from sovereign_ai.errors import ConfigError, PlanError, UsageError, disk_errors
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner import Wish, make_plan
from sovereign_ai.planner.arrange import options_of
from sovereign_ai.planner.changes import differences
from sovereign_ai.planner.whatif import changed
from sovereign_ai.spec import Inventory, Plan, Rejected, Tier
from sovereign_ai.store import Store


class Request(NamedTuple):
    """What the command line asks of a plan."""

    inventory: Source = Source()
    current: Path | None = None
    save: Path | None = None
    explain: str | None = None
    what_if: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Question(NamedTuple):
    """Everything that a plan answers."""

    inventory: Inventory
    tiers: tuple[Tier, ...]
    wishes: list[Wish]
    engine: Release
    measured: Mapping[str, Constants]


def plan(console: Console, factory: Factory, paths: Paths, request: Request) -> None:
    """Make and show a plan. Raises PlanError where none exists; and, after showing it, where a model found no
    place."""
    before = survey(console, request.inventory)
    current = read_plan(request.current) if request.current else None
    question = _question(factory, paths, changed(before, request.what_if, request.without))
    asked = _asked_about(question, request.explain)
    try:
        made = _make(factory, question, current)
    except PlanError:
        if asked:
            _show_misfits(console, factory, question, asked)
        raise
    options = _options(factory, question, asked, made) if asked else ()
    if request.save:
        save_plan(request.save, made)
    if console.json:
        console.data(_with_options(made, options))
    else:
        tables.show_tiers(console, made.tiers)
        plan_tables.show_plan(console, made, question.inventory, current)
        _show_changes(console, factory, paths, request, before, made, current)
        if asked:
            plan_tables.show_options(console, asked.name, options)
    for device in question.inventory.devices:
        if device.fault:
            console.note(f"in no tier: {device.id} ({device.name}): {device.fault}")
    if request.save:
        console.note(f"saved to {request.save}")
    if made.unplaced:
        names = ", ".join(one.model for one in made.unplaced)
        raise PlanError(
            f"no place for every copy of {names}", "sovereign plan --explain MODEL shows the options"
        )


def _asked_about(question: Question, model: str | None) -> Wish | None:
    """The wish to explain. Raises UsageError for a model that nobody wishes for."""
    if model is None:
        return None
    names = [wish.name for wish in question.wishes]
    if model not in names:
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"models: {', '.join(names)}"
        raise UsageError(f"there is no model `{model}` to explain", hint)
    return question.wishes[names.index(model)]


def _question(factory: Factory, paths: Paths, inventory: Inventory) -> Question:
    tiers = form_tiers(inventory, factory.tiers, catalog_bandwidths(inventory))
    entries = factory.models or catalog.default_entries()
    wishes = wishes_for(entries, Store(paths.models, paths.cache))
    return Question(inventory, tiers, wishes, engine_release(factory), measured(paths.home))


def engine_release(factory: Factory) -> Release:
    try:
        return release(factory.engine.release or DEFAULT_RELEASE)
    except ConfigError as error:
        raise ConfigError(f"{factory.engine.where}: {error.message}", error.hint) from error


def _make(factory: Factory, question: Question, current: Plan | None) -> Plan:
    return make_plan(
        question.inventory,
        question.tiers,
        question.wishes,
        engine=question.engine,
        settings=factory.planner,
        current=current,
        measured=question.measured,
    )


def _show_changes(
    console: Console,
    factory: Factory,
    paths: Paths,
    request: Request,
    before: Inventory,
    made: Plan,
    current: Plan | None,
) -> None:
    """Against the plan that runs; for a what-if, against what would be planned without it."""
    against = "the plan that runs"
    if current is None and (request.what_if or request.without):
        against = "a plan for the devices as they are"
        try:
            current = _make(factory, _question(factory, paths, before), None)
        except (PlanError, ConfigError) as error:
            console.note(f"without the change there is no plan: {error.message}")
    if current is not None:
        console.say(f"Changes against {against}", style="bold")
        for line in differences(current, made) or ("none",):
            console.say(f"  {line}")


def _options(factory: Factory, question: Question, wish: Wish, made: Plan) -> tuple[Rejected, ...]:
    """Every option of a wish that `made` does not take, with the reason."""
    return options_of(
        question.inventory,
        question.tiers,
        wish,
        made,
        engine=question.engine,
        settings=factory.planner,
        measured=question.measured,
    )


def _show_misfits(console: Console, factory: Factory, question: Question, wish: Wish) -> None:
    """Where there is no plan, what fits lost to nothing: only what does not fit has a reason."""
    options = _options(factory, question, wish, Plan(tiers=(), deployments=()))
    plan_tables.show_options(console, wish.name, [one for one in options if not one.fits])


def _with_options(made: Plan, options: Sequence[Rejected]) -> Plan:
    """The plan with all options of the explained model in place of the few that a plan keeps."""
    names = {one.model for one in options}
    kept = (one for one in made.rejected if one.model not in names)
    return msgspec.structs.replace(made, rejected=(*kept, *options))


def diff(console: Console, a: Path, b: Path) -> bool:
    """Whether two saved plans differ, shown in words."""
    lines = differences(read_plan(a), read_plan(b))
    if console.json:
        console.data(lines)
    for line in lines or ("both plans deploy the same",):
        console.say(line)
    return bool(lines)


def read_plan(path: Path) -> Plan:
    """A saved plan. Raises ConfigError naming the file and the place in it."""
    hint = "make one: sovereign plan --save FILE"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a plan: {error}", hint) from error
    for at, one in enumerate(found.deployments):
        if not one.devices or len(one.memories) != len(one.devices):
            problem = f"{len(one.memories)} memories for {len(one.devices)} devices"
            raise ConfigError(f"{path}: not a plan: {problem} - at `$.deployments[{at}]`", hint)
    return found


def save_plan(path: Path, made: Plan) -> None:
    """Replace the file whole.

    Raises NoSpace and NoPermission, and UsageError where the folder is not there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors("saving the plan", path):
            temporary.write_bytes(as_json(made))
            temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: the plan cannot be saved there: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def plan_of(
    factory: Factory, paths: Paths, inventory: Inventory, tiers: Sequence[Tier], wishes: Sequence[Wish]
) -> Plan:
    """The plan that `up` runs: all of it or none. Raises PlanError where a model finds no place."""
    question = Question(inventory, tuple(tiers), list(wishes), engine_release(factory), measured(paths.home))
    made = _make(factory, question, None)
    if made.unplaced:
        reasons = "; ".join(f"{one.model}: {one.reason}" for one in made.unplaced)
        raise PlanError(f"not everything has a place: {reasons}", "see: sovereign plan")
    return made
