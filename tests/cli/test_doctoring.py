from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_ai.cli import doctoring
from sovereign_ai.inventory.cluster_doctor import CLUSTER_CHECKS
from sovereign_ai.inventory.doctor import HOST_CHECKS, Finding
from tests.cli.conftest import Here
from tests.inventory.fake_api import FakeApi, serving


def test_on_this_machine(here: Here) -> None:
    done = here("doctor", "--json")
    assert {"driver", "cards on the bus", "shared memory"} <= {one["check"] for one in done.data}
    assert done.code == (1 if any(one["state"] == "fault" for one in done.data) else 0)


def test_a_fault_is_shown_with_its_remedy(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        Finding(check="driver", state="fault", what="too old", fix="install a newer one"),
        Finding(check="disk for models", state="ok", what="50 GiB"),
    )
    monkeypatch.setattr(doctoring, "examine", lambda *_: found)
    done = here("doctor")
    assert done.code == 1
    assert done.out.splitlines() == [
        "fault    driver: too old",
        "         → install a newer one",
        "ok       disk for models: 50 GiB",
    ]


def test_a_card_or_node_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (Finding(check="tokens", state="fault", what="no token", fix="restart", subject="rig"),)
    monkeypatch.setattr(doctoring, "examine", lambda *_: found)
    assert here("doctor").out.splitlines()[0] == "fault    tokens, rig: no token"


def test_of_a_cluster_and_a_plan(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line to an API server and back. What the fake does not prove stands in fake_api.py."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    plan = tmp_path / "plan.json"
    plan.write_text('{"tiers": [], "deployments": []}')
    with serving(FakeApi({"/version": {"gitVersion": "v1.30.9"}, "/api/v1/nodes": 403})) as api:
        monkeypatch.setenv("KUBECONFIG", f"{api.kubeconfig(tmp_path)}:/another")
        done = here("doctor", "--cluster", "--plan", str(plan), "--json")
    found = {one["check"]: one for one in done.data}
    assert done.code == 1
    assert set(found) == {one.name for one in HOST_CHECKS} | {one.name for one in CLUSTER_CHECKS}
    assert found["API server"]["what"] == "Kubernetes v1.30.9 answers"
    assert found["Kubernetes version"]["state"] == "fault"
    assert found["nodes"]["what"] == "nodes: this user may not read them"
    assert done.err == ""


def test_no_cluster(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = here("doctor", "--cluster")
    assert done.code == 1
    assert "fault    API server: no way to a cluster: " in done.out
    assert "skipped  nodes: the API server does not answer" in done.out


def test_a_cluster_by_name(here: Here, tmp_path: Path) -> None:
    done = here("doctor", "--cluster", "--kubeconfig", str(tmp_path / "none"), "--context", "x")
    assert f"fault    API server: no way to a cluster: {tmp_path / 'none'}: No such file" in done.out
    assert here("doctor", "--context", "x").code == 64


def test_a_plan_that_is_none(here: Here, tmp_path: Path) -> None:
    done = here("doctor", "--plan", str(tmp_path / "none.json"))
    assert done.code == 78
    assert done.out == ""
