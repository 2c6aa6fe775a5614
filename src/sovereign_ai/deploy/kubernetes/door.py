"""What is asked of an API server: objects in plain JSON, with every field that the server has."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sovereign_ai.deploy.kubernetes.connection import (
    AWAY,
    CONFLICT,
    CONNECT_S,
    GONE,
    NOT_FOUND,
    answers,
    connected,
    failure,
    not_kubernetes,
    refusal,
)
from sovereign_ai.deploy.kubernetes.kinds import POD, Kind, kind_of, name_of
from sovereign_ai.errors import ClusterRefused, ClusterUnreachable
from sovereign_ai.render.kubernetes.labels import FIELD_MANAGER, Object, owned

if TYPE_CHECKING:
    import httpx2

PATIENCE_S = (0.5, 1.0, 2.0)
"""Pauses before another attempt: an API server that is restarted, or one of several, is back then. Whatever
is asked here may be asked twice."""

BUSY = (429, 500, *AWAY)
PAGE = 500
"""Objects of one answer to a list."""

APPLY, JSON = "application/apply-patch+yaml", "application/json"
MERGE = "application/merge-patch+json"


class _Request(NamedTuple):
    method: str
    path: str
    asked: Mapping[str, str] = {}
    body: bytes | None = None
    form: str = JSON


class Event(NamedTuple):
    """Of a watch. `type`: ADDED, MODIFIED or DELETED."""

    type: str
    object: Object


@contextmanager
def open_door(kubeconfig: Path | None = None, context: str | None = None) -> Iterator[Door]:
    """Raises ConfigError where there is no way to a cluster; nothing is asked yet."""
    with connected(kubeconfig, context) as (connection, server):
        yield Door(connection, server, PATIENCE_S)


class Door:
    """An API server. Every call raises ClusterUnreachable where it does not answer, ClusterRefused where it
    says no."""

    def __init__(self, connection: httpx2.Client, server: str, patience_s: Sequence[float]) -> None:
        self._connection, self.server, self._patience_s = connection, server, tuple(patience_s)
        self.warnings: dict[str, None] = {}
        """What the server warned of, each once: deprecated fields, Pod Security."""

    def version(self) -> str:
        """`v1.34.2`."""
        found = self._ask(_Request("GET", "/version"))
        if not isinstance(found, dict) or "gitVersion" not in found:
            raise not_kubernetes(self.server, "it tells no version")
        return str(found["gitVersion"])

    def read(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """None where it is not there, or the server has no such kind."""
        try:
            found: Object = self._ask(_Request("GET", kind.path(namespace, name)))
        except ClusterRefused as error:
            if error.code == NOT_FOUND:
                return None
            raise
        return found

    def ours(self, kind: Kind, namespace: str) -> list[Object]:
        """All of a kind that carry the stack's labels. None of a kind that the server does not have."""
        try:
            return self.listed(kind, namespace, owned(namespace))[0]
        except ClusterRefused as error:
            if error.code == NOT_FOUND:
                return []
            raise

    def listed(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], **more: str
    ) -> tuple[list[Object], str]:
        """Objects, and the version that a watch goes on from."""
        asked = {"labelSelector": _selector(labels), "limit": str(PAGE), **more}
        found: list[Object] = []
        while True:
            try:
                page = self._ask(_Request("GET", kind.path(namespace), asked))
            except ClusterRefused as error:
                if error.code != GONE or "continue" not in asked:
                    raise
                del asked["continue"]  # the pages took too long: all over again
                found = []
                continue
            found += [_with_kind(kind, one) for one in page.get("items") or ()]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return found, str(metadata.get("resourceVersion") or "")
            asked["continue"] = str(metadata["continue"])

    def apply(self, one: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Server-side apply. Gives the object as it is then, or would be."""
        asked = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        if dry_run:
            asked["dryRun"] = "All"
        found: Object = self._ask(_Request("PATCH", _path(one), asked, msgspec.json.encode(one), APPLY))
        return found

    def merge(self, kind: Kind, namespace: str, name: str, patch: Object, *, below: str = "") -> None:
        """A merge patch of an object that need not be ours; `below`: its subresource, `/status`."""
        path = kind.path(namespace, name) + below
        asked = {"fieldManager": FIELD_MANAGER}
        self._ask(_Request("PATCH", path, asked, msgspec.json.encode(patch), MERGE))

    def delete(self, one: Object) -> bool:
        """This very object, not a later one of its name. Whether it was still there."""
        uid = one["metadata"].get("uid")
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._ask(_Request("DELETE", _path(one), body=msgspec.json.encode(options)))
        except ClusterRefused as error:
            if error.code in (NOT_FOUND, CONFLICT):
                return False
            raise
        return True

    def watch(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], version: str, seconds: float
    ) -> Generator[Event]:
        """Changes after `version`, for `seconds` at most. Raises ClusterRefused of code 410 where the server
        knows that version no more."""
        import httpx2

        asked = {
            "watch": "true",
            "labelSelector": _selector(labels),
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        waits = httpx2.Timeout(CONNECT_S, read=seconds + CONNECT_S)
        with answers(self.server):
            stream = self._connection.stream("GET", kind.path(namespace), params=asked, timeout=waits)
            with stream as answer:
                if answer.is_error:
                    answer.read()
                    raise failure(answer, self.server)
                yield from (_event(kind, line) for line in answer.iter_lines() if line.strip())

    def log(
        self, namespace: str, pod: str, container: str, *, lines: int, previous: bool = False
    ) -> list[str]:
        """The last lines of a container; `previous`: of its run before this one."""
        asked = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        return self._send(_Request("GET", f"{POD.path(namespace, pod)}/log", asked)).text.splitlines()

    def _ask(self, request: _Request) -> Any:
        answer = self._send(request)
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            raise not_kubernetes(self.server, error) from error

    def _send(self, request: _Request) -> httpx2.Response:
        """Asked again where the server is busy, or away for a moment."""
        for pause in self._patience_s:
            try:
                answer = self._attempt(request)
            except ClusterUnreachable:
                pass
            else:
                if answer.status_code not in BUSY:
                    return self._judged(answer)
            time.sleep(pause)
        return self._judged(self._attempt(request))

    def _attempt(self, request: _Request) -> httpx2.Response:
        headers = {"accept": JSON, "content-type": request.form}
        with answers(self.server):
            return self._connection.request(
                request.method,
                request.path,
                params=dict(request.asked),
                content=request.body,
                headers=headers,
            )

    def _judged(self, answer: httpx2.Response) -> httpx2.Response:
        """Warnings come as `299 - "text"`."""
        for value in answer.headers.get_list("warning"):
            text = value.partition('"')[2].rpartition('"')[0].replace('\\"', '"')
            self.warnings[text or value] = None
        if answer.is_error:
            raise failure(answer, self.server)
        return answer


def _path(one: Object) -> str:
    return kind_of(one).path(str(one["metadata"].get("namespace", "")), name_of(one))


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _with_kind(kind: Kind, one: Object) -> Object:
    """Items of a list come without it."""
    return {"apiVersion": kind.api, "kind": kind.name, **one}


class _Line(msgspec.Struct):
    """Of a watch's stream."""

    type: str
    object: dict[str, Any]


def _event(kind: Kind, line: str) -> Event:
    found = msgspec.json.decode(line, type=_Line)
    if found.type == "ERROR":
        raise refusal(found.object)
    return Event(found.type, _with_kind(kind, found.object))
