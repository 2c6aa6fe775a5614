from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from inline_snapshot import snapshot

from sovereign_ai.engines import triton
from sovereign_ai.spec import Deployment, Memory

STARTED = 'I1123 21:49:37.670466 9133 cuda_memory_manager.cc:117] "CUDA memory pool disabled"'
UNINITIALIZED = 'E1123 21:49:37.670576 9133 server.cc:241] "CudaDriverHelper has not been initialized."'
GAVE_UP = "error: creating server: Internal - failed to load all models"


def deployment(backend: Literal["vllm", "embedding"], **engine_args: Any) -> Deployment:
    return Deployment(
        model="smol",
        version="1",
        task="chat" if backend == "vllm" else "embed",
        engine="triton",
        backend=backend,
        node="box",
        tier="cpu",
        devices=("cpu",),
        context=8192,
        max_num_seqs=16,
        memories=(Memory(weights_bytes=1, kv_cache_bytes=2, activation_bytes=3, overhead_bytes=4),),
        engine_args=engine_args,
    )


def test_the_config_of_a_chat_model() -> None:
    assert triton.config_pbtxt(deployment("vllm", dtype="float32")) == snapshot("""\
backend: "vllm"
instance_group [{ count: 1 kind: KIND_MODEL }]
parameters { key: "REPORT_CUSTOM_METRICS" value: { string_value: "true" } }
""")


def test_the_config_of_an_embedding_model() -> None:
    assert triton.config_pbtxt(deployment("embedding", max_batch=64)) == snapshot("""\
backend: "embedding"
instance_group [{ count: 1 kind: KIND_MODEL }]
max_batch_size: 64
dynamic_batching { max_queue_delay_microseconds: 2000 }
""")


def test_an_embedding_model_without_a_batch_size_takes_the_deployments() -> None:
    assert "max_batch_size: 16\n" in triton.config_pbtxt(deployment("embedding"))


def test_the_engines_arguments_go_verbatim_beside_the_folder() -> None:
    text = triton.model_json(deployment("vllm", max_model_len=8192, enforce_eager=True), "/weights/smol")
    assert text == snapshot("""\
{
  "enforce_eager": true,
  "max_model_len": 8192,
  "model": "/weights/smol"
}
""")


def test_a_folder_with_odd_characters_stays_json() -> None:
    folder = '/home/zoë/"models"\\1'
    assert json.loads(triton.model_json(deployment("vllm"), folder)) == {"model": folder}


def test_the_command_listens_on_the_loopback_only() -> None:
    command = triton.command(
        "/engine/tritonserver",
        repository="/run/repository",
        backends="/run/backends",
        http_port=4001,
        metrics_port=4002,
        shm_prefix="sovereign-1-",
    )
    assert command == snapshot(
        [
            "/engine/tritonserver",
            "--model-repository=/run/repository",
            "--backend-directory=/run/backends",
            "--http-address=127.0.0.1",
            "--http-port=4001",
            "--metrics-address=127.0.0.1",
            "--metrics-port=4002",
            "--allow-grpc=false",
            "--allow-gpu-metrics=false",
            "--allow-cpu-metrics=false",
            "--backend-config=python,shm-region-prefix-name=sovereign-1-",
            "--exit-timeout-secs=2",
        ]
    )


def test_a_cpu_process_is_bound_to_its_cores_and_stays_offline() -> None:
    variables = triton.cpu_variables([0, 2, 3], "/engine/venv")
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "0,2,3"
    assert variables["SOVEREIGN_ENGINE_ROOT"] == "/engine/venv"
    assert variables["HF_HUB_OFFLINE"] == variables["TRANSFORMERS_OFFLINE"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""


def test_what_would_lead_the_engine_to_other_files_is_dropped() -> None:
    base = {
        "PATH": "/bin",
        "PYTHONPATH": "/mine",
        "PYTHONHOME": "/mine",
        "LD_PRELOAD": "a.so",
        "VIRTUAL_ENV": "/v",
        "LD_LIBRARY_PATH": "/mine",
        "LC_ALL": "C",
    }
    merged = triton.merged_environment(base, {"PATH": "/engine/bin"}, "/engine/lib")
    assert merged == {"PATH": "/engine/bin", "LD_LIBRARY_PATH": "/engine/lib", "LC_ALL": "C.UTF-8"}
    assert base["PYTHONPATH"] == "/mine"


def test_readiness_is_the_models_own() -> None:
    assert triton.readiness_path("smol") == "/v2/models/smol/ready"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('I1123 21:19:27.915348 4010 model_lifecycle.cc:472] "loading: smol:1"', "loading smol"),
        (
            "(EngineCore pid=4067) INFO 11-23 21:19:42 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
            "vLLM: configuring",
        ),
        (
            "(Worker pid=4094) INFO 11-23 21:19:51 [cpu_model_runner.py:68] Starting to load model /x...",
            "vLLM: reading weights",
        ),
        (
            "(Worker pid=4094) INFO 11-23 21:19:52 [default_loader.py:501] Loading weights took 1.52 seconds",
            "vLLM: weights read",
        ),
        (
            "(EngineCore pid=4067) INFO 11-23 21:19:54 [kv_utils.py:2327] CPU KV cache size: 23,296 tokens,",
            "vLLM: KV cache of 23,296 tokens",
        ),
        (
            "(EngineCore pid=4067) INFO 11-23 21:19:56 [core.py:402] init engine (profile, create kv cache, "
            "warmup model) took 1.99 s",
            "vLLM: warmed up",
        ),
        (
            "I1123 21:19:57.774877 4010 model_lifecycle.cc:839] \"successfully loaded 'smol'\"",
            "smol is loaded",
        ),
        ("", None),
        (GAVE_UP, None),
    ],
)
def test_log_lines_tell_how_far_loading_is(line: str, said: str | None) -> None:
    assert triton.progress_line(line) == said


FAILURES = {
    "a model's exception, which the tables below it repeat": (
        [
            STARTED,
            UNINITIALIZED,
            'I1123 22:12:54.864519 19118 model_lifecycle.cc:472] "loading: m:1"',
            'E1123 22:12:56.514399 19118 backend_model.cc:692] "ERROR: Failed to create instance: '
            'ValueError: no such folder: /x\\n\\nAt:\\n  /run/m/1/model.py(7): initialize\\n"',
            "E1123 22:12:56.514637 19118 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
            'ValueError: no such folder: /x\\n\\nAt:\\n  /run/m/1/model.py(7): initialize\\n"',
            "I1123 22:12:56.514680 19118 model_lifecycle.cc:777] \"failed to load 'm'\"",
            "+-------+---------+------------------------------------------------------+",
            "| m     | 1       | UNAVAILABLE: Internal: ValueError: no such folder: /x |",
            GAVE_UP,
        ],
        "failed to load 'm' version 1: Internal: ValueError: no such folder: /x",
    ),
    "vLLM's engine process failed, the others only point there": (
        [
            UNINITIALIZED,
            "(EngineCore pid=20019) ERROR 11-23 22:15:11 [core.py:1510]     raise ValueError(",
            "(EngineCore pid=20019) ERROR 11-23 22:15:11 [core.py:1510] ValueError: No available memory "
            "for the cache blocks. Try increasing `gpu_memory_utilization`",
            'I1123 22:15:17.691990 19916 pb_stub.cc:366] "Failed to initialize Python stub: RuntimeError: '
            'Engine core initialization failed. See root cause above. Failed core proc(s): {}\\n\\nAt:"',
            "E1123 22:15:20.941708 19916 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
            'RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"',
            GAVE_UP,
        ],
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    ),
    "an argument that vLLM does not know": (
        [
            "E1123 22:14:26.165920 19804 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
            "TypeError: AsyncEngineArgs.__init__() got an unexpected keyword argument "
            "'bogus_key'\\n\\nAt:\\n  "
            '/run/backends/vllm/model.py(78): _start\\n"',
            GAVE_UP,
        ],
        "failed to load 'm' version 1: Internal: TypeError: AsyncEngineArgs.__init__() got an unexpected "
        "keyword argument 'bogus_key'",
    ),
    "a backend library that a link leads out": (
        [
            UNINITIALIZED,
            "E1123 21:49:37.672306 9133 model_lifecycle.cc:642] \"failed to load 'minilm' version 1: Invalid "
            "argument: backend library name 'libtriton_python.so' escapes backend directory '/run/python'\"",
            "E1123 21:49:37.672307 9133 model_lifecycle.cc:642] \"failed to load 'smol' version 1: Invalid "
            "argument: backend library name 'libtriton_python.so' escapes backend directory '/run/python'\"",
            "I1123 21:49:37.672361 9133 model_lifecycle.cc:777] \"failed to load 'smol'\"",
            GAVE_UP,
        ],
        "failed to load 'minilm' version 1: Invalid argument: backend library name 'libtriton_python.so' "
        "escapes backend directory '/run/python'",
    ),
    "the stub died": (
        [
            'E1123 22:13:00.493679 19160 backend_model.cc:692] "ERROR: Failed to create instance: Stub '
            "process 'm_0_0' is not healthy.\"",
            GAVE_UP,
        ],
        "ERROR: Failed to create instance: Stub process 'm_0_0' is not healthy.",
    ),
    "the repository is not there": (
        [STARTED, "error: creating server: Internal - failed to stat file /run/repository"],
        "error: creating server: Internal - failed to stat file /run/repository",
    ),
    "the port is taken": (
        [
            STARTED,
            'E1123 22:13:01.970094 19191 main.cc:257] "failed to start HTTP service: Unavailable - Socket '
            "'127.0.0.1:9555' already in use \"",
        ],
        "failed to start HTTP service: Unavailable - Socket '127.0.0.1:9555' already in use",
    ),
    "a Python program's port is taken": (
        ["Traceback (most recent call last):", "OSError: [Errno 98] Address already in use", ""],
        "OSError: [Errno 98] Address already in use",
    ),
    "the loader's words": (
        [
            "tritonserver: error while loading shared libraries: libb64.so: cannot open shared object file",
            "x",
        ],
        "tritonserver: error while loading shared libraries: libb64.so: cannot open shared object file",
    ),
    "a GPU without memory": (
        [STARTED, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."],
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    "only a pointer is left of a long log": (
        ["(Main pid=7) ERROR 11-23 21:20:35 [x.py:9] EngineDeadError: bad. See stack trace (above) for"],
        "EngineDeadError: bad. See stack trace (above) for",
    ),
    "Triton's own error, in ISO 8601": (
        [
            "2026-11-26T02:50:31Z E 70 model_lifecycle.cc:642] \"failed to load 'm': no such folder\"",
            '2026-11-26T02:50:31Z I 70 server.cc:345] "Found 0 live models"',
        ],
        "failed to load 'm': no such folder",
    ),
    "nothing stands out": (["hello", "world", "  "], "world"),
    "only what every start prints": ([STARTED], "CUDA memory pool disabled"),
    "blank lines": (["", "  "], "the log is empty"),
    "an empty log": ([], "the log is empty"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_line_that_says_why(name: str) -> None:
    log, why = FAILURES[name]
    assert triton.failure_line(log) == why
