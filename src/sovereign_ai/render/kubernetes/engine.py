"""One tritonserver on its devices: configuration, Deployment, Service. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from sovereign_ai.catalog.releases import IMAGE
from sovereign_ai.config import ClusterSettings
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.containers import (
    CONTAINER_SECURITY,
    GIB,
    MIB,
    environment,
    image,
    pod,
    quantity,
    weights,
    writable,
)
from sovereign_ai.render.kubernetes.labels import Object, described
from sovereign_ai.render.kubernetes.pinning import NO_DEVICES, Pin, pin
from sovereign_ai.render.kubernetes.storage import claim_name
from sovereign_ai.render.triton import TritonProcess
from sovereign_ai.spec import Deployment, Node, Tier

COMPONENT = "inference"
HTTP, GRPC, METRICS = 8000, 8001, 8002
SHARED = "/dev/shm"  # noqa: S108  in the pod
REPOSITORY, BACKENDS, CHECKS, CACHE = "/repository", "/opt/tritonserver/backends", "/checks", "/cache"

EXIT_TIMEOUT_S, PRE_STOP_S, KILL_MARGIN_S = 60, 10, 30
"""Before SIGTERM the pod leaves its Service and the gateway sees it; then Triton ends what runs."""

WORK_BYTES = 8 * GIB
"""Memory of the host beside /dev/shm: processes, pinned buffers, the shard that is being loaded."""
CPU_MARGIN_BYTES = 2 * GIB
CORES_OF_OTHERS, MOST_CORES, LEAST_CORES = 1.5, 2.0, 0.25
"""Of a node: what all other pods ask for, which must fit beside the engines; and what a group on cards is
given at most."""
MEMORY_OF_ENGINES = 0.75
"""Part of a node's that its engines ask for together at most: pods that ask for all of it find no place."""
UTILITY_SHARE = 4
"""Tiers after the first get this part of the primary tier's shared memory: their groups are smaller."""

LOAD_BYTES_PER_S = 200e6
"""The slowest reading that is waited for: a drive behind a riser, shared by all cards at start."""
LOAD_FIXED_S, LOAD_FACTOR = 120, 3
"""Start of the processes, profile and CUDA graphs; and a factor on everything, since to give up early is
worse than to wait."""
PULL_S = 1800
"""An image of 20 GB over a home's line may take half an hour before anything starts."""

OFFLINE = {
    "HOME": CACHE,
    "XDG_CACHE_HOME": CACHE,
    "HF_HOME": f"{CACHE}/hf",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "CUDA_CACHE_PATH": f"{CACHE}/nv",
    "NUMBA_CACHE_DIR": f"{CACHE}/numba",
    "OUTLINES_CACHE_DIR": f"{CACHE}/outlines",
}
"""Nothing is asked of the network, and everything that is written goes to the one folder that may be."""

ON_GPUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}
"""The default order is fastest first, which is not the plan's; ranks of one pod need no network card."""
ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "auto", "CUDA_VISIBLE_DEVICES": ""}


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has of a model: path → bytes and SHA-256. {} where it is not here: then the drive's own
    manifest is what is checked against."""

    files: Mapping[str, tuple[int, str]] = {}


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One tritonserver of the plan, with everything that its objects need."""

    process: TritonProcess
    members: tuple[Deployment, ...]
    tier: Tier
    alike: bool
    """Whether all cards of its node are of one kind."""
    cores: float
    memory_bytes: int
    """Its part of the node's, among the engines there."""

    @property
    def name(self) -> str:
        return names.dns_label(self.process.name, 52)  # what hashes and suffixes leave of 63

    @property
    def on_cpu(self) -> bool:
        return self.process.devices == ("cpu",)

    @property
    def weights_bytes(self) -> int:
        return sum(memory.weights_bytes for one in self.members for memory in one.memories)

    @property
    def startup_s(self) -> int:
        """How long loading may take."""
        return math.ceil(LOAD_FACTOR * (LOAD_FIXED_S + self.weights_bytes / LOAD_BYTES_PER_S))


def engine_image(settings: ClusterSettings, server: Server) -> str:
    """Raises ConfigError where no image is known that can run it."""
    if settings.engine_image is not None:
        return settings.engine_image
    if server.on_cpu:
        raise ConfigError(
            f"{server.process.name} computes on a CPU, for which NVIDIA has no Triton image with vLLM",
            "name one of your own: kubernetes.engine_image",
        )
    release = server.members[0].release
    return IMAGE.format(release)


def objects(
    settings: ClusterSettings, server: Server, material: Mapping[str, Material], backends: Mapping[str, str]
) -> list[Object]:
    """`backends`: file name → content of the backends that no image brings."""
    labels = _labels(settings, server)
    pinned = pin(settings, server.name, server.process.devices, server.alike, labels)
    repository = _immutable(settings, server, "repository", dict(_repository(server)), labels)
    checks = _immutable(settings, server, "checks", _checks(settings, server, material), labels)
    deployment = _deployment(settings, server, pinned, (repository, checks), backends, labels)
    return [*pinned.objects, repository, checks, _service(settings, server, labels), deployment,
            _budget(settings, server, labels)]  # fmt: skip


def _labels(settings: ClusterSettings, server: Server) -> dict[str, str]:
    return {
        **names.owned(settings.namespace),
        names.NAME: "triton",
        names.INSTANCE: server.name,
        names.COMPONENT: COMPONENT,
        names.TIER: names.label_value(server.tier.name),
    }


def _selector(server: Server) -> dict[str, str]:
    return {names.NAME: "triton", names.INSTANCE: server.name}


def _repository(server: Server) -> list[tuple[str, str]]:
    """Keys of a ConfigMap know no folders: files are numbered by model."""
    return [(key, server.process.files[path]) for path, key in _keys(server)]


def _keys(server: Server) -> list[tuple[str, str]]:
    """Path in the model repository → key in the ConfigMap."""
    keys = {
        f"{model}/{file}": f"{index}.{file.rpartition('/')[2]}"
        for index, model in enumerate(sorted(server.process.models))
        for file in ("config.pbtxt", "1/model.json")
    }
    return [(path, keys[path]) for path in sorted(server.process.files)]


def _checks(settings: ClusterSettings, server: Server, material: Mapping[str, Material]) -> dict[str, str]:
    from importlib import resources

    models = [
        {
            "name": one.model,
            "version": one.version,
            "files": dict(material.get(one.model, Material()).files),
        }
        for one in server.members
    ]
    checks = {"root": str(settings.storage.path), "sentinel": names.SENTINEL, "models": models}
    script = resources.files(__package__).joinpath("scripts/check_store.py").read_text(encoding="utf-8")
    text = msgspec.json.format(msgspec.json.encode(checks, order="deterministic"), indent=2).decode()
    return {"checks.json": text + "\n", "check_store.py": script}


def _immutable(
    settings: ClusterSettings, server: Server, what: str, data: dict[str, str], labels: dict[str, str]
) -> Object:
    """Another content has another name, so that a pod never sees half of a change."""
    name = f"{server.name[:40].rstrip('-')}-{what}-{names.digest(data)}"
    return described("ConfigMap", name, settings.namespace, labels, immutable=True, data=data)


def _service(settings: ClusterSettings, server: Server, labels: dict[str, str]) -> Object:
    ports = [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
        for name, port in (("http", HTTP), ("metrics", METRICS))
    ]
    spec = {"type": "ClusterIP", "selector": _selector(server), "ports": ports}
    return described("Service", server.name, settings.namespace, labels, spec=spec)


def _budget(settings: ClusterSettings, server: Server, labels: dict[str, str]) -> Object:
    """One of one may go: a drain that waits for a pinned pod would wait for ever."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": _selector(server)},
    }
    return described(
        "PodDisruptionBudget", server.name, settings.namespace, labels, api="policy/v1", spec=spec
    )


def _deployment(
    settings: ClusterSettings,
    server: Server,
    pinned: Pin,
    maps: tuple[Object, Object],
    backends: Mapping[str, str],
    labels: dict[str, str],
) -> Object:
    template = {"metadata": {"labels": labels}, "spec": _pod(settings, server, pinned, maps, backends)}
    spec = {
        "replicas": 1,
        # a rolling update would wait for cards that the old pod holds
        "strategy": {"type": "Recreate"},
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": server.startup_s + PULL_S,
        "selector": {"matchLabels": _selector(server)},
        "template": template,
    }
    return described("Deployment", server.name, settings.namespace, labels, api="apps/v1", spec=spec)


def _pod(
    settings: ClusterSettings,
    server: Server,
    pinned: Pin,
    maps: tuple[Object, Object],
    backends: Mapping[str, str],
) -> Object:
    shared = _shared_bytes(settings, server)
    drive, drive_mount = weights(settings, claim_name(server.process.node))
    writables = [writable("cache", CACHE, 20 * GIB), writable("tmp", "/tmp", 4 * GIB)]  # noqa: S108  in the pod
    mounts = [drive_mount, *(mount for _, mount in writables), {"name": "shm", "mountPath": SHARED}]
    mounts += [
        {"name": "repository", "mountPath": f"{REPOSITORY}/{path}", "subPath": key, "readOnly": True}
        for path, key in _keys(server)
    ]
    needed = sorted({one.backend for one in server.members} & backends.keys())
    mounts += [
        {"name": "backends", "mountPath": f"{BACKENDS}/{name}/model.py", "subPath": name, "readOnly": True}
        for name in needed
    ]
    check_mounts = [drive_mount, {"name": "checks", "mountPath": CHECKS, "readOnly": True}]
    volumes = [
        drive,
        *(volume for volume, _ in writables),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(shared)}},
        {"name": "repository", "configMap": {"name": maps[0]["metadata"]["name"]}},
        {"name": "checks", "configMap": {"name": maps[1]["metadata"]["name"]}},
    ]
    if needed:
        volumes.append({"name": "backends", "configMap": {"name": backends_name(backends)}})
    return pod(
        settings,
        **pinned.pod,
        serviceAccountName="sovereign-engine",
        # as PID 1, Triton would ignore SIGTERM while it loads
        shareProcessNamespace=True,
        priorityClassName=priority_class(settings, server.tier),
        terminationGracePeriodSeconds=PRE_STOP_S + EXIT_TIMEOUT_S + KILL_MARGIN_S,
        nodeSelector={names.HOSTNAME: server.process.node},
        tolerations=_tolerations(),
        initContainers=[_check(settings, check_mounts)],
        containers=[_container(settings, server, pinned, shared, mounts)],
        volumes=volumes,
    )


def _tolerations() -> list[Object]:
    """A pod that only one node can run has nowhere to go when that node is away."""
    lasting = [
        {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute"}
        for what in ("unreachable", "not-ready")
    ]
    return [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, *lasting]


def _check(settings: ClusterSettings, mounts: Sequence[Object]) -> Object:
    return {
        "name": "check-store",
        **image(settings, settings.control_image),
        "command": ["python3", f"{CHECKS}/check_store.py", f"{CHECKS}/checks.json"],
        "env": environment(NO_DEVICES),
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"cpu": "2", "memory": "256Mi"},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": list(mounts),
    }


def _container(
    settings: ClusterSettings, server: Server, pinned: Pin, shared: int, mounts: Sequence[Object]
) -> Object:
    variables = {**OFFLINE, **(ON_CPU if server.on_cpu else ON_GPUS), **pinned.environment}
    for one in server.members:
        variables |= one.environment
    return {
        "name": "triton",
        **image(settings, engine_image(settings, server)),
        "command": _command(),
        "env": environment(variables),
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in (("http", HTTP), ("grpc", GRPC), ("metrics", METRICS))
        ],
        **_probes(server),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "resources": _resources(server, pinned, shared),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": list(mounts),
    }


def _command() -> list[str]:
    return [
        "tritonserver",
        f"--model-repository={REPOSITORY}",
        f"--http-port={HTTP}",
        f"--grpc-port={GRPC}",
        f"--metrics-port={METRICS}",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--log-format=ISO8601",
    ]


def _probes(server: Server) -> Object:
    """Ports are closed while models load, so only the startup probe may fail for long."""

    def probe(path: str, period_s: int, timeout_s: int, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": period_s,
            "timeoutSeconds": timeout_s,
            "failureThreshold": failures,
        }

    # all models of the server are ready then, and strict readiness says so
    return {
        "startupProbe": probe("/v2/health/ready", 10, 3, math.ceil(server.startup_s / 10)),
        "livenessProbe": probe("/v2/health/live", 10, 5, 6),
        "readinessProbe": probe("/v2/health/ready", 5, 3, 3),
    }


def _shared_bytes(settings: ClusterSettings, server: Server) -> int:
    whole = settings.shared_memory_gib * GIB
    if server.on_cpu or server.tier.rank > 1:
        return max(GIB, whole // UTILITY_SHARE // GIB * GIB)
    return whole


def _resources(server: Server, pinned: Pin, shared: int) -> Object:
    """The pages of /dev/shm count against the limit: it must hold both."""
    if server.on_cpu:
        need = sum(memory.total_bytes for one in server.members for memory in one.memories)
        work = -(-(need + CPU_MARGIN_BYTES) // GIB) * GIB
    else:
        work = WORK_BYTES
    asked = min(work, int(server.memory_bytes * MEMORY_OF_ENGINES) // MIB * MIB)
    resources: Object = {
        "requests": {"cpu": _cores(server), "memory": quantity(asked), **pinned.resources},
        "limits": {"memory": quantity(work + shared), **pinned.resources},
    }
    if pinned.claims:
        resources["claims"] = [{"name": name} for name in pinned.claims]
    return resources


def _cores(server: Server) -> str:
    """No limit goes with it, so it is a share under load and no bound."""
    most = math.inf if server.on_cpu else MOST_CORES
    thousandths = math.floor(1000 * max(LEAST_CORES, min(server.cores, most)))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def part_of(node: Node | None, servers: int) -> tuple[float, int]:
    """(cores, bytes of memory) for each of so many engines of a node: never more than half of its cores. Of a
    node that is not known: as if it were large."""
    if node is None:
        return MOST_CORES, math.ceil(WORK_BYTES / MEMORY_OF_ENGINES)
    return min(node.cores - CORES_OF_OTHERS, node.cores / 2) / servers, node.memory_bytes // servers


def priority_class(settings: ClusterSettings, tier: Tier) -> str:
    return names.dns_label(f"{settings.namespace}-tier-{tier.rank}")


def backends_name(backends: Mapping[str, str]) -> str:
    return f"sovereign-backends-{names.digest(dict(backends))}"
