"""All objects of a plan, in the order in which they are applied. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from sovereign_ai.config import ClusterSettings, GatewaySettings
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes import agent, cluster, engine, gateway, labels, monitoring, storage
from sovereign_ai.render.kubernetes.engine import Material, Server
from sovereign_ai.render.kubernetes.labels import Object, described
from sovereign_ai.render.routes import render_routes
from sovereign_ai.render.triton import TritonProcess, triton_processes
from sovereign_ai.spec import Deployment, Inventory, Plan, Routes, Tier


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan's objects are made of. `keys`: digests of API keys, as JSON; `backends`: name → model.py of
    the backends that no image brings; `material`: model → its files; `created`: unix seconds, told to clients
    as the models' age."""

    plan: Plan
    inventory: Inventory
    cluster: ClusterSettings
    gateway: GatewaySettings = GatewaySettings()
    keys: str = "[]"
    backends: Mapping[str, str] = {}
    material: Mapping[str, Material] = {}
    fallbacks: Mapping[str, Sequence[str]] = {}
    created: int = 0


def render_stack(stack: Stack) -> tuple[Object, ...]:
    """Every object carries the stack's labels and a hash of the plan. Raises ConfigError where the cluster
    cannot take the plan."""
    if not stack.plan.deployments:
        raise ConfigError("the plan deploys nothing", "sovereign plan says why")
    settings = stack.cluster
    servers = _servers(stack)
    nodes = sorted({server.process.node for server in servers})
    with_cards = sorted({server.process.node for server in servers if not server.on_cpu})
    objects = [
        cluster.namespace(settings),
        *(cluster.runtime_classes(settings) if with_cards else []),
        *cluster.priority_classes(settings, _used_tiers(servers)),
        *storage.storage(settings, nodes),
        *cluster.accounts(settings),
        *cluster.policies(settings, upstreams=bool(stack.gateway.upstreams)),
        *agent.agent(settings, with_cards),
        *_backends(stack, servers),
        *(one for server in servers for one in _engine(stack, server)),
        *gateway.gateway(settings, stack.gateway, _routes(stack, servers), stack.keys, nodes),
        *monitoring.monitoring(settings),
    ]  # fmt: skip
    plan_hash = _hash_of(stack.plan)
    return tuple(_with_hash(one, plan_hash) for one in objects)


def _hash_of(plan: Plan) -> str:
    """Of what runs where. Predicted speeds are left out: their last digits are the processor's."""
    running = [msgspec.structs.replace(one, speed=None) for one in plan.deployments]
    return labels.digest([msgspec.to_builtins(running), {one.name: one.devices for one in plan.tiers}])


def _engine(stack: Stack, server: Server) -> list[Object]:
    return engine.objects(stack.cluster, server, stack.material, stack.backends)


def _with_hash(one: Object, plan_hash: str) -> Object:
    return {**one, "metadata": {**one["metadata"], "annotations": {labels.PLAN_HASH: plan_hash}}}


def _servers(stack: Stack) -> list[Server]:
    processes = triton_processes(stack.plan, _folders(stack))
    tiers = {tier.name: tier for tier in stack.plan.tiers}
    nodes = {node.name: node for node in stack.inventory.nodes}
    kinds = {name: {one.name for one in node.devices if one.kind == "gpu"} for name, node in nodes.items()}
    engines = Counter(process.node for process in processes)
    servers = []
    for process in processes:
        members = _members(stack.plan, process)
        cores, memory_bytes = engine.part_of(nodes.get(process.node), engines[process.node])
        server = Server(
            process=process,
            members=members,
            tier=tiers[members[0].tier],
            alike=len(kinds.get(process.node, set())) == 1,
            cores=cores,
            memory_bytes=memory_bytes,
        )
        servers.append(server)
    return sorted(servers, key=lambda one: (one.tier.rank, one.name))


def _members(plan: Plan, process: TritonProcess) -> tuple[Deployment, ...]:
    here = (process.node, process.devices)
    return tuple(one for one in plan.deployments if (one.node, one.devices) == here)


def _used_tiers(servers: Sequence[Server]) -> list[Tier]:
    return sorted({server.tier.rank: server.tier for server in servers}.values(), key=lambda tier: tier.rank)


def _folders(stack: Stack) -> dict[str, str]:
    """Model → the folder of its weights, on the node and in the pods alike."""
    root = stack.cluster.storage.path / "models"
    return {one.model: str(root / one.model / one.version) for one in stack.plan.deployments}


def _routes(stack: Stack, servers: Sequence[Server]) -> Routes:
    suffix = f"{stack.cluster.namespace}.svc:{engine.HTTP}"
    return render_routes(
        stack.plan,
        [server.process for server in servers],
        _folders(stack),
        {server.process.name: f"http://{server.name}.{suffix}" for server in servers},
        created=stack.created,
        upstreams=stack.gateway.upstreams,
        fallbacks=stack.fallbacks,
    )


def _backends(stack: Stack, servers: Sequence[Server]) -> list[Object]:
    needed = {one.backend for server in servers for one in server.members} & stack.backends.keys()
    if not needed:
        return []
    name, owned = engine.backends_name(stack.backends), labels.owned(stack.cluster.namespace)
    data = dict(sorted(stack.backends.items()))
    return [described("ConfigMap", name, stack.cluster.namespace, owned, immutable=True, data=data)]
