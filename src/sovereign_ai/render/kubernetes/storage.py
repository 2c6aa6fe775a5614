"""The models' drive of each node, as the cluster sees it. Pure."""

from __future__ import annotations

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes.labels import HOSTNAME, Object, described, dns_label, owned

STORAGE_CLASS = "sovereign-local"


def claim_name(node: str) -> str:
    return dns_label(f"weights-{node}")


def storage(settings: ClusterSettings, nodes: list[str]) -> list[Object]:
    """A volume and a claim that are made for each other, for each node; nothing for `hostPath`.

    Pod Security looks at a pod's own volumes: a claim passes `restricted`, whatever is behind it.
    """
    if settings.storage.kind != "local":
        return []
    labels = owned(settings.namespace)
    storage_class = described(
        "StorageClass",
        STORAGE_CLASS,
        None,
        labels,
        api="storage.k8s.io/v1",
        provisioner="kubernetes.io/no-provisioner",
        volumeBindingMode="WaitForFirstConsumer",
        reclaimPolicy="Retain",
    )
    return [storage_class, *(one for node in nodes for one in _of_node(settings, node))]


def _of_node(settings: ClusterSettings, node: str) -> list[Object]:
    labels, claim = owned(settings.namespace), claim_name(node)
    volume = dns_label(f"{settings.namespace}-{claim}")
    size = {"storage": f"{settings.storage.capacity_gib}Gi"}
    modes, here = ["ReadOnlyMany"], {"key": HOSTNAME, "operator": "In", "values": [node]}
    return [
        described(
            "PersistentVolume",
            volume,
            None,
            labels,
            spec={
                "capacity": size,
                "accessModes": modes,
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": STORAGE_CLASS,
                "volumeMode": "Filesystem",
                "local": {"path": str(settings.storage.path)},
                "claimRef": {"namespace": settings.namespace, "name": claim},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        ),
        described(
            "PersistentVolumeClaim",
            claim,
            settings.namespace,
            labels,
            spec={
                "accessModes": modes,
                "storageClassName": STORAGE_CLASS,
                "volumeName": volume,
                "resources": {"requests": size},
            },
        ),
    ]
