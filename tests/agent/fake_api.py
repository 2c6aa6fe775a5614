"""An API server for the paths that the agent and `--cluster` use.

It proves what our requests are, and what we make of answers in the shape that Kubernetes documents. It does
not prove that a real server takes them: it checks no schema, no quantities, no permissions but those that a
test takes away, and it merges patches as plain dicts. There is no kubelet and no scheduler behind it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """One request."""

    method: str
    path: str
    kind: str
    authorization: str
    body: Any


class FakeApi:
    """The objects, and what was asked. `refused` maps (method, beginning of the path) to a status."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.slices: dict[str, list[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self.seen: list[Seen] = []
        self.refused: dict[tuple[str, str], int] = {}
        self.tokens: set[str] | None = None
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def add_node(self, name: str, **status: Any) -> dict[str, Any]:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "annotations": {}},
            "spec": {},
            "status": {
                "capacity": {"cpu": "64", "memory": "263Gi"},
                "allocatable": {"cpu": "63500m", "memory": "260Gi"},
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            | status,
        }
        self.nodes[name] = node
        return node

    def start(self) -> None:
        """Listen, on the port of last time where there was one."""
        self._server = server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def kubeconfig(self, folder: Path, user: str = "{token: secret}") -> Path:
        file = folder / "kubeconfig"
        file.write_text(
            f"""apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: fake, user: me}}}}]
clusters: [{{name: fake, cluster: {{server: 'http://127.0.0.1:{self.port}'}}}}]
users: [{{name: me, user: {user}}}]
"""
        )
        return file

    def answer(self, seen: Seen) -> tuple[int, Any]:
        with self.lock:
            self.seen.append(seen)
            if self.tokens is not None and seen.authorization.removeprefix("Bearer ") not in self.tokens:
                return 401, None
            for (method, path), status in self.refused.items():
                if method == seen.method and seen.path.startswith(path):
                    return status, None
            return self._answer(seen)

    def _answer(self, seen: Seen) -> tuple[int, Any]:
        parts = seen.path.strip("/").split("/")
        match seen.method, parts:
            case "GET", ["api", "v1", "nodes"]:
                return 200, {"kind": "NodeList", "items": list(self.nodes.values()), "metadata": {}}
            case "GET", ["apis", "resource.k8s.io", version, "resourceslices"] if version in self.slices:
                items = self.slices[version]
                return 200, {"kind": "ResourceSliceList", "items": items, "metadata": {}}
            case _, ["api", "v1", "nodes", name, *_] if name not in self.nodes:
                return 404, None
            case "GET", ["api", "v1", "nodes", name]:
                return 200, self.nodes[name]
            case "PATCH", ["api", "v1", "nodes", name]:
                assert set(seen.body) == {"metadata"}, "a patch of a node does not change its status"
                return 200, _merge(self.nodes[name], seen.body)
            case "PATCH", ["api", "v1", "nodes", name, "status"]:
                assert set(seen.body) == {"status"}
                return 200, _merge(self.nodes[name], seen.body)
            case "POST", ["api", "v1", "namespaces", "default", "events"]:
                self.events.append(seen.body)
                return 201, seen.body
        return 404, None


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
    return into


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen = Seen(
                self.command,
                self.path.partition("?")[0],
                self.headers.get("Content-Type") or "",
                self.headers.get("Authorization") or "",
                json.loads(text) if text else None,
            )
            status, body = api.answer(seen)
            if status >= 400:
                body = {"kind": "Status", "status": "Failure", "message": f"fake {status}", "code": status}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@contextmanager
def running() -> Iterator[FakeApi]:
    api = FakeApi()
    api.start()
    try:
        yield api
    finally:
        api.stop()
