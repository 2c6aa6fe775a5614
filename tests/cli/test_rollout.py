"""`sovereign diff`, `apply`, `rollback`, `delete` and `status --cluster`, whole, against a fake API server
that says at once that pods are ready. What this does not prove: that pods run (tests/e2e/test_kubernetes.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes import deleting, door, waiting
from tests.cli.conftest import Done, Here, here
from tests.deploy.kubernetes import fake_api
from tests.deploy.kubernetes.clusters import Cluster
from tests.render.kubernetes.examples import EXAMPLES

__all__ = ["here"]

RIG = EXAMPLES / "reference-rig"


class Rig:
    """The reference rig's stack, its factory.yaml to be edited, in a cluster that makes everything ready."""

    def __init__(self, here: Here, cluster: Cluster, folder: Path) -> None:
        self._here, self.cluster, self.factory = here, cluster, folder / "factory.yaml"
        self.factory.write_text((RIG / "factory.yaml").read_text())

    def edit(self, old: str, new: str) -> None:
        text = self.factory.read_text()
        assert old in text
        self.factory.write_text(text.replace(old, new))

    def add(self, text: str) -> None:
        self.factory.write_text(self.factory.read_text() + text)

    def __call__(self, verb: str, *more: str) -> Done:
        source = ("-i", str(RIG / "inventory.json")) if verb in ("diff", "apply") else ()
        cluster = ("--cluster",) if verb in ("status", "delete") else ()
        access = ("--kubeconfig", str(self.cluster.kubeconfig))
        return self._here(verb, "-f", str(self.factory), *source, *cluster, *access, *more)


@pytest.fixture
def rig(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(door, "PATIENCE_S", (0.01,))
    monkeypatch.setattr(waiting, "ROUND_S", 1.0)
    monkeypatch.setattr(deleting, "ROUND_S", 0.01)
    with fake_api.running() as api:
        cluster = Cluster(api.kubeconfig(tmp_path), api)
        cluster.add_node("rig")
        api.writes.clear()
        yield Rig(here, cluster, tmp_path)


def words(done: Done) -> set[str]:
    """The first word of each line: what was said of each object."""
    return {line.split()[0] for line in done.out.splitlines() if line and not line.startswith(" ")}


def test_from_nothing_to_ready_and_a_second_apply_changes_nothing(rig: Rig) -> None:
    shown = rig("diff")
    assert shown.code == 1
    assert "Deployment/triton-3f0e08af starts: ready after at most" in shown.out
    assert rig.cluster.fake.writes == [], "a diff writes nothing"
    with rig.cluster.readying():
        done = rig("apply", "--yes")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "all ready; revision 1 is kept for rollback"
    assert done.out.index("created Namespace/sovereign") < done.out.index("created Deployment/triton-")
    again = rig("diff")
    assert (again.code, words(again)) == (0, {"namespace", "unchanged", again.out.split()[-2]}), again.out
    rig.cluster.fake.writes.clear()
    assert "nothing to change" in rig("apply", "--yes").out
    assert rig.cluster.fake.writes == []


def test_what_changes_restarts_and_comes_back(rig: Rig) -> None:
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
        rig.add("\nkubernetes:\n  engine_image: localhost/triton:2\n")
        shown = rig("diff")
        assert shown.code == 1
        assert (
            'image: "nvcr.io/nvidia/tritonserver:24.12-vllm-python-py3" -> "localhost/triton:2"' in shown.out
        )
        assert "Deployment/triton-3f0e08af restarts: it is down until the new pod is ready" in shown.out
        assert rig("apply", "--yes").out.endswith("revision 2 is kept for rollback\n")
        back = rig("rollback", "--yes")
        assert back.code == 0, back.err
        assert back.out.startswith("revision 1, ready since ")
        forth = rig("rollback", "--to", "2", "--yes")
        assert forth.code == 0, forth.err
    assert rig("diff").code == 0
    unknown = rig("rollback", "--to", "77", "--yes")
    assert (unknown.code, "kept are " in unknown.err) == (64, True)


def test_what_is_no_longer_planned_is_pruned_and_storage_stays(rig: Rig) -> None:
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
        rig.add("\nkubernetes:\n  agent: false\n")
        done = rig("apply", "--yes")
    pruned = [line.removeprefix("pruned ").strip() for line in done.out.splitlines() if "pruned " in line]
    assert "DaemonSet/sovereign-agent" in pruned
    assert not [one for one in pruned if one.startswith(("PersistentVolume", "StorageClass", "Namespace"))]


def test_nothing_is_done_without_a_yes(rig: Rig) -> None:
    done = rig("apply")
    assert (done.code, "--yes answers yes" in done.err) == (64, True)
    assert rig.cluster.fake.writes == []
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
    rig.cluster.fake.writes.clear()
    assert rig("delete").code == 64
    assert rig.cluster.fake.writes == []


def test_data_on_standard_output_alone(rig: Rig) -> None:
    rig.cluster.fake.warning = "metadata.finalizers: prefer a domain-qualified name"
    done = rig("diff", "--json")
    found: dict[str, Any] = json.loads(done.out)
    assert (done.code, found["differs"], found["namespace"]) == (1, True, "sovereign")
    assert {one["state"] for one in found["objects"]} == {"new"}
    assert [one["how"] for one in found["restarts"]] == ["starts"] * 5
    assert "the API server warns: metadata.finalizers" in done.err


def test_status_tells_what_is_there_and_exits_with_3_until_all_of_it_is_ready(rig: Rig) -> None:
    nothing = rig("status")
    assert (nothing.code, nothing.out) == (3, "nothing of ours runs in namespace sovereign\n")
    assert rig("apply", "--yes", "--no-wait").code == 0
    coming = rig("status", "--json")
    assert (coming.code, json.loads(coming.out)["ready"]) == (3, False)
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
    there = rig("status")
    assert there.code == 0
    assert "kept for rollback: revision 1 (" in there.out


def test_delete_leaves_the_weights_and_apply_finds_them_again(rig: Rig) -> None:
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
        done = rig("delete", "--yes")
        assert done.code == 0, done.err
        kinds = {kind for kind, _, _ in rig.cluster.fake.objects}
        assert kinds == {"Node", "Namespace", "PersistentVolume", "PersistentVolumeClaim", "StorageClass"}
        left = rig("status")
        assert (left.code, "left are " in left.out) == (3, True)
        assert rig("apply", "--yes").code == 0
        assert rig("delete", "--yes", "--with-storage").code == 0
    assert {kind for kind, _, _ in rig.cluster.fake.objects} == {"Node"}
    assert "nothing of ours is in namespace sovereign" in rig("delete", "--yes").out


def test_an_api_server_that_goes_away_half_way_is_told_and_a_second_run_completes(rig: Rig) -> None:
    rig.cluster.fake.away_after = 9
    done = rig("apply", "--yes")
    assert done.code == 75
    assert "applied: " in done.err
    assert "not applied: " in done.err
    assert "`sovereign apply` again goes on from there" in done.err
    rig.cluster.fake.away_after = None
    rig.cluster.fake.stop()
    rig.cluster.fake.start()
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
    assert rig("diff").code == 0


def test_a_node_that_is_not_there(rig: Rig) -> None:
    rig.cluster.fake.objects.pop(("Node", "", "rig"))
    rig.cluster.add_node("box")
    done = rig("apply", "--yes")
    assert done.code == 70
    assert "it is for node `rig`, which the cluster does not have (it has box)" in done.err
    assert rig.cluster.fake.writes == ["PATCH /api/v1/nodes/box"]


def test_a_field_that_somebody_else_has_set(rig: Rig) -> None:
    with rig.cluster.readying():
        assert rig("apply", "--yes").code == 0
        live = next(
            one for (kind, _, name), one in rig.cluster.fake.objects.items()
            if (kind, name) == ("Deployment", "sovereign-gateway-rig")
        )  # fmt: skip
        rig.cluster.edit(live, {"spec": {"replicas": 5}})
        refused = rig("apply", "--yes")
        assert refused.code == 70
        assert ".spec.replicas belongs to `kubectl-edit`" in refused.err
        assert "take them over with --force-conflicts" in refused.err
        assert rig("apply", "--yes", "--force-conflicts").code == 0
        assert rig("diff").code == 0


def test_manifests_that_were_rendered_before(rig: Rig, here: Here, tmp_path: Path) -> None:
    folder, inventory = tmp_path / "manifests", str(RIG / "inventory.json")
    assert here("render", "-f", str(rig.factory), "-i", inventory, "-o", str(folder)).code == 0
    access = ("--kubeconfig", str(rig.cluster.kubeconfig))
    with rig.cluster.readying():
        assert here("apply", "--manifests", str(folder), *access, "--yes").code == 0
    assert here("diff", "--manifests", str(folder / "triton-stack.yaml"), *access).code == 0
    both = here("diff", "--manifests", str(folder), "-i", inventory, *access)
    assert (both.code, "leave out --inventory and --plan" in both.err) == (64, True)
    missing = here("diff", "--manifests", str(tmp_path / "nowhere"), *access)
    assert (missing.code, "sovereign render -o FOLDER" in missing.err) == (78, True)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "1e9"])
def test_a_timeout_that_is_none(rig: Rig, timeout: str) -> None:
    assert rig("apply", "--yes", f"--timeout={timeout}").code == 64


def test_whose_stack_is_meant(rig: Rig, here: Here) -> None:
    assert "sovereign down" in here("delete").err
    done = here("status", "-f", str(rig.factory))
    assert (done.code, "add --cluster" in done.err) == (64, True)
