from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.deploy.kubernetes import door
from tests.deploy.kubernetes import fake_api, real_api
from tests.deploy.kubernetes.clusters import Cluster

ASSETS = "KUBEBUILDER_ASSETS"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, no proxy in between."""
    monkeypatch.setattr(door, "PATIENCE_S", (0.01, 0.02))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session", autouse=True)
def real_kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """Started before the first test, since whatever a test starts must end with it."""
    assets = os.environ.get(ASSETS)
    if not assets:
        yield None
        return
    with real_api.running(Path(assets), tmp_path_factory.mktemp("api")) as kubeconfig:
        yield kubeconfig


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Cluster]:
    """For what only a fake server does to order."""
    with fake_api.running() as api:
        found = Cluster(api.kubeconfig(tmp_path), api)
        found.add_node("rig")
        api.asked.clear()
        api.writes.clear()
        yield found


@pytest.fixture(params=["fake", "real"])
def cluster(request: pytest.FixtureRequest, real_kubeconfig: Path | None) -> Cluster:
    """A test that takes it runs twice, once against a real API server where there is one."""
    if request.param == "fake":
        found: Cluster = request.getfixturevalue("fake")
        return found
    if real_kubeconfig is None:
        pytest.skip(f"{ASSETS} names no folder with etcd and kube-apiserver")
    real = Cluster(real_kubeconfig, None)
    real.add_node("rig")
    return real
