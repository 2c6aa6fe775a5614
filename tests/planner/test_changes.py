from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.planner.changes import differences
from sovereign_ai.spec import Deployment, Memory, Plan, Speed, Unplaced

GIB = 1 << 30
CHAT = Deployment(
    model="chat",
    version="1",
    task="chat",
    engine="triton",
    backend="vllm",
    node="box",
    tier="primary",
    devices=("GPU-0123456789abcdef", "GPU-1"),
    context=8192,
    max_num_seqs=64,
    memories=(Memory(weights_bytes=4 * GIB, kv_cache_bytes=GIB, activation_bytes=0, overhead_bytes=0),),
    engine_args={"dtype": "auto", "gpu_memory_utilization": 0.9},
    release="24.12",
    vllm="0.5.5",
    tp=2,
    format="w4a16",
    speed=Speed(decode_one=50.0, decode_full=1000.0, batch=32, batch_context=1024, prefill=2000),
)


def other(**changes: object) -> Deployment:
    return msgspec.structs.replace(CHAT, **changes)


def plan(*deployments: Deployment, unplaced: tuple[Unplaced, ...] = ()) -> Plan:
    return Plan(tiers=(), deployments=deployments, unplaced=unplaced)


def between(old: Deployment, new: Deployment) -> tuple[str, ...]:
    return differences(plan(old), plan(new))


def test_the_same() -> None:
    assert differences(plan(CHAT), plan(CHAT)) == ()
    assert between(CHAT, other(reason="said otherwise", devices=CHAT.devices[::-1])) == ()


def test_what_stops_and_what_is_new() -> None:
    embed = other(model="embed", devices=("GPU-2",), format="float32")
    assert differences(plan(CHAT), plan(embed)) == (
        "chat stops: it ran on GPU-01234567, GPU-1 of box",
        "embed is new: float32 on GPU-2 of box",
    )


def test_a_move() -> None:
    assert between(CHAT, other(devices=("GPU-2",), node="other")) == (
        "chat moves from GPU-01234567, GPU-1 of box to GPU-2 of other",
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"version": "2"}, "chat: version 1 → 2"),
        ({"format": "fp8"}, "chat: weights w4a16 → fp8"),
        ({"tp": 1}, "chat: tensor parallelism 2 → 1"),
        ({"pp": 2}, "chat: pipeline stages 1 → 2"),
        ({"layer_partition": (25, 15)}, "chat: layers of the stages none → 25,15"),
        ({"context": 4096}, "chat: context 8192 → 4096"),
        ({"max_num_seqs": 32}, "chat: requests at once 64 → 32"),
        ({"release": "25.09"}, "chat: Triton release 24.12 → 25.09"),
        ({"vllm": ""}, "chat: vLLM 0.5.5 → none"),
        (
            {"engine_args": {"dtype": "auto", "gpu_memory_utilization": 0.8}},
            "chat: gpu_memory_utilization 0.9 → 0.8",
        ),
        ({"engine_args": {"dtype": "float16"}}, "chat: gpu_memory_utilization 0.9 → none"),
    ],
)
def test_settings(changes: dict[str, object], line: str) -> None:
    assert between(CHAT, other(**changes)) == (line,)


def test_arguments_that_other_lines_tell_of_are_not_repeated() -> None:
    assert (
        between(CHAT, other(engine_args=CHAT.engine_args | {"max_model_len": 8192, "dtype": "float16"})) == ()
    )


def speed(one: float, full: float) -> Deployment:
    return other(speed=Speed(decode_one=one, decode_full=full, batch=32, batch_context=1024, prefill=2000))


def test_speeds_that_are_expected() -> None:
    assert between(CHAT, speed(25.0, 1010.0)) == ("chat: 50% slower alone: 50.0 → 25.0 tokens/s expected",)
    assert between(CHAT, speed(50.0, 1500.0)) == (
        "chat: 50% faster in full: 1000.0 → 1500.0 tokens/s expected",
    )
    assert between(speed(0.0, 1000.0), CHAT) == ()
    assert between(CHAT, other(speed=None)) == ()


def test_memory_of_the_fullest_device() -> None:
    memory = Memory(weights_bytes=7 * GIB, kv_cache_bytes=GIB, activation_bytes=0, overhead_bytes=0)
    assert between(CHAT, other(memories=(CHAT.memories[0], memory))) == (
        "chat: 5.0 GiB → 8.0 GiB on its fullest device",
    )


def test_copies_that_stay_are_paired_first() -> None:
    """The first copy stops; the second stays where it is, now as the first."""
    first, second = other(devices=("GPU-1",)), other(devices=("GPU-2",), replica=1)
    assert differences(plan(first, second), plan(other(devices=("GPU-2",)))) == (
        "chat stops: it ran on GPU-1 of box",
    )
    third = other(devices=("GPU-3",), replica=1)
    assert differences(plan(first, second), plan(other(devices=("GPU-2",)), third)) == (
        "chat (copy 2) moves from GPU-1 of box to GPU-3 of box",
    )


def test_what_has_no_place_any_more() -> None:
    lost = Unplaced(model="chat", reason="0 of 1 copies have a place; the devices serve embed")
    assert differences(plan(), plan(unplaced=(lost,))) == (f"chat has no place any more: {lost.reason}",)
    assert differences(plan(unplaced=(lost,)), plan(unplaced=(lost,))) == ()
