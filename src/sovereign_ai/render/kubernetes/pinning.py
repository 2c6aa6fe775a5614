"""How a pod gets the cards that it was planned for, and no others.

| mode | how | needs |
|---|---|---|
| tokens | an extended resource for each card, 1 on its node, patched there by the agent: the scheduler arbitrates | a RuntimeClass; no device plugin beside it |
| dra | a ResourceClaimTemplate that asks for the UUIDs | Kubernetes 1.34, NVIDIA's DRA driver |
| device-plugin | a number of nvidia.com/gpu: any of the node's cards | cards that are all alike |
| env | NVIDIA_VISIBLE_DEVICES alone: nobody arbitrates | a rig with one tenant |
"""  # noqa: E501  a table

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sovereign_ai.config import CLUSTER_VERSIONS, DRA_FROM, ClusterSettings, Pinning
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes.labels import Object, described, digest, token

DEVICE_PLUGIN = "nvidia.com/gpu"
DRA_CLASS = "gpu.nvidia.com"
OWN_RUNTIME_CLASS = "sovereign-nvidia"
VISIBLE = "NVIDIA_VISIBLE_DEVICES"
NO_DEVICES = {VISIBLE: "void"}
"""NGC images say `all`: a container that computes nothing must not see a card."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """What pins one pod. `resources` are limits of its container, `pod` fields of its specification,
    `objects` stand beside it."""

    environment: Mapping[str, str] = {}
    resources: Mapping[str, str] = {}
    claims: tuple[str, ...] = ()
    pod: Mapping[str, Any] = {}
    objects: tuple[Object, ...] = ()


def mode_of(settings: ClusterSettings) -> Pinning:
    """The mode itself, where `auto` is asked for."""
    if settings.pinning != "auto":
        return settings.pinning
    return "dra" if CLUSTER_VERSIONS.index(settings.version) >= DRA_FROM else "tokens"


def runtime_class(settings: ClusterSettings) -> str:
    return settings.runtime_class or OWN_RUNTIME_CLASS


def pin(
    settings: ClusterSettings, name: str, devices: tuple[str, ...], alike: bool, labels: dict[str, str]
) -> Pin:
    """`alike`: whether all cards of the node are of one kind. Raises ConfigError where the mode cannot pin
    these."""
    if devices == ("cpu",):
        return Pin()
    mode = mode_of(settings)
    visible = {VISIBLE: ",".join(devices), "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    runtime = {"runtimeClassName": runtime_class(settings)}
    if mode == "dra":
        return _claimed(settings, name, devices, labels)
    if mode == "device-plugin":
        if not alike:
            raise ConfigError(
                f"pinning `device-plugin` cannot serve {name}: its node has cards of several kinds, and the "
                "plugin would hand out any of them",
                "use `tokens`, or `dra` from Kubernetes 1.34 on",
            )
        return Pin(resources={DEVICE_PLUGIN: str(len(devices))}, pod=runtime)
    tokens = {token(device): "1" for device in devices} if mode == "tokens" else {}
    return Pin(environment=visible, resources=tokens, pod=runtime)


def _claimed(settings: ClusterSettings, name: str, devices: tuple[str, ...], labels: dict[str, str]) -> Pin:
    """A claim of the pod's own: a named one could be reserved for two pods at once."""
    requests = [
        {
            "name": f"card-{index}",
            "exactly": {
                "deviceClassName": DRA_CLASS,
                "allocationMode": "ExactCount",
                "count": 1,
                "selectors": [{"cel": {"expression": _is_card(device)}}],
            },
        }
        for index, device in enumerate(devices)
    ]
    spec = {"spec": {"devices": {"requests": requests}}}
    template_name = f"{name[:50].rstrip('-')}-{digest(spec)}"
    template = described(
        "ResourceClaimTemplate",
        template_name,
        settings.namespace,
        labels,
        api="resource.k8s.io/v1",
        spec=spec,
    )
    claims = [{"name": "cards", "resourceClaimTemplateName": template_name}]
    return Pin(claims=("cards",), pod={"resourceClaims": claims}, objects=(template,))


def _is_card(device: str) -> str:
    """CEL that is true of one card. A quote or a backslash would end the text in it."""
    quoted = device.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'device.attributes["{DRA_CLASS}"].uuid == "{quoted}"'
