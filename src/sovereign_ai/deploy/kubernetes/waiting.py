"""Follows Deployments and DaemonSets until all are ready, and says why one is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress

from sovereign_ai.console import Progress, human_seconds
from sovereign_ai.deploy.kubernetes.applying import Tell
from sovereign_ai.deploy.kubernetes.connection import FORBIDDEN, GONE
from sovereign_ai.deploy.kubernetes.diagnosis import Trouble, last_words, of_workload, told, troubles
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import EVENT, POD, WORKLOADS, Kind, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.deploy.kubernetes.readiness import Readiness, readiness
from sovereign_ai.deploy.kubernetes.restarts import startup_s
from sovereign_ai.errors import ClusterRefused, ClusterUnreachable, DeployError, NotReady
from sovereign_ai.render.kubernetes.labels import Object, owned

ROUND_S = 10.0
"""Of one watch. Then all is listed anew and pods are looked at: a missed event costs as much at most."""
AWAY_S = 2.0
"""Between two attempts to reach an API server that went away while we wait."""
MARGIN_S, LEAST_S = 60, 300
"""Added to what a workload may take by its own word, and the shortest that is waited for any."""
LOG_LINES, LOG_LINES_READ = 12, 400
"""Shown of a container that does not become ready, and looked through for the cause."""


def timeout_s(wanted: Wanted) -> int:
    """The longest that one of the workloads may take: its own deadline, else what its probes allow."""
    budgets = (
        one["spec"].get("progressDeadlineSeconds") or startup_s(one["spec"]["template"]) or 0
        for one in _workloads(wanted)
    )
    return max([LEAST_S, *(int(budget) + MARGIN_S for budget in budgets)])


def _workloads(wanted: Wanted) -> list[Object]:
    return [one for one in wanted.objects if one["kind"] in [kind.name for kind in WORKLOADS]]


class Wait:
    """For the workloads of one stack. `tell` hears of each that became ready."""

    def __init__(
        self,
        door: Door,
        wanted: Wanted,
        tell: Tell,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._door, self._namespace, self._tell, self._progress = door, wanted.namespace, tell, progress
        self._clock, self._sleep = clock, sleep
        self._names = [title(one) for one in _workloads(wanted)]
        self._state: dict[str, Object] = {}
        self._ready: set[str] = set()
        self._started = clock()

    def until_ready(self, timeout_s: float) -> None:
        """Raises NotReady with the reason when the time is up, or where waiting will not help."""
        while len(self._ready) < len(self._names):
            left = self._started + timeout_s - self._clock()
            try:
                self._round(left)
            except (ClusterRefused, ClusterUnreachable) as error:
                self._bear(error, left)

    def _bear(self, error: DeployError, left: float) -> None:
        """An API server that restarts, or forgot what we watched, is asked anew while there is time."""
        if isinstance(error, ClusterRefused) and error.code != GONE:
            raise error
        if left <= 0:
            problem = f"whether everything is ready is not known: {error.message}"
            raise NotReady(problem, error.hint) from error
        if isinstance(error, ClusterUnreachable):
            self._progress.update(len(self._ready), note=error.message)
            self._sleep(AWAY_S)

    def _round(self, left: float) -> None:
        versions = self._list()
        waiting = [name for name in self._names if name not in self._ready]
        if not waiting:
            return
        self._give_up(waiting, left)
        kind = next((one for one in WORKLOADS if waiting[0].startswith(f"{one.name}/")), WORKLOADS[0])
        self._follow(kind, versions[kind], min(left, ROUND_S))

    def _list(self) -> dict[Kind, str]:
        """The versions from which watches go on."""
        versions, self._state = {}, {}
        for kind in WORKLOADS:
            objects, versions[kind] = self._door.listed(kind, self._namespace, owned(self._namespace))
            self._state.update((title(one), one) for one in objects if title(one) in self._names)
        self._judge()
        return versions

    def _follow(self, kind: Kind, version: str, seconds: float) -> None:
        """Watch one kind until all of it is ready, or the round is over."""
        labels = owned(self._namespace)
        ours = {name for name in self._names if name.startswith(f"{kind.name}/")}
        with closing(self._door.watch(kind, self._namespace, labels, version, seconds)) as events:
            for event in events:
                if title(event.object) in ours:
                    self._state[title(event.object)] = event.object
                    self._judge()
                if ours <= self._ready:
                    return

    def _judge(self) -> None:
        notes = []
        for name, found in self._found():
            if found.ready and name not in self._ready:
                self._tell(f"ready    {name}, after {human_seconds(self._clock() - self._started)}")
            (self._ready.add if found.ready else self._ready.discard)(name)
            if not found.ready:
                notes.append(f"{name}: {found.words}")
        self._progress.update(len(self._ready), note=", ".join(notes))

    def _found(self) -> Iterator[tuple[str, Readiness]]:
        for name in self._names:
            one = self._state.get(name)
            found = readiness(one) if one else None
            yield name, found or Readiness(False, "is not there")

    def _give_up(self, waiting: Sequence[str], left: float) -> None:
        found, pods = dict(self._found()), self._look(POD)
        self._note(waiting, pods)
        hopeless = [
            name
            for name in waiting
            if found[name].failed or any(one.hopeless for one in self._troubles(name, pods))
        ]
        if left <= 0 or hopeless:
            lines = [self._why(name, found[name], pods) for name in hopeless or waiting]
            late = "" if hopeless else " in time"
            raise NotReady(
                "\n".join([f"not ready{late}:", *lines]), "back to what was good: sovereign rollback"
            )

    def _note(self, waiting: Sequence[str], pods: Sequence[Object]) -> None:
        notes = [f"{name}: {one.words}" for name in waiting for one in self._troubles(name, pods)[:1]]
        if notes:
            self._progress.update(len(self._ready), note="; ".join(notes))

    def _look(self, kind: Kind, labels: bool = True) -> list[Object]:
        """Nothing where we may not: it is asked only to explain."""
        try:
            return self._door.listed(kind, self._namespace, owned(self._namespace) if labels else {})[0]
        except ClusterRefused as error:
            if error.code != FORBIDDEN:
                raise
            return []

    def _troubles(self, name: str, pods: Sequence[Object]) -> tuple[Trouble, ...]:
        one = self._state.get(name)
        return troubles(of_workload(one, pods)) if one else ()

    def _why(self, name: str, found: Readiness, pods: Sequence[Object]) -> str:
        """What is known of it: its pods' own words, events, the last lines of a log."""
        lines = [f"  {name}: {found.words}" + (f" ({found.failed})" if found.failed else "")]
        here = self._troubles(name, pods)
        for one in here:
            lines.append(f"    {one.pod}{f', {one.container}' if one.container else ''}: {one.words}")
        about = [one.pod for one in here] or [name.partition("/")[2]]
        lines += [f"    {line}" for line in told(self._look(EVENT, labels=False), about)]
        if here and here[0].container and (log := self._log(here[0])):
            lines += [f"    {line}" for line in last_words(here[0].container, log, LOG_LINES)]
        return "\n".join(lines)

    def _log(self, one: Trouble) -> list[str]:
        """Of the run that ended, else of this one; none where there is none yet."""
        for previous in (True, False) if one.crashed else (False,):
            with suppress(ClusterRefused):
                return self._door.log(
                    self._namespace, one.pod, one.container, lines=LOG_LINES_READ, previous=previous
                )
        return []
