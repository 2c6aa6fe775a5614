"""Applies what differs, in the given order, then deletes what is no longer wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sovereign_ai.deploy.kubernetes.difference import Difference, Outcome, difference
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import NAMESPACE, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.errors import ClusterRefused, ClusterUnreachable, DeployError, HalfApplied, Interrupted
from sovereign_ai.render.kubernetes.labels import Object

AGAIN = "what is done stays, and `{}` again goes on from there"
SHOWN = 8
"""Objects that an error names; of the others it says how many they are."""

Tell = Callable[[str], None]


class Steps:
    """What is done and what is not, of objects that are written one after the other."""

    def __init__(
        self, doing: str, objects: Sequence[Object], command: str, tell: Tell, *, before: str = ""
    ) -> None:
        """`doing`: applied, pruned, deleted; `before`: what was done before them, in words."""
        self._doing, self._left, self._command, self._tell = doing, [*map(title, objects)], command, tell
        self._done: list[str] = []
        self._before = before

    @contextmanager
    def step(self, one: Object, words: str) -> Iterator[None]:
        """Raises HalfApplied or Interrupted, which tell how far it got."""
        try:
            yield
        except (ClusterRefused, ClusterUnreachable) as error:
            raise HalfApplied(self._stopped(one, error.message), self._hint(error)) from error
        except KeyboardInterrupt as error:
            raise Interrupted(self._stopped(one, "interrupted"), AGAIN.format(self._command)) from error
        self._left.remove(title(one))
        self._done.append(title(one))
        self._tell(f"{words} {title(one)}")

    def _stopped(self, at: Object, why: str) -> str:
        return (
            f"stopped at {title(at)}: {why}\n"
            f"{self._before}{self._doing}: {_named(self._done)}; not {self._doing}: {_named(self._left)}"
        )

    def _hint(self, error: DeployError) -> str:
        again = AGAIN.format(self._command)
        return f"{error.hint}; {again}" if error.hint else again


def _named(titles: Sequence[str]) -> str:
    if not titles:
        return "nothing"
    more = f" and {len(titles) - SHOWN} more" if len(titles) > SHOWN else ""
    return f"{len(titles)} ({', '.join(titles[:SHOWN])}{more})"


def refuse(found: Difference, *, force: bool) -> None:
    """Raises ClusterRefused where the dry run says that the apply would not go through, so that nothing is
    begun."""
    if found.refused:
        reasons = "\n".join(f"  {title(one.object)}: {one.refusal}" for one in found.refused)
        raise ClusterRefused(f"the cluster would refuse {len(found.refused)} of the objects:\n{reasons}")
    if found.conflicts and not force:
        reasons = "\n".join(
            f"  {where}: {conflict.field} belongs to `{conflict.manager}`"
            for where, conflict in found.conflicts
        )
        raise ClusterRefused(
            f"others have set fields that we would set:\n{reasons}",
            "take them over with --force-conflicts, or have their owner give them up",
        )


def apply(door: Door, wanted: Wanted, found: Difference, *, force: bool, command: str, tell: Tell) -> None:
    """`found`: the difference of now. What would not change is not written.

    Raises ClusterRefused before anything is written, HalfApplied after that.
    """
    refuse(found, force=force)
    before = ""
    if any(one.unchecked for one in found.outcomes):
        found = _with_namespace(door, wanted, found, force=force, command=command, tell=tell)
        before = f"created: Namespace/{wanted.namespace}; "
    due = [one for one in found.outcomes if one.state != "unchanged" or one.adopts]
    steps = Steps("applied", [one.object for one in due], command, tell, before=before)
    for one in due:
        with steps.step(one.object, _words(one)):
            door.apply(one.object, force=force)
    _prune(door, found.pruned, command=command, tell=tell)


def _words(one: Outcome) -> str:
    return {"new": "created", "changed": "changed", "unchanged": "adopted"}[one.state]


def _with_namespace(
    door: Door, wanted: Wanted, found: Difference, *, force: bool, command: str, tell: Tell
) -> Difference:
    """Everything else can be tried once it is there."""
    namespaces = [one.object for one in found.outcomes if one.object["kind"] == NAMESPACE.name]
    if not namespaces:
        problem = f"namespace {wanted.namespace} is not there, and not among what is applied"
        raise DeployError(problem, f"make it first: kubectl create namespace {wanted.namespace}")
    steps = Steps("applied", [one.object for one in found.outcomes], command, tell)
    with steps.step(namespaces[0], "created"):
        door.apply(namespaces[0], force=force)
    checked = difference(door, wanted)
    try:
        refuse(checked, force=force)
    except ClusterRefused as error:
        message = f"{error.message}\napplied: {title(namespaces[0])} alone"
        raise HalfApplied(message, error.hint or AGAIN.format(command)) from error
    return checked


def _prune(door: Door, objects: Sequence[Object], *, command: str, tell: Tell) -> None:
    """Before anything is waited for: what goes may hold the cards that what comes waits for."""
    steps = Steps("pruned", objects, command, tell, before="everything is applied; ")
    for one in objects:
        with steps.step(one, "pruned"):
            door.delete(one)
