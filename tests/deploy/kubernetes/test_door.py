"""What is asked of an API server, and what becomes of its answers."""

from __future__ import annotations

import builtins
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sovereign_ai.deploy.kubernetes.door import Event, open_door
from sovereign_ai.deploy.kubernetes.kinds import DEPLOYMENT, KINDS, NAMESPACE, SECRET, kind_of, title
from sovereign_ai.errors import ClusterRefused, ClusterUnreachable, ConfigError
from sovereign_ai.render.kubernetes.labels import described, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.stacks import small, the


def test_what_is_applied_can_be_read(cluster: Cluster) -> None:
    with cluster.door() as door:
        for one in small(cluster.namespace).objects:
            where = (kind_of(one), cluster.namespace, one["metadata"]["name"])
            assert door.read(*where) is None
            made = door.apply(one)
            assert title(door.read(*where) or {}) == title(one)
            assert one["metadata"]["labels"].items() <= made["metadata"]["labels"].items()


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    (namespace, *_) = small(cluster.namespace).objects
    with cluster.door() as door:
        assert title(door.apply(namespace, dry_run=True)) == title(namespace)
        assert door.read(NAMESPACE, "", cluster.namespace) is None


def test_ours_are_those_with_every_label(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace))
    with cluster.door() as door:
        found = door.ours(SECRET, cluster.namespace)
        assert [title(one) for one in found] == ["Secret/keys"]
        assert found[0]["apiVersion"] == "v1", "items of a list come without their kind"
        assert door.ours(SECRET, "other") == []


def test_nothing_is_there_of_a_kind_that_the_server_lacks(cluster: Cluster) -> None:
    monitor = next(kind for kind in KINDS if kind.name == "ServiceMonitor")
    with cluster.door() as door:
        assert door.ours(monitor, cluster.namespace) == []
        assert door.read(monitor, cluster.namespace, "x") is None


def test_a_list_comes_in_pages(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.page = 1
    with fake.door() as door:
        found, version = door.listed(DEPLOYMENT, "sovereign", owned("sovereign"))
        everything = [one for kind in KINDS for one in door.ours(kind, "sovereign")]
    assert (len(found), version) == (1, str(fake.fake.now))
    assert len(everything) == len(small().objects)


def test_a_list_whose_pages_took_too_long_begins_again(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.put(described("ConfigMap", "engine-2", "sovereign", owned("sovereign")))
    fake.fake.page = 1
    selector = "labelSelector=" + quote(",".join(f"{k}={v}" for k, v in sorted(owned("sovereign").items())))
    path = "/api/v1/namespaces/sovereign/configmaps"
    fake.fake.refuse("GET", f"{path}?{selector}&limit=500&continue", 410, "too old", times=1)
    kind = next(kind for kind in KINDS if kind.name == "ConfigMap")
    with fake.door() as door:
        found = door.ours(kind, "sovereign")
    assert [title(one) for one in found] == ["ConfigMap/engine-1", "ConfigMap/engine-2"]
    assert len([one for one in fake.fake.asked if f"GET {path}?" in one]) == 4


def test_delete_means_this_very_object(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    service = the(stack, "Service/engine")
    live = cluster.live(service)
    assert live
    with cluster.door() as door:
        another = {**live, "metadata": {**live["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}}
        assert not door.delete(another)
        assert cluster.live(service)
        assert door.delete(live)
        assert not door.delete(live), "it is gone already"
    assert cluster.live(service) is None


def test_a_watch_tells_what_comes_after_the_list(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    engine = the(stack, "Deployment/engine")
    with cluster.door() as door:
        _, version = door.listed(DEPLOYMENT, cluster.namespace, owned(cluster.namespace))
        cluster.make_ready(engine)
        events = door.watch(DEPLOYMENT, cluster.namespace, owned(cluster.namespace), version, 5)
        event = next(events)
        events.close()
    assert isinstance(event, Event)
    assert (event.type, title(event.object)) == ("MODIFIED", "Deployment/engine")
    assert event.object["status"]["availableReplicas"] == 1


def test_a_watch_ends_by_itself(fake: Cluster) -> None:
    fake.bring(small())
    with fake.door() as door:
        assert list(door.watch(DEPLOYMENT, "sovereign", owned("sovereign"), str(fake.fake.now), 1)) == []


def test_a_watch_from_too_far_back(fake: Cluster) -> None:
    fake.fake.oldest = 100
    with fake.door() as door, pytest.raises(ClusterRefused, match="too old resource version: 1") as caught:
        list(door.watch(DEPLOYMENT, "sovereign", {}, "1", 1))
    assert caught.value.code == 410


def test_a_watch_that_is_refused(fake: Cluster) -> None:
    fake.fake.refuse("GET", "/apis/apps/v1", 403, "may not watch")
    with fake.door() as door, pytest.raises(ClusterRefused, match="may not watch"):
        list(door.watch(DEPLOYMENT, "sovereign", {}, "1", 1))


def test_logs(fake: Cluster) -> None:
    fake.fake.logs["p", "main", True] = "one\ntwo\nthree\n"
    with fake.door() as door:
        assert door.log("sovereign", "p", "main", lines=2, previous=True) == ["two", "three"]
        with pytest.raises(ClusterRefused, match="no such run"):
            door.log("sovereign", "p", "main", lines=2)


def test_a_server_that_is_busy_is_asked_again(fake: Cluster) -> None:
    for code in (429, 500, 503):
        fake.fake.refuse("GET", "/version", code, times=2)
        with fake.door() as door:
            assert door.version() == "v1.31.14"
    assert fake.fake.asked.count("GET /version") == 9


def test_a_server_that_stays_busy(fake: Cluster) -> None:
    fake.fake.refuse("GET", "/version", 503)
    with fake.door() as door, pytest.raises(ClusterUnreachable, match="does not answer: it says 503"):
        door.version()
    fake.fake.faults.clear()
    fake.fake.refuse("GET", "/version", 500, "etcd has no leader")
    with fake.door() as door, pytest.raises(ClusterRefused, match="etcd has no leader"):
        door.version()


def test_a_server_that_comes_back(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.fake.stop()

    def start(seconds: float) -> None:
        if fake.fake.server is None:
            fake.fake.start()

    with fake.door() as door:
        monkeypatch.setattr("time.sleep", start)
        assert door.version() == "v1.31.14"


def test_credentials_that_are_not_taken(fake: Cluster) -> None:
    fake.fake.refuse("GET", "/version", 401, "Unauthorized")
    with fake.door() as door, pytest.raises(ClusterRefused, match="Unauthorized") as caught:
        door.version()
    assert "expired" in caught.value.hint


def test_warnings_are_kept_once(fake: Cluster) -> None:
    fake.fake.warning = 'would violate PodSecurity \\"restricted\\"'
    with fake.door() as door:
        door.version()
        door.version()
        assert list(door.warnings) == ['would violate PodSecurity "restricted"']


def kubeconfig(folder: Path, server: str, user: str = "{token: x}") -> Path:
    file = folder / "kubeconfig"
    file.write_text(
        f"""apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: c, user: me}}}}]
clusters: [{{name: c, cluster: {{server: '{server}'}}}}]
users: [{{name: me, user: {user}}}]
"""
    )
    return file


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with open_door(kubeconfig(tmp_path, address)) as door, pytest.raises(ClusterUnreachable) as caught:
            door.version()
    assert f"{address} does not answer" in str(caught.value)
    assert caught.value.exit_code == 69


def answering(data: bytes, form: str) -> Callable[[Path], Path]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", form)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)

    def answer() -> None:
        with server:
            server.handle_request()

    def once(folder: Path) -> Path:
        threading.Thread(target=answer, daemon=True).start()
        return kubeconfig(folder, f"http://127.0.0.1:{server.server_port}")

    return once


@pytest.mark.parametrize("data", [b"<html>welcome</html>", b'{"hello": 1}', b"[]", b"\xff"])
def test_something_else_that_answers(tmp_path: Path, data: bytes) -> None:
    file = answering(data, "text/html")(tmp_path)
    with (
        open_door(file) as door,
        pytest.raises(ClusterUnreachable, match="not as an API server of Kubernetes"),
    ):
        door.version()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "kubeconfig"),
        ("a: [", "kubeconfig"),
        ("apiVersion: v1\nclusters: []\ncontexts: []\nusers: []\n", "No current context"),
        ("current-context: x\nclusters: []\ncontexts: []\nusers: []\n", "Context 'x' not found"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught, open_door(file):
        pass
    assert "--context" in caught.value.hint


def test_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="gone not found"), open_door(tmp_path / "gone"):
        pass
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="no cluster to ask"), open_door():
        pass


def test_another_context(fake: Cluster) -> None:
    with pytest.raises(ConfigError, match="Context 'other' not found"), open_door(fake.kubeconfig, "other"):
        pass
    with open_door(fake.kubeconfig, "fake") as door:
        assert door.version()


def test_a_program_for_credentials_that_fails(tmp_path: Path) -> None:
    user = "{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: 'false'}}"
    with (
        open_door(kubeconfig(tmp_path, "http://127.0.0.1:1", user)) as door,
        pytest.raises(ConfigError, match="no credentials for http://127"),
    ):
        door.version()


def test_without_the_extra(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "lightkube":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="not installed") as caught, open_door(fake.kubeconfig):
        pass
    assert "sovereign-ai[kubernetes]" in caught.value.hint
