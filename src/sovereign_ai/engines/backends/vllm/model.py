"""The `vllm` backend for embedded mode: Triton's vLLM contract on the vLLM of the engine environment.

Inputs and outputs, their defaults and their meaning are those of NVIDIA's vLLM backend
(https://github.com/triton-inference-server/vllm_backend/blob/main/docs/additional_outputs.md), so that one
gateway talks to both. Requests go to one AsyncLLM, which batches them; answers leave by a thread of their
own, because sending waits for Triton and must not hold up the event loop.

Beyond the contract: gauges of running and waiting requests and of the KV cache's use. Narrower than it:
`n` above 1 only without streaming; no images, no LoRA.
"""

import asyncio
import json
import os
import queue
import threading
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = (
    ("text_input", "TYPE_STRING", False),
    ("stream", "TYPE_BOOL", True),
    ("sampling_parameters", "TYPE_STRING", True),
    ("exclude_input_in_output", "TYPE_BOOL", True),
    ("return_finish_reason", "TYPE_BOOL", True),
    ("return_cumulative_logprob", "TYPE_BOOL", True),
    ("return_logprobs", "TYPE_BOOL", True),
    ("return_num_input_tokens", "TYPE_BOOL", True),
    ("return_num_output_tokens", "TYPE_BOOL", True),
)
OUTPUTS = (
    ("text_output", "TYPE_STRING"),
    ("finish_reason", "TYPE_STRING"),
    ("cumulative_logprob", "TYPE_FP32"),
    ("logprobs", "TYPE_STRING"),
    ("num_input_tokens", "TYPE_UINT32"),
    ("num_output_tokens", "TYPE_UINT32"),
)
HOUSEKEEPING_INTERVAL_S = 0.5
"""How often left clients are looked for and metrics are set. Each look at a request is a round trip to the
server: at 0.2 s and 32 requests there were nearly as many looks as tokens."""

GATHER_S = 0.005
GATHER_AT_MOST_S = 0.05
"""How long an idle engine waits for a first request's companions: until none has come for GATHER_S. A step
that has begun cannot be joined, and it takes the processor from those still on their way: a burst of 32 began
with steps for one and for a few requests, which put off the first token of the others by 0.8 s."""

IMPOSSIBLE = -9999.0
"""Log-probability of a token that cannot come."""

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What Triton's Python backend calls: auto_complete_config, initialize, execute, finalize."""

    @staticmethod
    def auto_complete_config(config):
        for name, kind, optional in INPUTS:
            config.add_input({"name": name, "data_type": kind, "dims": [1], "optional": optional})
        for name, kind in OUTPUTS:
            config.add_output({"name": name, "data_type": kind, "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        _preload_openmp()
        self._metrics = _Metrics(args["model_name"], args["model_version"], _reports_metrics(args))
        self._live = {}
        self._outbox = queue.SimpleQueue()
        self._closing = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._gate = _Gate()
        _thread(self._loop.run_forever)
        file = Path(args["model_repository"]) / args["model_version"] / "model.json"
        self._engine = self._on_loop(self._start(json.loads(file.read_text()))).result()
        _thread(self._send_answers)
        self._housekeeper = _thread(self._keep_house)

    async def _start(self, arguments):
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        loggers = [self._metrics.logger] if self._metrics.enabled else None
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers)

    def _on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                order = _Order(request)
            except (ValueError, TypeError) as error:
                self._outbox.put((sender, _failure(error), FINAL))
                continue
            self._live[order.id] = (sender, self._on_loop(self._answer(order, sender)))

    async def _answer(self, order, sender):
        from vllm.exceptions import VLLMClientError

        try:
            async with self._gate:
                async for output in self._engine.generate(order.text, order.sampling(), order.id):
                    flags = FINAL if output.finished else 0
                    self._outbox.put((sender, order.response(output), flags))
        except asyncio.CancelledError:
            # The client left: leaving generate() has aborted the request in the engine.
            self._outbox.put((sender, None, FINAL))
        except (VLLMClientError, ValueError, TypeError) as error:
            self._outbox.put((sender, _failure(error), FINAL))
        except Exception as error:  # noqa: BLE001  a request without an answer would hang its client for ever
            self._outbox.put((sender, _failure(error, pb_utils.TritonError.INTERNAL), FINAL))
        finally:
            self._live.pop(order.id, None)

    def _send_answers(self):
        while (item := self._outbox.get()) is not None:
            sender, response, flags = item
            if response is None:
                sender.send(flags=flags)
            else:
                sender.send(response, flags=flags)

    def _keep_house(self):
        while not self._closing.wait(HOUSEKEEPING_INTERVAL_S):
            for name, (sender, task) in list(self._live.items()):
                if task.done():
                    # An answer can end before execute() has noted the request.
                    self._live.pop(name, None)
                elif sender.is_cancelled():
                    task.cancel()
            self._metrics.publish()

    def finalize(self):
        self._closing.set()
        self._housekeeper.join()
        for _, task in list(self._live.values()):
            task.cancel()
        self._engine.shutdown()
        self._outbox.put(None)
        self._loop.call_soon_threadsafe(self._loop.stop)


class _Gate:
    """Lets the requests of a burst into an idle engine together; a busy engine takes them as they come."""

    def __init__(self):
        self._inside = self._arrived = 0
        self._opening = None

    async def __aenter__(self):
        if not self._inside:
            self._arrived += 1
            self._opening = self._opening or asyncio.ensure_future(self._open())
            await asyncio.shield(self._opening)
        self._inside += 1

    async def __aexit__(self, *error):
        self._inside -= 1

    async def _open(self):
        loop = asyncio.get_running_loop()
        deadline, seen = loop.time() + GATHER_AT_MOST_S, 0
        while seen != self._arrived and loop.time() < deadline:
            seen = self._arrived
            await asyncio.sleep(GATHER_S)
        self._opening, self._arrived = None, 0


class _Order:
    """One request, read out of its tensors. Raises ValueError for what the contract does not allow."""

    _count = 0

    def __init__(self, request):
        _Order._count += 1
        self.id = f"{os.getpid()}-{_Order._count}"
        self._request = request
        self.text = self._string("text_input")
        self.stream = self._flag("stream", False)
        self.prepend = not self._flag("exclude_input_in_output", self.stream)
        if self.stream and self.prepend:
            raise ValueError("exclude_input_in_output cannot be false when streaming")
        self.parameters = json.loads(self._string("sampling_parameters") or "{}")
        if not isinstance(self.parameters, dict):
            raise TypeError("sampling_parameters must be a JSON object")
        if self.stream and self.parameters.get("n", 1) != 1:
            raise ValueError("n above 1 is not supported when streaming")
        self.wants = {name: self._flag(f"return_{name}", False) for name, _ in OUTPUTS[1:]}
        self._request = None

    def _tensor(self, name):
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def _string(self, name):
        value = self._tensor(name)
        return "" if value is None else value.decode("utf-8")

    def _flag(self, name, default):
        value = self._tensor(name)
        return default if value is None else bool(value)

    def sampling(self):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        return SamplingParams(**_for_vllm(self.parameters), output_kind=kind)

    def response(self, output):
        prefix = self.text if self.prepend else ""
        tensors = [_strings("text_output", [prefix + part.text for part in output.outputs])]
        tensors += [make(output) for name, make in EXTRA.items() if self.wants[name]]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _for_vllm(parameters):
    """JSON knows neither numbers as keys nor vLLM's own types. `structured_outputs` comes as JSON in a text,
    as NVIDIA's backend takes it. Raises ValueError or TypeError, also for names that vLLM does not know."""
    made = dict(parameters)
    if "logit_bias" in made:
        made["logit_bias"] = {int(token): float(bias) for token, bias in made["logit_bias"].items()}
    if "structured_outputs" in made:
        from vllm.sampling_params import StructuredOutputsParams

        made["structured_outputs"] = StructuredOutputsParams(**json.loads(made["structured_outputs"]))
    return made


def _strings(name, texts):
    return pb_utils.Tensor(name, np.asarray([text.encode("utf-8") for text in texts], dtype=np.object_))


def _numbers(name, values, kind):
    return pb_utils.Tensor(name, np.asarray(values, dtype=kind))


def _logprobs(part):
    """Token id → log-probability, rank and text per position, as JSON; the text "null" where none."""
    if part.logprobs is None:
        return "null"
    return json.dumps([{str(token): _logprob(entry) for token, entry in at.items()} for at in part.logprobs])


def _logprob(entry):
    """JSON has no infinity: what can never come gets the number that vLLM's own server gives it."""
    value = max(entry.logprob, IMPOSSIBLE)
    return {"logprob": value, "rank": entry.rank, "decoded_token": entry.decoded_token}


EXTRA = {
    "finish_reason": lambda out: _strings("finish_reason", [str(part.finish_reason) for part in out.outputs]),
    "cumulative_logprob": lambda out: _numbers(
        "cumulative_logprob", [part.cumulative_logprob or 0.0 for part in out.outputs], np.float32
    ),
    "logprobs": lambda out: _strings("logprobs", [_logprobs(part) for part in out.outputs]),
    "num_input_tokens": lambda out: _numbers(
        "num_input_tokens", [len(out.prompt_token_ids or ())], np.uint32
    ),
    "num_output_tokens": lambda out: _numbers(
        "num_output_tokens", [len(part.token_ids) for part in out.outputs], np.uint32
    ),
}


class _Metrics:
    """vLLM's own counters, published as Triton custom metrics under vLLM's names."""

    GAUGES = (
        ("vllm:num_requests_running", "Requests in the running batch"),
        ("vllm:num_requests_waiting", "Requests that wait for a place in the batch"),
        ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1"),
    )
    COUNTERS = (
        ("vllm:prompt_tokens_total", "Prompt tokens processed"),
        ("vllm:generation_tokens_total", "Tokens generated"),
    )

    def __init__(self, model, version, enabled):
        self.enabled = enabled
        self._lock = threading.Lock()
        self._gauges = dict.fromkeys((name for name, _ in self.GAUGES), 0.0)
        self._counters = dict.fromkeys((name for name, _ in self.COUNTERS), 0)
        if enabled:
            kinds = pb_utils.MetricFamily
            labels = {"model": model, "version": version}
            self._families = [
                (name, kinds(name=name, description=text, kind=kind))
                for group, kind in ((self.GAUGES, kinds.GAUGE), (self.COUNTERS, kinds.COUNTER))
                for name, text in group
            ]
            self._metrics = {name: family.Metric(labels=labels) for name, family in self._families}

    def logger(self, vllm_config, engine_index=0):
        from vllm.v1.metrics.loggers import StatLoggerBase

        metrics = self

        class Logger(StatLoggerBase):
            def __init__(self):
                pass

            def record(self, scheduler_stats, iteration_stats, *args, **kwargs):
                metrics.take(scheduler_stats, iteration_stats)

            def log_engine_initialized(self):
                pass

        return Logger()

    def take(self, scheduler, iteration):
        with self._lock:
            if scheduler is not None:
                self._gauges["vllm:num_requests_running"] = scheduler.num_running_reqs
                self._gauges["vllm:num_requests_waiting"] = scheduler.num_waiting_reqs
                self._gauges["vllm:kv_cache_usage_perc"] = scheduler.kv_cache_usage
            if iteration is not None:
                self._counters["vllm:prompt_tokens_total"] += iteration.num_prompt_tokens
                self._counters["vllm:generation_tokens_total"] += iteration.num_generation_tokens

    def publish(self):
        if not self.enabled:
            return
        with self._lock:
            gauges, counters = dict(self._gauges), dict(self._counters)
            self._counters = dict.fromkeys(counters, 0)
        for name, value in gauges.items():
            self._metrics[name].set(float(value))
        for name, value in counters.items():
            if value:
                self._metrics[name].increment(float(value))


def _reports_metrics(args):
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return parameters.get("REPORT_CUSTOM_METRICS", {}).get("string_value", "false").lower() == "true"


def _failure(error, code=None):
    code = pb_utils.TritonError.INVALID_ARG if code is None else code
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error) or type(error).__name__, code))


def _thread(target):
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def _preload_openmp():
    """Intel's OpenMP library under vLLM's workers: about 10 % faster than the one torch brings."""
    library = Path(os.environ["SOVEREIGN_ENGINE_ROOT"]) / "lib" / "libiomp5.so"
    if library.is_file():
        os.environ["LD_PRELOAD"] = str(library)
