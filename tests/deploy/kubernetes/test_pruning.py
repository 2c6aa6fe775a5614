from __future__ import annotations

from typing import Any

from sovereign_ai.deploy.kubernetes.kinds import LAST_GOOD, title
from sovereign_ai.deploy.kubernetes.pruning import in_order_of_deletion, other_stacks, to_delete, to_prune
from sovereign_ai.render.kubernetes.labels import COMPONENT, Object, described, owned
from tests.deploy.kubernetes.stacks import less, small

OURS = owned("sovereign")


def live(kind: str, name: str = "old", labels: dict[str, str] | None = None, **metadata: Any) -> Object:
    one = described(kind, name, "sovereign", OURS if labels is None else labels)
    one["metadata"].update(metadata)
    return one


def pruned(*found: Object, alone: bool = True) -> list[str]:
    return [title(one) for one in to_prune(small(), found, alone=alone)]


def test_what_is_wanted_stays_and_what_is_not_goes() -> None:
    assert pruned(*small().objects, live("ConfigMap"), live("Deployment")) == [
        "Deployment/old",
        "ConfigMap/old",
    ]
    gone = less(small(), "Service/engine")
    assert [title(one) for one in to_prune(gone, small().objects, alone=True)] == ["Service/engine"]


def test_storage_is_never_pruned() -> None:
    kinds = ("PersistentVolume", "PersistentVolumeClaim", "StorageClass", "Namespace")
    assert pruned(*(live(kind) for kind in kinds)) == []


def test_only_what_carries_every_label_of_ours() -> None:
    for missing in OURS:
        assert pruned(live("ConfigMap", labels={key: OURS[key] for key in OURS if key != missing})) == []
    assert pruned(live("ConfigMap", labels=owned("other"))) == []
    assert pruned(live("ConfigMap", labels={})) == []


def test_kinds_that_we_never_render_stay() -> None:
    assert pruned(live("Job"), live("Pod")) == []


def test_what_was_good_is_kept() -> None:
    assert pruned(live("Secret", labels={**OURS, COMPONENT: LAST_GOOD})) == []
    assert pruned(live("Secret")) == ["Secret/old"]


def test_what_has_an_owner_or_goes_already() -> None:
    assert pruned(live("ConfigMap", ownerReferences=[{"name": "x"}])) == []
    assert pruned(live("ConfigMap", deletionTimestamp="now")) == []


def test_what_other_stacks_share_stays_while_there_are_any() -> None:
    assert pruned(live("RuntimeClass"), alone=False) == []
    assert pruned(live("RuntimeClass")) == ["RuntimeClass/old"]


def test_delete_takes_all_but_the_storage() -> None:
    found = [
        *small().objects,
        live("Secret", labels={**OURS, COMPONENT: LAST_GOOD}),
        live("ConfigMap", labels={}),
    ]
    without = [title(one) for one in to_delete("sovereign", found, alone=True, with_storage=False)]
    assert without == [
        "Deployment/engine",
        "DaemonSet/agent",
        "Service/engine",
        "Secret/keys",
        "Secret/old",
        "ConfigMap/engine-1",
    ]
    everything = [title(one) for one in to_delete("sovereign", found, alone=True, with_storage=True)]
    assert everything == [
        *without,
        "PersistentVolumeClaim/weights",
        "PersistentVolume/sovereign-weights",
        "Namespace/sovereign",
    ]


def test_the_order_of_deletion_is_the_other_way_round() -> None:
    ordered = in_order_of_deletion(small().objects)
    assert [one["kind"] for one in ordered][:2] == ["Deployment", "DaemonSet"]
    assert ordered[-1]["kind"] == "Namespace"


def test_other_stacks() -> None:
    ours, other = (described("Namespace", name, None, owned(name)) for name in ("sovereign", "other"))
    assert not other_stacks([ours], "sovereign")
    assert other_stacks([ours, other], "sovereign")
    assert not other_stacks([described("Namespace", "foreign", None, {})], "sovereign")
