"""An API server for what diff, apply, rollback, delete and status ask, with faults to order.

kmock keeps objects too, but merges every patch, knows no field managers, no server-side apply and no dry
run; so this has the least of those (server_side_apply.py). It proves what we ask and what we make of
answers of the form that Kubernetes documents, and it can fail when it is told to. It does not prove what
the same tests prove against a real server (KUBEBUILDER_ASSETS): schemas, defaults but a few, admission,
real ownership of fields, immutable fields but a few, and the exact words of an error. Nor is there a
controller behind it: a test makes pods ready, or does not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from sovereign_ai.deploy.kubernetes.kinds import EVENT, KINDS, NODE, POD
from tests.deploy.kubernetes import server_side_apply as ssa
from tests.deploy.kubernetes.server_side_apply import Object

BY_PLURAL = {(kind.api, kind.plural): kind for kind in (*KINDS, NODE, POD, EVENT)}


class Fault(NamedTuple):
    """Said in place of an answer to requests of that method whose path, with its query, begins so; `times`:
    then no more."""

    method: str
    path: str
    code: int
    message: str = "refused to order"
    reason: str = ""
    times: int = 10**9
    dry_runs: bool = True


class Place(NamedTuple):
    """What a path names."""

    kind: Any
    namespace: str
    name: str
    below: str

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind.name, self.namespace, self.name)


class FakeApi:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.logs: dict[tuple[str, str, bool], str] = {}
        """(pod, container, previous) → text."""
        self.faults: list[Fault] = []
        self.missing: set[str] = {"servicemonitors", "podmonitors"}
        """Plurals of kinds that it does not have."""
        self.writes: list[str] = []
        """`METHOD /path` of each request that was no dry run and changed something."""
        self.asked: list[str] = []
        self.away_after: int | None = None
        """Writes after which it goes away: it hangs up on everybody."""
        self.is_away = False
        self.stuck: set[str] = set()
        """Namespaces that do not go when they are deleted."""
        self.git_version = "v1.31.14"
        self.oldest = 0
        """Versions before this one are forgotten: a watch from there is told 410."""
        self.page = 500
        self.warning = ""
        self.now = 1
        self.past: list[tuple[int, str, Object]] = []
        self.changed = threading.Condition(threading.RLock())
        self.server: _Server | None = None
        self.port = 0

    def start(self) -> None:
        """Listen, on the port of last time where there was one."""
        self.is_away = False
        self.server = server = _Server(("127.0.0.1", self.port), _Answer)
        server.api = self
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        with self.changed:
            self.is_away = True
            self.changed.notify_all()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None

    def kubeconfig(self, folder: Path) -> Path:
        """JSON is YAML."""
        file, named = folder / "kubeconfig", {"name": "fake"}
        server = {"server": f"http://127.0.0.1:{self.port}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{**named, "cluster": server}],
            "users": [{**named, "user": {"token": "secret"}}],
            "contexts": [{**named, "context": {"cluster": "fake", "user": "fake"}}],
        }
        file.write_text(json.dumps(config))
        return file

    def refuse(
        self, method: str, path: str, code: int, message: str = "refused to order", **more: Any
    ) -> None:
        self.faults.append(Fault(method, path, code, message, **more))

    def put(self, one: Object) -> Object:
        """As if somebody had made it; nothing is said of whose its fields are."""
        kind = next(kind for kind in BY_PLURAL.values() if kind.name == one["kind"])
        namespace = one["metadata"].get("namespace", "")
        with self.changed:
            return self._store((kind.name, namespace, one["metadata"]["name"]), one, None)

    def fault(self, method: str, path: str, *, dry: bool) -> Fault | None:
        for index, fault in enumerate(self.faults):
            if (fault.method, path.startswith(fault.path)) == (method, True) and (fault.dry_runs or not dry):
                if not fault.times:
                    continue
                self.faults[index] = fault._replace(times=fault.times - 1)
                return fault
        return None

    def write(self, place: Place, body: Object, asked: dict[str, str], form: str) -> tuple[int, Object]:
        """A patch of any kind."""
        live, dry = self.objects.get(place.key), "dryRun" in asked
        if refusal := self._unfit(place, live):
            return refusal
        manager = asked["fieldManager"]
        if form == "application/apply-patch+yaml":
            made, conflicts = ssa.apply(live, body, manager, force=asked.get("force") == "true")
            if conflicts:
                return _conflicted(place, conflicts)
        elif live is None:
            return status(404, f"{place.kind.plural} {place.name} not found", "NotFound")
        else:
            made = ssa.update(live, body, manager) if not place.below else ssa.merge(live, body)
        made = _defaulted(made)
        if live is not None and (problem := _immutable(live, made)):
            return status(422, problem, "Invalid")
        if dry:
            return 200, made
        return 200, self._store(place.key, made, live)

    def _unfit(self, place: Place, live: Object | None) -> tuple[int, Object] | None:
        if not place.namespace:
            return None
        namespace = self.objects.get(("Namespace", "", place.namespace))
        if namespace is None:
            return status(404, f'namespaces "{place.namespace}" not found', "NotFound")
        if live is None and namespace["metadata"].get("deletionTimestamp"):
            return status(403, f"namespace {place.namespace} is being terminated", "Forbidden")
        return None

    def _store(self, key: tuple[str, str, str], made: Object, live: Object | None) -> Object:
        if live is not None and made == live:
            return live
        self.now += 1
        metadata = {**made["metadata"], "resourceVersion": str(self.now)}
        metadata.setdefault("uid", f"uid-{self.now}")
        metadata.setdefault("creationTimestamp", "2026-11-26T00:00:00Z")
        before = live or {}
        changed = before.get("spec") != made.get("spec")
        metadata["generation"] = before.get("metadata", {}).get("generation", 0) + changed
        stored = {**made, "metadata": metadata}
        self.objects[key] = stored
        self._remember("MODIFIED" if live else "ADDED", stored)
        return stored

    def delete(self, place: Place, options: Object) -> tuple[int, Object]:
        live = self.objects.get(place.key)
        if live is None:
            return status(404, f"{place.kind.plural} {place.name} not found", "NotFound")
        expected = (options.get("preconditions") or {}).get("uid")
        if expected and expected != live["metadata"]["uid"]:
            return status(409, "the UID in the precondition does not match", "Conflict")
        if live["metadata"].get("finalizers") or place.name in self.stuck:
            metadata = {**live["metadata"], "deletionTimestamp": "2026-11-26T00:00:00Z"}
            return 200, self._store(place.key, {**live, "metadata": metadata}, live)
        inside = [key for key in self.objects if place.kind.name == "Namespace" and key[1] == place.name]
        for key in [*inside, place.key]:
            self.now += 1
            self._remember("DELETED", self.objects.pop(key))
        return 200, {"kind": "Status", "status": "Success"}

    def _remember(self, event: str, one: Object) -> None:
        self.past.append((self.now, event, one))
        self.changed.notify_all()

    def selected(self, place: Place, asked: dict[str, str]) -> list[Object]:
        return [
            one
            for (kind, namespace, _), one in sorted(self.objects.items())
            if kind == place.kind.name and namespace == place.namespace and matches(one, asked)
        ]


def matches(one: Object, asked: dict[str, str]) -> bool:
    pairs = [pair.split("=") for pair in asked.get("labelSelector", "").split(",") if pair]
    return all(one["metadata"].get("labels", {}).get(key) == value for key, value in pairs)


def status(code: int, message: str, reason: str = "", **more: Any) -> tuple[int, Object]:
    return code, {"kind": "Status", "code": code, "message": message, "reason": reason, **more}


def _conflicted(place: Place, conflicts: list[ssa.Conflict]) -> tuple[int, Object]:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{one.manager}" using {place.kind.api}',
            "field": "." + ".".join(one.path),
        }
        for one in conflicts
    ]
    return status(409, f"{len(conflicts)} conflicts", "Conflict", details={"causes": causes})


def _defaulted(one: Object) -> Object:
    """A few of those that the API server fills in."""
    if one["kind"] not in ("Deployment", "DaemonSet"):
        return one
    spec = {"revisionHistoryLimit": 10, **one["spec"]}
    pod = {"restartPolicy": "Always", **spec["template"]["spec"]}
    return {**one, "spec": {**spec, "template": {**spec["template"], "spec": pod}}}


def _immutable(live: Object, made: Object) -> str:
    name = live["metadata"]["name"]
    if live.get("immutable") and live.get("data") != made.get("data"):
        return (
            f'{live["kind"]} "{name}" is invalid: data: Forbidden: field is immutable when `immutable` is set'
        )
    if live["kind"] == "Deployment" and live["spec"]["selector"] != made["spec"]["selector"]:
        return f'Deployment.apps "{name}" is invalid: spec.selector: field is immutable'
    return ""


def place_of(path: str) -> Place | None:
    parts = path.strip("/").split("/")
    api, rest = ("/".join(parts[1:3]), parts[3:]) if parts[0] == "apis" else (parts[1], parts[2:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    kind = BY_PLURAL.get((api, rest[0]))
    name, below = (*rest[1:], "", "")[:2]
    return Place(kind, namespace, name, below) if kind else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: FakeApi


class _Answer(BaseHTTPRequestHandler):
    # head and body are two writes: the second would wait until the first one's receipt is told, 40 ms later
    disable_nagle_algorithm = True
    server: _Server
    protocol_version = "HTTP/1.1"

    @property
    def _api(self) -> FakeApi:
        return self.server.api

    def _serve(self) -> None:
        split = urlsplit(self.path)
        asked = dict(parse_qsl(split.query))
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self._api.changed:
            if self._api.is_away:
                self.close_connection = True
                return
            self._api.asked.append(f"{self.command} {self.path}")
            dry = "dryRun" in asked
            if fault := self._api.fault(self.command, self.path, dry=dry):
                self._say(*status(fault.code, fault.message, fault.reason))
                return
            place = None if split.path == "/version" else place_of(split.path)
            if place and not place.name and asked.get("watch"):
                self._watch(place, asked)
                return
            self._answer(split.path, place, asked, json.loads(text) if text else {})

    def _answer(self, path: str, place: Place | None, asked: dict[str, str], body: Object) -> None:
        if path == "/version":
            self._say(200, {"gitVersion": self._api.git_version})
        elif place is None or place.kind.plural in self._api.missing:
            self._text(404, "404 page not found\n")
        elif self.command == "GET":
            self._read(place, asked)
        else:
            before = self._api.now
            if self.command == "DELETE":
                answer = self._api.delete(place, body)
            else:
                answer = self._api.write(place, body, asked, self.headers["Content-Type"])
            if self._api.now != before:
                self._api.writes.append(f"{self.command} {path}")
            self._say(*answer)
            if self._api.away_after is not None and len(self._api.writes) >= self._api.away_after:
                self._api.is_away, self._api.away_after = True, None
                self._api.changed.notify_all()

    def _read(self, place: Place, asked: dict[str, str]) -> None:
        if place.below == "log":
            self._log((place.name, asked["container"], asked["previous"] == "true"), int(asked["tailLines"]))
        elif place.name:
            one = self._api.objects.get(place.key)
            self._say(200, one) if one else self._say(*status(404, "not found", "NotFound"))
        else:
            self._list(place, asked)

    def _log(self, run: tuple[str, str, bool], lines: int) -> None:
        if run in self._api.logs:
            self._text(200, "\n".join(self._api.logs[run].splitlines()[-lines:]))
        else:
            self._say(*status(400, "there is no such run"))

    def _list(self, place: Place, asked: dict[str, str]) -> None:
        """Items come without their kind, as Kubernetes has it."""
        found, start = self._api.selected(place, asked), int(asked.get("continue", 0))
        end = start + min(self._api.page, int(asked.get("limit", 500)))
        items = [
            {k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in found[start:end]
        ]
        metadata = {"resourceVersion": str(self._api.now)}
        if end < len(found):
            metadata["continue"] = str(end)
        self._say(200, {"items": items, "metadata": metadata})

    def _watch(self, place: Place, asked: dict[str, str]) -> None:
        """Holds the lock but while it waits."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        version, end = int(asked["resourceVersion"]), time.monotonic() + int(asked["timeoutSeconds"])
        if version < self._api.oldest:
            gone = status(410, f"too old resource version: {version}", "Expired")[1]
            self._line("ERROR", gone)
            return
        while not self._api.is_away and (left := end - time.monotonic()) > 0:
            for moment, event, one in list(self._api.past):
                here = one["kind"] == place.kind.name and place.namespace == one["metadata"].get("namespace")
                if moment > version and here and matches(one, asked):
                    self._line(event, one)
            version = self._api.now
            self._api.changed.wait(left)

    def _line(self, event: str, one: Object) -> None:
        try:
            self.wfile.write(json.dumps({"type": event, "object": one}).encode() + b"\n")
            self.wfile.flush()
        except OSError:  # nobody listens any more
            pass

    def _say(self, code: int, body: Object) -> None:
        self._send(code, json.dumps(body).encode(), "application/json")

    def _text(self, code: int, text: str) -> None:
        self._send(code, text.encode(), "text/plain; charset=utf-8")

    def _send(self, code: int, data: bytes, form: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", form)
        self.send_header("Content-Length", str(len(data)))
        if self._api.warning:
            self.send_header("Warning", f'299 - "{self._api.warning}"')
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[FakeApi]:
    api = FakeApi()
    api.start()
    try:
        yield api
    finally:
        api.stop()
