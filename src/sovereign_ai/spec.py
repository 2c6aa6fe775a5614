"""The nouns that every stage shares. Frozen, no I/O.

Memory is in bytes, time in seconds. A stage is a function from these to these; each of them can be saved
as JSON, diffed and edited.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Task = Literal["chat", "embed"]
DeviceKind = Literal["cpu", "gpu"]
LinkKind = Literal["nvlink", "p2p", "host"]
Format = Literal["float32", "bfloat16", "float16", "fp8", "int8", "w4a16", "awq", "gptq", "bnb4"]
"""How an engine holds the weights. `fp8`, `int8` (8-bit weights and activations) and `w4a16` are what
quantizing makes; `awq`, `gptq` and `bnb4` are other 4-bit layouts that a checkpoint can come in. Embedding
and head stay 16 bit in all of the quantized ones."""


class Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all nouns: frozen, keyword-only, unknown fields refused when read.

    Each noun repeats `frozen` and `kw_only`: msgspec does not hand `kw_only` down, and type checkers
    want both spelled out.
    """


class Pcie(Noun, frozen=True, kw_only=True):
    """A card's link to its host: generation and lanes as they are now and at most. A card at rest lowers the
    generation to save power; lanes that are missing at rest are missing."""

    generation: int
    generation_max: int
    width: int
    width_max: int


class Device(Noun, frozen=True, kw_only=True):
    """One accelerator of a node: a GPU by its UUID, or `cpu` where there is none.

    `memory_bytes` is NVML's total, `memory_free_bytes` what nobody uses, `memory_reserved_bytes` what the
    driver keeps for itself; the rest is in use by others. `bandwidth_bytes_per_s` is the memory's peak,
    as the driver's bus width and clock give it. None: the driver does not tell. `fault` is empty for a
    card in health.
    """

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
    memory_reserved_bytes: int = 0
    bandwidth_bytes_per_s: float | None = None
    pcie: Pcie | None = None
    display_attached: bool | None = None
    power_limit_w: float | None = None
    power_limit_max_w: float | None = None
    fault: str = ""

    @property
    def memory_others_bytes(self) -> int:
        """Bytes that processes hold now."""
        return max(0, self.memory_bytes - self.memory_free_bytes - self.memory_reserved_bytes)


class Link(Noun, frozen=True, kw_only=True):
    """How two devices of a node reach each other: NVLink, peer-to-peer over PCIe, or through host memory.
    Pairs that are not listed go through host memory, as all GeForce cards do."""

    a: str
    b: str
    kind: LinkKind


class Node(Noun, frozen=True, kw_only=True):
    """One machine, as measured."""

    name: str
    devices: tuple[Device, ...]
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    cpu: str = ""
    driver_version: str | None = None
    links: tuple[Link, ...] = ()


class Inventory(Noun, frozen=True, kw_only=True):
    """All nodes and devices."""

    nodes: tuple[Node, ...]

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for node in self.nodes for device in node.devices)


class Tier(Noun, frozen=True, kw_only=True):
    """An ordered class of devices. Rank 1 comes first; `rule` is the reason for the tier, `reasons` has one
    sentence for each device, by its id."""

    name: str
    rank: int
    role: str
    rule: str
    devices: tuple[str, ...]
    reasons: dict[str, str] = {}


class Vision(Noun, frozen=True, kw_only=True):
    """The image encoder of a model that also reads images: what its start-up profile takes memory for.
    `patches` is the largest number of patches of one image, `outputs` the tokens they become."""

    layers: int
    hidden: int
    intermediate: int
    patches: int
    outputs: int


class Shape(Noun, frozen=True, kw_only=True):
    """What a model's config says of its size: the inputs of every memory formula.

    `parameters` counts all of them; `intermediate` is the width of a dense layer's MLP. Mixture of experts:
    `experts` in each MoE layer, of which `experts_per_token` compute, each `expert_intermediate` wide, beside
    shared experts of `shared_intermediate` together; the first `dense_layers` have no experts.
    `sliding_layers` of the layers see `sliding_window` tokens only. `tied_head`: the output head is the
    embedding.
    """

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
    tied_head: bool = False
    gated_mlp: bool = True
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_layers: int = 0
    sliding_window: int = 0
    sliding_layers: int = 0
    vision: Vision | None = None

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding and of the head, which is the same table where it is tied."""
        return self.vocabulary * self.hidden * (1 if self.tied_head else 2)


class Model(Noun, frozen=True, kw_only=True):
    """A named, versioned entry of the store (or one that the catalog knows and the store will hold)."""

    name: str
    version: str
    task: Task
    source: str
    weights_bytes: int
    dtype: str
    shape: Shape
    format: Format | None = None

    @property
    def given_format(self) -> Format:
        """The format of the checkpoint: `format` where it is quantized, else by its dtype."""
        if self.format is not None:
            return self.format
        return self.dtype if self.dtype in ("float32", "float16") else "bfloat16"  # type: ignore[return-value]


class Memory(Noun, frozen=True, kw_only=True):
    """Predicted memory of one deployment on one of its devices, in bytes.

    `overhead_bytes` is what the driver's context, the communication library and the engine's processes take;
    `graphs_bytes` are CUDA graphs.
    """

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    graphs_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.kv_cache_bytes
            + self.activation_bytes
            + self.overhead_bytes
            + self.graphs_bytes
        )


class Speed(Noun, frozen=True, kw_only=True):
    """Predicted speed of one deployment.

    Tokens a second of one stream alone (`decode_one`) and of all streams at the largest batch that the KV
    cache holds (`decode_full`, of `batch` streams with `batch_context` tokens each); prompt tokens a second
    (`prefill`); seconds to the first token of a prompt of so many tokens (`ttft_s`); tokens a second of 1,
    2, 4, … streams up to the full batch (`curve`)."""

    decode_one: float
    decode_full: float
    batch: int
    batch_context: int
    prefill: float
    ttft_s: dict[int, float] = {}
    curve: tuple[tuple[int, float], ...] = ()


class Deployment(Noun, frozen=True, kw_only=True):
    """One model on one group of devices. `engine_args` go verbatim to the engine's model.json.

    `replica` counts the deployments of the same model from 0. `memories` has one entry a device, in the order
    of `devices`, which is the order of ranks: pipeline stage by stage. `layer_partition` has the layers of
    each stage.
    `to_make` is set where the store does not have the weights in this `format` yet.
    """

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
    memories: tuple[Memory, ...]
    engine_args: dict[str, Any] = {}
    environment: dict[str, str] = {}
    reason: str = ""
    replica: int = 0
    release: str = ""
    vllm: str = ""
    tp: int = 1
    pp: int = 1
    layer_partition: tuple[int, ...] = ()
    format: Format = "bfloat16"
    to_make: bool = False
    kv_tokens: int = 0
    speed: Speed | None = None

    @property
    def memory(self) -> Memory:
        """Of the device that holds most."""
        return max(self.memories, key=lambda memory: memory.total_bytes)


class Rejected(Noun, frozen=True, kw_only=True):
    """An option that lost, and the number behind it. `fits`: it would run, another is better."""

    model: str
    option: str
    reason: str
    fits: bool = False


class Unplaced(Noun, frozen=True, kw_only=True):
    """A model that found no place because others, of higher priority or more use, took the devices."""

    model: str
    reason: str


class Plan(Noun, frozen=True, kw_only=True):
    """Tiers + deployments + the rejected options. `inventory` is a digest of what it was made for."""

    tiers: tuple[Tier, ...]
    deployments: tuple[Deployment, ...]
    rejected: tuple[Rejected, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    warnings: tuple[str, ...] = ()
    inventory: str = ""


class Endpoint(Noun, frozen=True, kw_only=True):
    """One replica's address. `engine`: Triton, vLLM's own server, or any other server that speaks OpenAI's
    protocol. `model` is the name the upstream knows it by. `weight` is its predicted speed, in any unit that
    the endpoints of a route share; `context` in tokens, 0: the route's; `max_num_seqs` requests that it
    computes at once, 0: unknown. `key_file` holds the API key that the upstream asks for."""

    name: str
    url: str
    engine: Literal["triton", "vllm", "openai"]
    model: str
    key_file: str = ""
    weight: float = 1.0
    context: int = 0
    max_num_seqs: int = 0


class Route(Noun, frozen=True, kw_only=True):
    """Model name → endpoints, in order of tier. `folder` holds tokenizer and chat template, where requests
    are rendered here. `context` in tokens, 0: unknown. `continuations`: how often an answer that broke off is
    continued by another endpoint; 0: never. `fallback`: models that answer, in this order, where no endpoint
    can; theirs are not followed."""

    model: str
    task: Task
    context: int
    folder: str
    endpoints: tuple[Endpoint, ...]
    created: int = 0
    continuations: int = 2
    fallback: tuple[str, ...] = ()

    @property
    def passed_on(self) -> bool:
        """Whether requests go to the endpoints as they came: these read chats themselves."""
        return all(endpoint.engine != "triton" for endpoint in self.endpoints)


class Routes(Noun, frozen=True, kw_only=True):
    """What the gateway serves (routes.json)."""

    routes: tuple[Route, ...]
