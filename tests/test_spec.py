from __future__ import annotations

import msgspec
import pytest

from sovereign_ai import spec
from sovereign_ai.spec import Deployment, Device, Inventory, Memory, Node, Noun, Plan

CPU = Device(id="cpu", kind="cpu", name="AMD EPYC", memory_bytes=8, memory_free_bytes=6, cores=2)
NODE = Node(name="box", devices=(CPU,), cores=2, memory_bytes=8, memory_free_bytes=6)
MEMORY = Memory(weights_bytes=1, kv_cache_bytes=2, activation_bytes=4, overhead_bytes=8)


def nouns() -> list[type[Noun]]:
    return [kind for kind in vars(spec).values() if isinstance(kind, type) and issubclass(kind, Noun)]


@pytest.mark.parametrize("noun", nouns(), ids=lambda noun: noun.__name__)
def test_every_noun_is_frozen_keyword_only_and_strict(noun: type[Noun]) -> None:
    config = noun.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    with pytest.raises(TypeError, match="positional"):
        noun("x")


def test_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        CPU.name = "other"  # type: ignore[misc]


def test_devices_of_all_nodes_in_order() -> None:
    other = msgspec.structs.replace(CPU, id="GPU-1", kind="gpu")
    inventory = Inventory(nodes=(NODE, msgspec.structs.replace(NODE, name="b", devices=(other, CPU))))
    assert [device.id for device in inventory.devices] == ["cpu", "GPU-1", "cpu"]


def test_memory_total() -> None:
    assert MEMORY.total_bytes == 15


def test_a_plan_survives_json() -> None:
    plan = Plan(
        tiers=(spec.Tier(name="cpu", rank=1, role="primary", rule="no GPU", devices=("cpu",)),),
        deployments=(
            Deployment(
                model="smol",
                version="1",
                task="chat",
                engine="triton",
                backend="vllm",
                node="box",
                tier="cpu",
                devices=("cpu",),
                context=8192,
                max_num_seqs=64,
                memories=(MEMORY,),
                engine_args={"dtype": "float32", "enforce_eager": True},
            ),
        ),
        rejected=(spec.Rejected(model="smol", option="TP=2", reason="one device"),),
    )
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `tires`"):
        msgspec.json.decode(b'{"tires": []}', type=Plan)
