"""A stack as small as one can be that has everything: also what a real API server takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from sovereign_ai.deploy.kubernetes.kinds import title
from sovereign_ai.deploy.kubernetes.manifests import Wanted, wanted
from sovereign_ai.render.kubernetes.labels import Object, described, owned

IMAGE = "localhost/engine:1.0"


def container(name: str, image: str = IMAGE, **more: Any) -> Object:
    probe = {"httpGet": {"path": "/ready", "port": 8000}, "periodSeconds": 10, "failureThreshold": 30}
    return {"name": name, "image": image, "startupProbe": probe, **more}


def workload(kind: str, name: str, namespace: str, **spec: Any) -> Object:
    selected = {"app.kubernetes.io/name": name}
    labels = {**owned(namespace), **selected}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 60, "containers": [container("main")]},
    }
    fields = {"selector": {"matchLabels": selected}, "template": template, **spec}
    return described(kind, name, namespace, labels, api="apps/v1", spec=fields)


def objects(namespace: str) -> list[Object]:
    labels = owned(namespace)
    volume, claim = f"{namespace}-weights", "weights"
    size, modes = {"storage": "1Gi"}, ["ReadOnlyMany"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["rig"]}
    return [
        described("Namespace", namespace, None, labels),
        described(
            "PersistentVolume",
            volume,
            None,
            labels,
            spec={
                "capacity": size,
                "accessModes": modes,
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "sovereign-local",
                "local": {"path": "/mnt/drive"},
                "claimRef": {"namespace": namespace, "name": claim},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        ),
        described(
            "PersistentVolumeClaim",
            claim,
            namespace,
            labels,
            spec={
                "accessModes": modes,
                "storageClassName": "sovereign-local",
                "volumeName": volume,
                "resources": {"requests": size},
            },
        ),
        described("ConfigMap", "engine-1", namespace, labels, immutable=True, data={"model.json": "{}\n"}),
        described("Secret", "keys", namespace, labels, type="Opaque", stringData={"keys.json": "[]\n"}),
        described(
            "Service",
            "engine",
            namespace,
            labels,
            spec={
                "selector": {"app.kubernetes.io/name": "engine"},
                "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}],
            },
        ),
        workload("DaemonSet", "agent", namespace),
        workload(
            "Deployment",
            "engine",
            namespace,
            replicas=1,
            strategy={"type": "Recreate"},
            progressDeadlineSeconds=600,
        ),
    ]


def small(namespace: str = "sovereign", **changes: Callable[[Object], object]) -> Wanted:
    """`changes`: kind of an object → what changes it in place."""
    made = copy.deepcopy(objects(namespace))
    for kind, change in changes.items():
        change(next(one for one in made if one["kind"] == kind))
    return wanted(made)


def less(stack: Wanted, *titles: str) -> Wanted:
    assert set(titles) <= set(map(title, stack.objects))
    return Wanted(stack.namespace, tuple(one for one in stack.objects if title(one) not in titles))


def more(stack: Wanted, *added: Object) -> Wanted:
    return wanted([*stack.objects, *added])


def pod_of(one: Object) -> Object:
    found: Object = one["spec"]["template"]["spec"]
    return found


def with_image(image: str) -> Callable[[Object], object]:
    return lambda one: pod_of(one)["containers"][0].update(image=image)


def the(stack: Wanted, wanted_title: str) -> Object:
    return next(one for one in stack.objects if title(one) == wanted_title)
