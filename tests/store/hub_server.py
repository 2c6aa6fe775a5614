"""A hub on this machine that speaks the protocol: model info, redirects to where large files lie, ranges; and
that fails on demand. What it does not prove: that the real hub behaves so on the day."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LARGE = (".safetensors", ".gguf")


class Fault(NamedTuple):
    """What the next request for a file meets: a status, or the connection reset or closed after so many
    bytes."""

    status: int = 0
    headers: Mapping[str, str] = MappingProxyType({})
    reset_after: int = -1
    close_after: int = -1
    ignore_range: bool = False
    corrupt: bool = False


class Hub:
    """`models`: repository → files; all at the commit that `commit` says."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, str] = {"main": "a" * 40}
        self.tags: list[str] = ["license:apache-2.0"]
        self.token: str | None = None
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.endpoint = ""
        self.storage = ""
        """Where large files lie: another origin, as with the real hub."""

    def asked(self, ending: str) -> list[dict[str, str]]:
        """Headers of the requests whose path ends so."""
        return [headers for _, path, headers in self.requests if path.endswith(ending)]

    def info(self, repo: str, revision: str) -> dict[str, Any] | None:
        commit = revision if revision in self.revisions.values() else self.revisions.get(revision)
        if repo not in self.models or commit is None:
            return None
        siblings = [self._sibling(path, data) for path, data in self.models[repo].items()]
        return {"id": repo, "sha": commit, "tags": self.tags, "siblings": siblings}

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, path, headers))
        fault = self.hub.faults[path.rpartition("/")[2]]
        one = fault.pop(0) if fault else Fault()
        if one.status:
            return self._answer(one.status, b"{}", {**one.headers})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            return self._info(found[1], found[2])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._info(found[1], "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3], one)
        if found := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            return self._file(self.hub.models[found[1]][found[2]], one)
        return self._answer(404, b"nothing here", {})

    do_HEAD = do_GET  # noqa: N815  the name that http.server calls

    def _allowed(self) -> bool:
        token = self.hub.token
        return token is None or self.headers.get("authorization") == f"Bearer {token}"

    def _info(self, repo: str, revision: str) -> None:
        if not self._allowed() or repo not in self.hub.models:
            # As the hub does: it does not tell a private model from one that is not there.
            return self._answer(401, b'{"error": "no"}', {"X-Error-Code": "RepoNotFound"})
        info = self.hub.info(repo, revision)
        if info is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, name: str, fault: Fault) -> None:
        if not self._allowed():
            return self._answer(401, b"{}", {})
        files = self.hub.models[repo]
        if name not in files:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if name.endswith(LARGE):
            return self._answer(302, b"", {"Location": f"{self.hub.storage}/storage/{repo}/{name}?signed=1"})
        return self._file(files[name], fault)

    def _file(self, data: bytes, fault: Fault) -> None:
        start, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if wanted and not fault.ignore_range:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        part = max(fault.reset_after, fault.close_after)
        if part < 0:
            return self._answer(status, body, headers)
        self._begin(status, len(body), headers)
        self.wfile.write(body[:part])
        self.wfile.flush()
        if fault.reset_after >= 0:
            # Closing with unsent time to linger makes the kernel send RST in place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True
        return None

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._begin(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on two ports of this machine: the hub, and where its large files lie."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
