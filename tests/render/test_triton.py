from __future__ import annotations

import json

import msgspec
import pytest

from sovereign_ai.render import TritonProcess, triton_processes
from sovereign_ai.spec import Deployment, Memory, Plan, Task

FOLDERS = {"smol": "/models/smol/1", "minilm": "/models/minilm/1", "nemo": "/models/nemo/1"}


def deployment(model: str, *devices: str, node: str = "box", task: Task = "chat") -> Deployment:
    return Deployment(
        model=model,
        version="1",
        task=task,
        engine="triton",
        backend="vllm" if task == "chat" else "embedding",
        node=node,
        tier="cpu",
        devices=devices,
        context=4096,
        max_num_seqs=8,
        memories=(Memory(weights_bytes=1, kv_cache_bytes=1, activation_bytes=1, overhead_bytes=1),),
        engine_args={"max_model_len": 4096} if task == "chat" else {"max_batch": 8},
    )


def plan(*deployments: Deployment) -> Plan:
    return Plan(tiers=(), deployments=deployments)


def test_models_on_the_same_devices_share_a_server() -> None:
    (process,) = triton_processes(
        plan(deployment("smol", "cpu"), deployment("minilm", "cpu", task="embed")), FOLDERS
    )
    assert process == TritonProcess(
        name="triton-cpu",
        node="box",
        devices=("cpu",),
        models=("smol", "minilm"),
        files={
            "smol/config.pbtxt": (
                'backend: "vllm"\ninstance_group [{ count: 1 kind: KIND_MODEL }]\n'
                'parameters { key: "REPORT_CUSTOM_METRICS" value: { string_value: "true" } }\n'
            ),
            "smol/1/model.json": '{\n  "max_model_len": 4096,\n  "model": "/models/smol/1"\n}\n',
            "minilm/config.pbtxt": (
                'backend: "embedding"\ninstance_group [{ count: 1 kind: KIND_MODEL }]\nmax_batch_size: 8\n'
                "dynamic_batching { max_queue_delay_microseconds: 2000 }\n"
            ),
            "minilm/1/model.json": '{\n  "max_batch": 8,\n  "model": "/models/minilm/1"\n}\n',
        },
    )


def test_every_group_of_devices_gets_a_server_of_its_own() -> None:
    processes = triton_processes(
        plan(
            deployment("nemo", "GPU-AAAAAAAA-1", "GPU-bbbbbbbb-2"),
            deployment("smol", "GPU-cccccccc-3"),
            deployment("minilm", "GPU-AAAAAAAA-1", "GPU-bbbbbbbb-2", task="embed"),
        ),
        FOLDERS,
    )
    assert [(process.name, process.models) for process in processes] == [
        ("triton-aaaaaaaa-bbbbbbbb", ("nemo", "minilm")),
        ("triton-cccccccc", ("smol",)),
    ]


def test_the_same_device_names_on_two_nodes_are_two_groups() -> None:
    processes = triton_processes(
        plan(deployment("smol", "cpu", node="one"), deployment("smol", "cpu", node="two")), FOLDERS
    )
    assert [process.node for process in processes] == ["one", "two"]


def test_copies_of_a_model_are_servers_of_their_own() -> None:
    copies = [msgspec.structs.replace(deployment("smol", f"GPU-{at}"), replica=at - 1) for at in (1, 2)]
    one, two = triton_processes(plan(*copies), FOLDERS)
    assert (one.name, two.name) == ("triton-1", "triton-2")
    assert one.models == two.models == ("smol",)
    assert one.files == two.files


def test_the_same_plan_renders_the_same() -> None:
    deployments = (deployment("smol", "GPU-1"), deployment("minilm", "GPU-2", task="embed"))
    assert triton_processes(plan(*deployments), FOLDERS) == triton_processes(plan(*deployments), FOLDERS)


def test_nothing_planned_is_nothing_to_run() -> None:
    assert triton_processes(plan(), {}) == ()


def test_a_model_without_a_folder_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        triton_processes(plan(deployment("smol", "cpu")), {})


def test_files_are_readable_json() -> None:
    (process,) = triton_processes(plan(deployment("smol", "cpu")), {"smol": '/tmp/a "b"'})
    assert json.loads(process.files["smol/1/model.json"])["model"] == '/tmp/a "b"'
