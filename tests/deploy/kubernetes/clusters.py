"""A cluster to try things on, fake or real, and what others do in it: edit, make ready, take rights away."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sovereign_ai.deploy.kubernetes import applying
from sovereign_ai.deploy.kubernetes.connection import connected
from sovereign_ai.deploy.kubernetes.difference import Difference, difference
from sovereign_ai.deploy.kubernetes.door import Door, open_door
from sovereign_ai.deploy.kubernetes.kinds import DAEMON_SET, NODE, WORKLOADS, kind_of, name_of
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.deploy.kubernetes.readiness import readiness
from sovereign_ai.render.kubernetes.labels import HOSTNAME, Object
from tests.deploy.kubernetes.fake_api import FakeApi

NAMES = (f"stack-{number}" for number in itertools.count())
"""No two tests share a namespace: a real server keeps them all."""


class Cluster:
    def __init__(self, kubeconfig: Path, fake: FakeApi | None) -> None:
        self.kubeconfig, self._fake = kubeconfig, fake
        self.namespace = "sovereign" if fake else next(NAMES)

    def add_node(self, name: str, hostname: str | None = None) -> None:
        """As a kubelet does when it registers itself. Its label may be another than its name."""
        labels = {HOSTNAME: hostname or name}
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self._put(NODE.path("", name), node, "kubelet")

    @property
    def fake(self) -> FakeApi:
        assert self._fake, "only for tests that ask for a fake one"
        return self._fake

    @property
    def is_real(self) -> bool:
        return self._fake is None

    @contextmanager
    def door(self) -> Iterator[Door]:
        with open_door(self.kubeconfig) as door:
            yield door

    def bring(self, wanted: Wanted, *, force: bool = False) -> list[str]:
        """Apply, without waiting. What was told."""
        said: list[str] = []
        with self.door() as door:
            found = difference(door, wanted)
            applying.apply(door, wanted, found, force=force, command="sovereign apply", tell=said.append)
        return said

    def difference(self, wanted: Wanted) -> Difference:
        with self.door() as door:
            return difference(door, wanted)

    def live(self, one: Object) -> Object | None:
        with self.door() as door:
            return door.read(kind_of(one), self.namespace, name_of(one))

    def edit(self, one: Object, patch: Object, manager: str = "kubectl-edit", below: str = "") -> None:
        """A merge patch of somebody else's."""
        path = kind_of(one).path(str(one["metadata"].get("namespace", "")), name_of(one)) + below
        with connected(self.kubeconfig, None) as (connection, _):
            answer = connection.patch(
                path,
                params={"fieldManager": manager},
                content=msgspec.json.encode(patch),
                headers={"content-type": "application/merge-patch+json"},
            )
            assert answer.status_code == 200, answer.text

    def create(self, one: Object) -> None:
        """As somebody else."""
        path = kind_of(one).path(str(one["metadata"].get("namespace", "")), name_of(one))
        self._put(path, one, "somebody")

    def _put(self, path: str, one: Object, manager: str) -> None:
        with connected(self.kubeconfig, None) as (connection, _):
            answer = connection.patch(
                path,
                params={"fieldManager": manager},
                content=msgspec.json.encode(one),
                headers={"content-type": "application/apply-patch+yaml"},
            )
            assert answer.status_code < 300, answer.text

    def make_ready(self, one: Object) -> None:
        """What a controller says of pods that run."""
        live = self.live(one)
        assert live
        self.edit(live, {"status": ready_status(live)}, "controller", "/status")

    @contextmanager
    def readying(self) -> Iterator[None]:
        """Everything becomes ready by itself."""
        end = threading.Event()
        thread = threading.Thread(target=self._ready_all, args=(end,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _ready_all(self, end: threading.Event) -> None:
        with self.door() as door:
            while not end.wait(0.02):
                for kind in WORKLOADS:
                    for one in door.listed(kind, self.namespace, {})[0]:
                        if not (found := readiness(one)) or not found.ready or not one.get("status"):
                            self.make_ready(one)


def ready_status(one: Object) -> dict[str, Any]:
    generation = one["metadata"]["generation"]
    if one["kind"] == DAEMON_SET.name:
        counts = ("currentNumberScheduled", "desiredNumberScheduled", "numberReady", "updatedNumberScheduled")
        return {
            "observedGeneration": generation,
            "numberMisscheduled": 0,
            "numberAvailable": 1,
        } | dict.fromkeys(counts, 1)
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    return {"observedGeneration": generation} | dict.fromkeys(counts, one["spec"]["replicas"])
