"""Why pods do not become ready, from their statuses and events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sovereign_ai.engines.triton import failure_line, telling_lines
from sovereign_ai.render.kubernetes.labels import Object

COMING = ("PodInitializing", "ContainerCreating")
"""Waiting for nothing but time."""
CRASHING = "CrashLoopBackOff"
HOPELESS_RESTARTS = 3
"""A container that ended so often right after its start will not run by waiting. Others are waited for: an
image may still be loaded, a card may still come."""

EVENTS_SHOWN = 3


class Trouble(NamedTuple):
    """Of one pod, the worst."""

    pod: str
    container: str
    """"" where it is of the pod as a whole."""
    words: str
    crashed: bool = False
    """Its last words are those of the run before."""
    hopeless: bool = False


def troubles(pods: Iterable[Object]) -> tuple[Trouble, ...]:
    """Of pods that are to become ready, those that do not, worst first. Where nothing but old ones are there:
    those."""
    pods = tuple(pods)
    coming = [pod for pod in pods if not _is_going(pod)]
    found = [trouble for pod in coming for trouble in _first(_of_pod(pod))]
    if not coming:
        found = [
            Trouble(pod["metadata"]["name"], "", "still ends, and the new one waits for it") for pod in pods
        ]
    return tuple(sorted(found, key=lambda one: (not one.hopeless, not one.crashed, one.pod)))


def _first(found: Iterator[Trouble]) -> list[Trouble]:
    one = next(found, None)
    return [one] if one else []


def _is_going(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _of_pod(pod: Object) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield Trouble(name, "", f"no node takes it: {condition.get('message', '')}")
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        yield from _of_container(name, one)
    if status.get("phase") == "Failed":
        yield Trouble(name, "", f"{status.get('reason', 'failed')}: {status.get('message', '')}")


def _of_container(pod: str, status: Mapping[str, Any]) -> Iterator[Trouble]:
    name, state, restarts = status["name"], status.get("state") or {}, int(status.get("restartCount") or 0)
    waiting, ended, running = (state.get(key) for key in ("waiting", "terminated", "running"))
    if waiting is not None and waiting.get("reason") not in (None, *COMING):
        crashing = waiting["reason"] == CRASHING
        words = _ended((status.get("lastState") or {}).get("terminated") or {}) if crashing else ""
        words = words or f"{waiting['reason']}: {waiting.get('message', '')}"
        yield Trouble(pod, name, words, crashing, crashing and restarts >= HOPELESS_RESTARTS)
    elif ended is not None and ended.get("exitCode"):
        yield Trouble(pod, name, _ended(ended), crashed=restarts == 0)
    elif running is not None and not status.get("ready"):
        again = f", after {restarts} restarts" if restarts else ""
        yield Trouble(pod, name, f"runs, but is not ready{again}")


def _ended(terminated: Mapping[str, Any]) -> str:
    if not terminated:
        return ""
    reason = terminated.get("reason") or "Error"
    said = f": {terminated['message'].strip()}" if terminated.get("message") else ""
    return f"ended with code {terminated.get('exitCode')} ({reason}){said}"


def told(events: Iterable[Object], names: Sequence[str]) -> tuple[str, ...]:
    """The newest warnings about objects of these names."""
    about = [
        one
        for one in events
        if one.get("type") == "Warning" and (one.get("involvedObject") or {}).get("name") in names
    ]
    newest = sorted(about, key=_moment)[-EVENTS_SHOWN:]
    return tuple(f"{one.get('reason')}: {str(one.get('message', '')).strip()}" for one in newest)


def _moment(event: Object) -> str:
    """RFC 3339 sorts as text."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")


def last_words(container: str, log: Sequence[str], shown: int) -> Iterator[str]:
    """What a log gives as the cause, and its last lines: an engine's are not where the cause is."""
    yield f"{container} says: {failure_line(log)}"
    last = [line.rstrip() for line in telling_lines(log) if line.strip()][-shown:]
    yield "its last lines:"
    yield from (f"  {line}" for line in last)


def of_workload(workload: Object, pods: Iterable[Object]) -> list[Object]:
    """Its pods, by its selector."""
    selected = workload["spec"]["selector"].get("matchLabels") or {}
    return [pod for pod in pods if selected.items() <= (pod["metadata"].get("labels") or {}).items()]
