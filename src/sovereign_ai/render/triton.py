"""Triton model repositories: one server per group of devices, its models side by side. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from sovereign_ai.engines import triton
from sovereign_ai.spec import Deployment, Noun, Plan


class TritonProcess(Noun, frozen=True, kw_only=True):
    """One tritonserver: `files` maps a path inside its model repository to the content."""

    name: str
    node: str
    devices: tuple[str, ...]
    models: tuple[str, ...]
    files: dict[str, str]


def triton_processes(plan: Plan, folders: Mapping[str, str]) -> tuple[TritonProcess, ...]:
    """One process per device group, in the plan's order of tiers.

    `folders` maps a model's name to the folder of its weights. Triton has no field for devices: a server sees
    its group and nothing else, so every group gets a server of its own.
    """

    def group(deployment: Deployment) -> tuple[str, tuple[str, ...]]:
        return deployment.node, deployment.devices

    ordered = sorted(plan.deployments, key=group)
    several = len({deployment.node for deployment in ordered}) > 1
    return tuple(
        _process(node, devices, tuple(members), folders, f"{node}-" if several else "")
        for (node, devices), members in groupby(ordered, group)
    )


def _process(
    node: str,
    devices: tuple[str, ...],
    members: tuple[Deployment, ...],
    folders: Mapping[str, str],
    prefix: str,
) -> TritonProcess:
    """`prefix` tells the nodes apart: every CPU is called `cpu`."""
    files: dict[str, str] = {}
    for member in members:
        files[f"{member.model}/config.pbtxt"] = triton.config_pbtxt(member)
        files[f"{member.model}/1/model.json"] = triton.model_json(member, folders[member.model])
    label = "-".join(device.lower().removeprefix("gpu-")[:8] for device in devices)
    return TritonProcess(
        name=f"triton-{prefix}{label}",
        node=node,
        devices=devices,
        models=tuple(member.model for member in members),
        files=files,
    )
