"""`sovereign agent` as a process, against a fake API server and a fake driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from sovereign_ai.config import ClusterSettings
from sovereign_ai.inventory.published import INVENTORY, MEASURED, decode_node, token
from sovereign_ai.render.kubernetes.agent import agent
from tests.agent.fake_api import FakeApi, running

ROOT = Path(__file__).parents[2]
CARDS = [f"GPU-{index:08x}" for index in range(3)]
WAIT_S = 20.0


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with running() as found:
        found.add_node("box")
        yield found


class Rig:
    """The fake driver's file, and the agents that were started on it."""

    def __init__(self, folder: Path, api: FakeApi) -> None:
        self.file, self.api = folder / "rig.json", api
        self.kubeconfig = api.kubeconfig(folder)
        self.port = _free_port()
        self.log = folder / "agent.log"
        self.started: list[subprocess.Popen[bytes]] = []

    def set(self, *names: str, faults: list[list[Any]] | None = None) -> None:
        """Whole or not at all: the agent may be reading it."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps({"names": names, "faults": faults or []}))
        temporary.replace(self.file)

    def command(self, *options: str) -> list[str]:
        base = [sys.executable, "-m", "tests.agent.fake_rig", str(self.file), "agent", "--node", "box"]
        return [*base, "--kubeconfig", str(self.kubeconfig), *options]

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        pages = ("--host", "127.0.0.1", "--port", str(self.port), "--interval", "0.2")
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*pages, *options), cwd=ROOT, env=_environment(), stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def once(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = self.command("--once", *options)
        return subprocess.run(
            command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
        )

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, line: str) -> bool:
        try:
            return line in self.page("/metrics")[1].splitlines()
        except OSError:
            return False

    def tokens(self, kind: str = "capacity") -> list[str | None]:
        resources = self.api.nodes["box"]["status"][kind]
        return [resources.get(token(card)) for card in CARDS]


@pytest.fixture
def rig(tmp_path: Path, api: FakeApi) -> Iterator[Rig]:
    found = Rig(tmp_path, api)
    found.set("RTX 3080", "RTX 3060", "RTX 3070")
    yield found
    for process in found.started:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "COLUMNS": "200"}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def reasons(api: FakeApi) -> list[str]:
    return [event["reason"] for event in api.events]


def test_a_card_is_lost_and_comes_back_then_the_end(rig: Rig, api: FakeApi) -> None:
    process = rig.start()
    wait_for(lambda: rig.tokens() == ["1", "1", "1"] and rig.metric("sovereign_agent_api_up 1.0"))
    assert rig.tokens("allocatable") == ["1", "1", "1"]
    node = decode_node(api.nodes["box"]["metadata"]["annotations"][INVENTORY])
    assert (node.name, [device.id for device in node.devices]) == ("box", CARDS)
    assert rig.metric(f'sovereign_device_temperature_celsius{{device="{CARDS[0]}",node="box"}} 61.0')
    assert rig.metric(
        f'sovereign_device_clock_limit{{device="{CARDS[0]}",node="box",reason="hardware_thermal"}} 1.0'
    )
    assert rig.page("/healthz") == (200, "ok\n")
    assert rig.page("/")[0] == 404

    rig.set("RTX 3080", "RTX 3060", "RTX 3070", faults=[["card", 1, 15]])
    wait_for(lambda: rig.tokens() == ["1", "0", "1"] and reasons(api) == ["GpuFault"])
    (event,) = api.events
    assert event["message"].startswith(f"{CARDS[1]} (RTX 3060): does not answer: NVML says 15 (NVML code 15)")
    assert (event["type"], event["involvedObject"]["uid"]) == ("Warning", "box")
    wait_for(lambda: rig.metric(f'sovereign_device_fault{{device="{CARDS[1]}",node="box"}} 1.0'))
    assert rig.metric(f'sovereign_device_token{{device="{CARDS[1]}",node="box"}} 0.0')
    assert f"GpuFault: {CARDS[1]}" in rig.log.read_text()

    rig.set("RTX 3080", "RTX 3060", "RTX 3070")
    wait_for(lambda: rig.tokens() == ["1", "1", "1"] and reasons(api) == ["GpuFault", "GpuRecovered"])
    assert "nvidia.com/gpu" not in json.dumps([seen.body for seen in api.seen])

    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began < 3
    assert rig.tokens() == ["1", "1", "1"]


def test_what_a_restarted_kubelet_zeroed_is_set_again(rig: Rig, api: FakeApi) -> None:
    rig.start()
    wait_for(lambda: rig.tokens() == ["1", "1", "1"])
    with api.lock:
        for kind in ("capacity", "allocatable"):
            api.nodes["box"]["status"][kind] |= dict.fromkeys(map(token, CARDS), "0")
    wait_for(lambda: rig.tokens() == ["1", "1", "1"] == rig.tokens("allocatable"))
    assert api.events == []


def test_an_api_server_that_is_away_for_a_while(rig: Rig, api: FakeApi) -> None:
    process = rig.start()
    wait_for(lambda: rig.tokens() == ["1", "1", "1"])
    api.stop()
    rig.set("RTX 3080", "RTX 3060", "RTX 3070", faults=[["card", 2, 15]])
    wait_for(lambda: rig.metric("sovereign_agent_api_up 0.0"))
    wait_for(lambda: rig.metric(f'sovereign_device_fault{{device="{CARDS[2]}",node="box"}} 1.0'))
    assert (process.poll(), rig.page("/healthz")[0]) == (None, 200)
    assert "measuring goes on, asked again in 5 s" in rig.log.read_text()
    api.start()
    wait_for(lambda: rig.tokens() == ["1", "1", "0"] and reasons(api) == ["GpuFault"])
    wait_for(lambda: rig.metric("sovereign_agent_api_up 1.0"))


def test_the_end_does_not_wait_for_an_api_server_that_hangs(rig: Rig, api: FakeApi) -> None:
    api.stop()
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", api.port))
        silent.listen()
        process = rig.start()
        connection, _ = silent.accept()
        with connection:
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - began < 3


def test_without_a_driver_the_node_reports_its_cpu(rig: Rig, api: FakeApi) -> None:
    rig.file.unlink()
    done = rig.once()
    assert (done.returncode, done.stdout) == (0, "")
    node = decode_node(api.nodes["box"]["metadata"]["annotations"][INVENTORY])
    assert [device.id for device in node.devices] == ["cpu"]
    assert rig.tokens() == [None] * 3
    assert [seen.method for seen in api.seen] == ["GET", "PATCH"]


def test_a_second_run_writes_nothing_and_remembers_the_first(rig: Rig, api: FakeApi) -> None:
    assert rig.once().returncode == 0
    assert [(s.method, s.kind) for s in api.seen] == [
        ("GET", ""),
        ("PATCH", "application/strategic-merge-patch+json"),
        ("PATCH", "application/strategic-merge-patch+json"),
    ]
    assert api.nodes["box"]["metadata"]["annotations"][MEASURED].endswith("Z")
    api.seen.clear()
    assert rig.once().returncode == 0
    assert [seen.method for seen in api.seen] == ["GET"]
    rig.set("RTX 3080", "RTX 3060")
    assert rig.once().returncode == 0
    assert rig.tokens() == ["1", "1", "0"]
    assert [event["message"] for event in api.events] == [f"{CARDS[2]} (RTX 3070) is not there any more"]


def test_a_driver_that_broke_closes_every_card(rig: Rig, api: FakeApi) -> None:
    assert rig.once().returncode == 0
    rig.set("RTX 3080", "RTX 3060", "RTX 3070", faults=[["init", None, 18]])
    assert rig.once().returncode == 0
    assert rig.tokens() == ["0", "0", "0"]
    assert reasons(api) == ["GpuFault"] * 3
    assert "NVML says 18" in api.events[0]["message"]


def test_a_token_is_read_again_when_it_was_rotated(rig: Rig, api: FakeApi, tmp_path: Path) -> None:
    """A pod's token comes from a file that the kubelet replaces; so does that of this kubeconfig's user."""
    from sovereign_ai.agent.nodeapi import ClusterNode
    from sovereign_ai.inventory.cluster import open_client

    secret = tmp_path / "token"
    secret.write_text("first")
    api.tokens = {"first"}
    kubeconfig = api.kubeconfig(tmp_path, f"{{tokenFile: {secret}}}")
    with open_client(kubeconfig) as client:
        node = ClusterNode(client, "box")
        node.read()
        api.tokens = {"second"}
        secret.write_text("second")
        assert node.read().capacity["cpu"] == "64"


def test_events_that_are_refused_do_not_keep_tokens_from_being_true(rig: Rig, api: FakeApi) -> None:
    api.refused["POST", "/api/v1/namespaces/default/events"] = 403
    rig.set("RTX 3080", "RTX 3060", "RTX 3070", faults=[["uuid", 0, 15]])
    rig.start()
    wait_for(lambda: rig.tokens() == [None, "1", "1"])
    wait_for(lambda: "1 events wait" in rig.log.read_text())
    with api.lock:
        api.refused.clear()
    wait_for(lambda: reasons(api) == ["GpuFault"])


def test_once_fails_where_the_cluster_cannot_be_told(rig: Rig, api: FakeApi) -> None:
    api.refused["PATCH", "/api/v1/nodes/box/status"] = 403
    done = rig.once()
    assert done.returncode == 69
    assert "refused while setting the tokens of node box: fake 403 (403)" in done.stderr
    assert INVENTORY not in api.nodes["box"]["metadata"]["annotations"]
    api.stop()
    assert rig.once().returncode == 69


def test_where_a_device_plugin_hands_out_the_same_cards_an_event_says_so(rig: Rig, api: FakeApi) -> None:
    api.nodes["box"]["status"]["capacity"]["nvidia.com/gpu"] = "3"
    assert rig.once().returncode == 0
    assert reasons(api) == ["GpuHandedOutTwice"]
    assert "the device plugin hands out 3 cards" in api.events[0]["message"]
    assert rig.once("--no-tokens").returncode == 0
    assert rig.tokens() == ["0", "0", "0"]
    assert len(api.events) == 1


def test_what_makes_no_sense_is_refused(rig: Rig) -> None:
    for options in (["--interval", "0"], ["--interval", "nan"], ["--port", "70000"], ["--node", " "]):
        assert rig.once(*options).returncode == 64
    rig.kubeconfig.unlink()
    done = rig.once()
    assert done.returncode == 78
    assert f"error: {rig.kubeconfig}: Configuration file" in done.stderr


@pytest.mark.parametrize("mode", ["tokens", "dra"])
def test_the_pod_that_is_rendered_starts_it(rig: Rig, api: FakeApi, mode: Literal["tokens", "dra"]) -> None:
    """With the arguments of the DaemonSet, and the node's name from its environment."""
    settings = ClusterSettings(version="1.34", pinning=mode)
    pod = agent(settings, ["box"])[-1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (name,) = (one["name"] for one in container["env"] if "fieldRef" in one.get("valueFrom", {}))
    assert container["command"] == ["sovereign", "agent"]
    base = [sys.executable, "-m", "tests.agent.fake_rig", str(rig.file), "agent", "--once"]
    command = [*base, "--kubeconfig", str(rig.kubeconfig), *container["args"]]
    subprocess.run(command, cwd=ROOT, env=_environment() | {name: "box"}, check=True)
    assert rig.tokens() == (["1"] * 3 if mode == "tokens" else [None] * 3)
    assert INVENTORY in api.nodes["box"]["metadata"]["annotations"]


def test_a_taken_port_is_told(rig: Rig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", rig.port))
        other.listen()
        assert rig.start().wait(20) == 69
    assert f"127.0.0.1:{rig.port}" in rig.log.read_text()
