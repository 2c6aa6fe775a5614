"""The nouns that every stage shares. Frozen, no I/O.

Memory is in bytes, time in seconds. A stage is a function from these to these; each of them can be saved
as JSON, diffed and edited.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Task = Literal["chat", "embed"]
DeviceKind = Literal["cpu", "gpu"]


class Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all nouns: frozen, keyword-only, unknown fields refused when read.

    Each noun repeats `frozen` and `kw_only`: msgspec does not hand `kw_only` down, and type checkers
    want both spelled out.
    """


class Device(Noun, frozen=True, kw_only=True):
    """One accelerator of a node: a GPU by its UUID, or `cpu` where there is none."""

    id: str
    kind: DeviceKind
    name: str
    memory_bytes: int
    memory_free_bytes: int
    index: int = 0
    cores: int = 0
    instruction_sets: tuple[str, ...] = ()
    compute_capability: str | None = None
    pci_address: str | None = None


class Node(Noun, frozen=True, kw_only=True):
    """One machine, as measured."""

    name: str
    devices: tuple[Device, ...]
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    driver_version: str | None = None


class Inventory(Noun, frozen=True, kw_only=True):
    """All nodes and devices."""

    nodes: tuple[Node, ...]

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for node in self.nodes for device in node.devices)


class Tier(Noun, frozen=True, kw_only=True):
    """An ordered class of devices. Rank 1 comes first; `rule` is the reason the devices are in it."""

    name: str
    rank: int
    role: str
    rule: str
    devices: tuple[str, ...]


class Shape(Noun, frozen=True, kw_only=True):
    """What a model's config says of its size: the inputs of every memory formula."""

    architecture: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context_max: int


class Model(Noun, frozen=True, kw_only=True):
    """A named, versioned entry of the store (or one that the catalog knows and the store will hold)."""

    name: str
    version: str
    task: Task
    source: str
    weights_bytes: int
    dtype: str
    shape: Shape


class Memory(Noun, frozen=True, kw_only=True):
    """Predicted memory of one deployment on each of its devices, in bytes."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes


class Deployment(Noun, frozen=True, kw_only=True):
    """One model on one group of devices. `engine_args` go verbatim to the engine's model.json."""

    model: str
    version: str
    task: Task
    engine: Literal["triton"]
    backend: Literal["vllm", "embedding"]
    node: str
    tier: str
    devices: tuple[str, ...]
    context: int
    max_num_seqs: int
    memory: Memory
    engine_args: dict[str, Any] = {}
    reason: str = ""


class Rejected(Noun, frozen=True, kw_only=True):
    """An option that lost, and the number behind it."""

    model: str
    option: str
    reason: str


class Plan(Noun, frozen=True, kw_only=True):
    """Tiers + deployments + the rejected options."""

    tiers: tuple[Tier, ...]
    deployments: tuple[Deployment, ...]
    rejected: tuple[Rejected, ...] = ()


class Endpoint(Noun, frozen=True, kw_only=True):
    """One replica's address. `model` is the name the upstream knows it by."""

    name: str
    url: str
    engine: Literal["triton"]
    model: str


class Route(Noun, frozen=True, kw_only=True):
    """Model name → endpoints, in order of preference. `folder` holds tokenizer and chat template."""

    model: str
    task: Task
    context: int
    folder: str
    endpoints: tuple[Endpoint, ...]
    created: int = 0


class Routes(Noun, frozen=True, kw_only=True):
    """What the gateway serves (routes.json)."""

    routes: tuple[Route, ...]
