"""A stand-in for a Kubernetes API server: answers what it is given, and nothing else.

It proves that our reader asks for what its judgement needs and understands answers in the API's shape. It
does not prove that a real server answers so: no admission, no authentication, no selectors, no paging.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class FakeApi(ThreadingHTTPServer):
    """`answers`: path → JSON, or a status code. `denied`: resources that the caller may not write; `asked`:
    what came, method and path with its query."""

    def __init__(self, answers: Mapping[str, Any], denied: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers, self.denied = answers, denied
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def kubeconfig(self, folder: Path) -> Path:
        """JSON is YAML."""
        path = folder / "kubeconfig"
        named = {"name": "fake"}
        config = {
            "current-context": "fake",
            "clusters": [{**named, "cluster": {"server": self.url}}],
            "users": [{**named, "user": {}}],
            "contexts": [{**named, "context": {"cluster": "fake", "user": "fake"}}],
        }
        path.write_text(json.dumps(config))
        return path


class _Answer(BaseHTTPRequestHandler):
    server: FakeApi

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        answer = self.server.answers.get(urlsplit(self.path).path, 404)
        if isinstance(answer, int):
            self._say(answer, {"kind": "Status", "code": answer, "message": f"the fake says {answer}"})
        else:
            self._say(200, answer)

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = review["spec"]["resourceAttributes"]
        self.server.asked.append(f"POST {self.path}")
        assert self.path.partition("?")[0] == REVIEW
        self._say(201, {**review, "status": {"allowed": asked["resource"] not in self.server.denied}})

    def _say(self, code: int, body: Any) -> None:
        data = msgspec.json.encode(body)
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@contextmanager
def serving(api: FakeApi) -> Iterator[FakeApi]:
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        thread.join()
        api.server_close()
