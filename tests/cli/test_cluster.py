"""`--cluster`: verbs on the inventory of a cluster, against a fake API server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.cluster import NOT_ALLOWED, read_cluster
from sovereign_ai.inventory.published import INVENTORY, MEASURED, encode_node, encode_time, token
from sovereign_ai.spec import Node
from tests.agent.fake_api import FakeApi, running
from tests.cli.conftest import Here
from tests.inventory.fakes import cpu, node, six_card_rig
from tests.inventory.test_gathered import slice_of, sliced_card


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as found:
        yield found


def announce(api: FakeApi, found: Node, age_s: float = 12.0) -> dict[str, Any]:
    made = api.add_node(found.name)
    made["metadata"]["annotations"] = {
        INVENTORY: encode_node(found),
        MEASURED: encode_time(time.time() - age_s),
    }
    return made


def rig(name: str = "rig") -> Node:
    return node(*six_card_rig().devices, name=name)


def test_the_inventory_of_a_cluster(here: Here, api: FakeApi, tmp_path: Path) -> None:
    announce(api, rig())
    announce(api, node(cpu(), name="spare"), age_s=400)
    done = here("inventory", "--cluster", "--kubeconfig", str(api.kubeconfig(tmp_path)))
    assert done.code == 0
    assert "RTX 3060 Ti" in done.out
    assert "node rig: measured 1" in done.err
    assert "warning: node spare: its agent measured last 7 minutes ago\n" in done.err
    assert {seen.authorization for seen in api.seen} == {"Bearer secret"}


def test_a_plan_for_a_cluster_is_that_for_its_saved_inventory(
    here: Here, api: FakeApi, tmp_path: Path
) -> None:
    announce(api, rig())
    cluster = ("--cluster", "--kubeconfig", str(api.kubeconfig(tmp_path)))
    file = tmp_path / "inventory.json"
    assert here("inventory", *cluster, "--save", str(file)).code == 0
    for verb in ("plan", "tiers"):
        direct, saved = here(verb, *cluster, "--json"), here(verb, "-i", str(file), "--json")
        assert (direct.code, direct.data) == (saved.code, saved.data)


def test_a_node_that_is_not_ready_is_in_no_tier(here: Here, api: FakeApi, tmp_path: Path) -> None:
    made = announce(api, rig())
    made["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped"}]
    done = here("tiers", "--cluster", "--kubeconfig", str(api.kubeconfig(tmp_path)))
    assert done.err.count("in no tier: GPU-") == 6
    assert "the node is not ready: Kubelet stopped" in done.err


def test_tokens_beside_a_device_plugin_are_warned_of(here: Here, api: FakeApi, tmp_path: Path) -> None:
    made = announce(api, rig())
    made["status"]["capacity"] |= {"nvidia.com/gpu": "6", token("GPU-00000000"): "1"}
    done = here("inventory", "--cluster", "--kubeconfig", str(api.kubeconfig(tmp_path)))
    assert "warning: node rig: the device plugin hands out 6 cards (nvidia.com/gpu)" in done.err


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_slices_of_the_version_that_is_served(api: FakeApi, tmp_path: Path, version: str) -> None:
    api.add_node("a")
    card = sliced_card(0)
    if version == "v1beta1":
        card = {"name": card.pop("name"), "basic": card}
    api.slices[version] = [slice_of(card)]
    found = read_cluster(api.kubeconfig(tmp_path))
    (device,) = found.inventory.devices
    assert (device.id, device.memory_bytes) == ("GPU-00000000", 10 << 30)


def test_an_account_that_may_not_read_slices(api: FakeApi, tmp_path: Path) -> None:
    announce(api, rig())
    api.refused["GET", "/apis/resource.k8s.io/"] = 403
    assert NOT_ALLOWED in read_cluster(api.kubeconfig(tmp_path)).warnings


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/v1/nodes", 403, r"refused while listing nodes: fake 403 \(403\)"),
        ("/api/v1/nodes", 401, r"refused while listing nodes: fake 401 \(401\)"),
        ("/apis/resource.k8s.io/", 500, r"refused while listing ResourceSlices: fake 500"),
    ],
)
def test_what_the_server_refuses(api: FakeApi, tmp_path: Path, path: str, status: int, words: str) -> None:
    announce(api, rig())
    api.refused["GET", path] = status
    with pytest.raises(InventoryError, match=words):
        read_cluster(api.kubeconfig(tmp_path))


def test_a_server_that_is_not_there(api: FakeApi, here: Here, tmp_path: Path) -> None:
    file = api.kubeconfig(tmp_path)
    api.stop()
    done = here("plan", "--cluster", "--kubeconfig", str(file))
    assert (done.code, done.out) == (69, "")
    assert "error: the API server did not answer while listing nodes" in done.err


@contextmanager
def answering(body: bytes, *headers: tuple[str, str]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if b"200" in body else 502)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("body", [b"<p>200</p>", b'{"items": 200}', b"[200]", b"<p>bad gateway</p>"])
@pytest.mark.parametrize(
    "headers", [(), (("Content-Type", "text/html"),), (("Content-Type", "application/json"),)]
)
def test_a_server_that_is_none_of_kubernetes(
    api: FakeApi, tmp_path: Path, body: bytes, headers: tuple[tuple[str, str], ...]
) -> None:
    with answering(body, *headers) as port:
        api.stop()
        api.port = port
        with pytest.raises(InventoryError, match="while listing nodes"):
            read_cluster(api.kubeconfig(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "- a", "a: [", "clusters: []", "clusters: 1\ncontexts: 2\nusers: 3", "\x00"]
)
def test_a_kubeconfig_that_is_none(here: Here, tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    done = here("inventory", "--cluster", "--kubeconfig", str(file))
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith(f"error: {file}: ")


def test_a_context_that_is_not_there_and_one_without_a_user(here: Here, api: FakeApi, tmp_path: Path) -> None:
    file = api.kubeconfig(tmp_path)
    done = here("inventory", "--cluster", "--kubeconfig", str(file), "--context", "there")
    assert (done.code, "Context 'there' not found" in done.err) == (78, True)
    file.write_text(file.read_text().replace(", user: me}", "}"))
    done = here("inventory", "--cluster", "--kubeconfig", str(file))
    assert (done.code, "Missing user" in done.err) == (78, True)


def test_options_that_exclude_each_other(here: Here) -> None:
    for verb in ("inventory", "tiers", "plan"):
        assert here(verb, "--cluster", "-i", "x.json").code == 64
        assert here(verb, "--context", "x").code == 64
        assert here(verb, "--kubeconfig", "x").code == 64


def test_without_the_extra_the_command_says_how_to_install_it(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightkube", None)
    for arguments in (("inventory", "--cluster"), ("agent", "--node", "a")):
        done = here(*arguments)
        assert done.code == 78
        assert "error: this needs the Kubernetes client, which is not installed" in done.err
        assert "sovereign-ai[kubernetes]" in done.err
