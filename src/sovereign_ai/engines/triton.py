"""Triton with the vLLM backend: arguments, files, probes and log lines. Pure.

What the real server accepts is the standard: config.pbtxt as protobuf text, model.json verbatim to vLLM's
AsyncEngineArgs (https://github.com/triton-inference-server/vllm_backend, documented in its README).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from sovereign_ai.spec import Deployment

EXIT_TIMEOUT_S = 2
"""Seconds Triton waits for in-flight requests on SIGTERM. The gateway has drained before, so few remain."""

EMBEDDING_QUEUE_DELAY_US = 2000
"""How long Triton holds a text back to batch it with others: far below one forward pass on a CPU."""

_PREFIX = re.compile(
    r"^(?:[EWI]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] |\d{4}-[-\d]+T[\d:.]+Z [EWI] \d+ [\w.]+:\d+\] "
    r"|\(\S+ pid=\d+\) (?:ERROR .*?\] )?)?\"?"
)
"""Triton's own, in both of its formats, and vLLM's."""
_EXCEPTION = re.compile(r"\b\w*(Error|Exception)\b: \S")
_TRITON_ERROR = re.compile(r"^(E\d{4} |\d{4}-[-\d]+T[\d:.]+Z E |error: )")
_WORDS = re.compile(r"error|fail|exception|invalid|not found|no such file|unable|out of memory|in use", re.I)
_BORING = re.compile(
    r"DCGM|NVML|CUDA (memory pool|driver version)|CudaDriver|failed to load all models"
    r"|leaked shared_memory|^[|+]"
)
"""Lines that every start prints, or that only repeat another line: the tables of Triton among them."""
_POINTER = re.compile(r"[Ss]ee (root cause|stack trace) \(?above")
"""vLLM's words where one process noticed that another had failed."""


def config_pbtxt(deployment: Deployment) -> str:
    """The model's config.pbtxt. Inputs and outputs are completed by the backend itself."""
    lines = [f'backend: "{deployment.backend}"', "instance_group [{ count: 1 kind: KIND_MODEL }]"]
    if deployment.backend == "embedding":
        batch = int(deployment.engine_args.get("max_batch", deployment.max_num_seqs))
        lines += [
            f"max_batch_size: {batch}",
            f"dynamic_batching {{ max_queue_delay_microseconds: {EMBEDDING_QUEUE_DELAY_US} }}",
        ]
    else:
        lines.append('parameters { key: "REPORT_CUSTOM_METRICS" value: { string_value: "true" } }')
    return "\n".join(lines) + "\n"


def model_json(deployment: Deployment, model_folder: str) -> str:
    """The engine's arguments, `model` being the folder of the weights."""
    arguments = {"model": model_folder, **deployment.engine_args}
    return json.dumps(arguments, indent=2, sort_keys=True) + "\n"


def command(
    binary: str,
    *,
    repository: str,
    backends: str,
    http_port: int,
    metrics_port: int,
    shm_prefix: str,
) -> list[str]:
    """tritonserver's command line: loopback only, HTTP and metrics, no gRPC.

    `shm_prefix` names the shared-memory regions, so that two servers on one host do not collide and what a
    killed one leaves behind can be told from everybody else's.
    """
    return [
        binary,
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics_port}",
        "--allow-grpc=false",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
    ]


def cpu_variables(cores: Sequence[int], environment_root: str) -> dict[str, str]:
    """Environment of a Triton process that computes on the CPU.

    `cores` are the processors this process may use; vLLM binds one OpenMP thread to each.
    """
    return {
        "SOVEREIGN_ENGINE_ROOT": environment_root,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }


def readiness_path(model: str) -> str:
    """200 as soon as the model answers."""
    return f"/v2/models/{model}/ready"


def progress_line(line: str) -> str | None:
    """A short text for a person where a log line tells how far loading is; else None."""
    for pattern, text in _PROGRESS:
        if match := pattern.search(line):
            return text.format(*match.groups())
    return None


_PROGRESS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r'"loading: (\S+?):\d+"'), "loading {0}"),
    (re.compile(r"Initializing a V1 LLM engine"), "vLLM: configuring"),
    (re.compile(r"Starting to load model"), "vLLM: reading weights"),
    (re.compile(r"Loading weights took ([\d.]+) seconds"), "vLLM: weights read"),
    (re.compile(r"KV cache size: ([\d,]+) tokens"), "vLLM: KV cache of {0} tokens"),
    (re.compile(r"init engine .* took ([\d.]+)"), "vLLM: warmed up"),
    (re.compile(r'"successfully loaded \'(\S+?)\'"'), "{0} is loaded"),
)


def telling_lines(log: Sequence[str]) -> list[str]:
    """A log without the lines that every start prints."""
    return [line for line in log if not _BORING.search(line)]


def failure_line(log: Sequence[str]) -> str:
    """The line of a log that says why the process gave up; the last line where none stands out.

    A Python exception is the cause and what Triton adds is where it was noticed, so the exception wins;
    then the first error of Triton itself, because later ones follow from it.
    """
    telling = telling_lines(log)
    useful = [line for line in telling if not _POINTER.search(line)]
    exceptions = [line for line in useful if _EXCEPTION.search(line)]
    errors = [line for line in useful if _TRITON_ERROR.match(line)]
    worded = [line for line in useful if _WORDS.search(line)]
    filled = [line for line in log if line.strip()]
    for found in (exceptions[-1:], errors[:1], worded[-1:], telling[-1:], filled[-1:]):
        if found and (said := _said(found[0])):
            return said
    return "the log is empty"


def _said(line: str) -> str:
    """A log line without its prefix, its quotes, and the stack that Triton puts behind an escaped newline."""
    return _PREFIX.sub("", line).partition("\\n")[0].rstrip('" ').strip()


def merged_environment(
    base: Mapping[str, str], extra: Mapping[str, str], library_path: str
) -> dict[str, str]:
    """The environment of a Triton process: the caller's, ours over it, and where the shared libraries are."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "VIRTUAL_ENV"}
    kept = {key: value for key, value in base.items() if key not in dropped}
    return {**kept, **extra, "LD_LIBRARY_PATH": library_path, "LC_ALL": "C.UTF-8"}
