"""Triton's HTTP formats: the generate extension (vLLM backend) and KServe v2 inference (embeddings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sovereign_ai.errors import ApiError, InvalidRequest, UpstreamFailed

MAX_INFER_TEXTS = 64
"""Texts in one upstream embedding call: the batch that the embedding models are configured for."""

FLOAT32_BYTES = 4
STOPPED = "the engine stopped while answering"

_NOT_THE_CLIENTS_FAULT = ("unknown model", "not ready", "no available versions")
"""Words in errors that Triton answers with status 400 although the request itself is in order."""

_DEAD = ("is not healthy", "EngineCore encountered", "EngineDead", "Background loop has errored")
"""Words of Triton's (its model process is gone) and of vLLM's (its engine is gone) from which only a restart
leads back."""

_NOT_TAKEN = (
    "Unexpected keyword argument",
    "'NoneType' object has no attribute 'lora_name'",
    "not supported between instances of 'str' and 'int'",
)
"""Words of NVIDIA's backend, with a status of 500, when its vLLM does not know a sampling parameter."""

_GRAMMAR = "rammar"
"""In every refusal of a JSON schema: `Grammar error: …`, `Failed to compile grammar …`."""

_FAILED_REASONS = {"abort", "error"}


class Event(msgspec.Struct, frozen=True):
    """One event of /generate_stream. Text and output tokens are what this event adds to earlier ones."""

    text_output: str = ""
    finish_reason: str | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None
    logprobs: str | None = None
    """JSON in a text, only where asked for: see wire.logprobs."""


class Embeddings(msgspec.Struct, frozen=True):
    """`vectors` holds rows of `dimensions` little-endian float32, one per text; `tokens` counts per text."""

    vectors: bytes
    dimensions: int
    tokens: tuple[int, ...]

    def rows(self) -> list[bytes]:
        size = self.dimensions * FLOAT32_BYTES
        return [self.vectors[start : start + size] for start in range(0, len(self.vectors), size)]


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any]


class _InferHead(msgspec.Struct):
    outputs: list[_Output]


class _ErrorBody(msgspec.Struct):
    error: str


_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(Event)
_head_decoder = msgspec.json.Decoder(_InferHead)
_error_decoder = msgspec.json.Decoder(_ErrorBody)


def generate_body(text: str, sampling: dict[str, Any]) -> bytes:
    """Body of a /generate_stream request that reports text, tokens and the finish reason, and
    log-probabilities where `sampling` asks for them."""
    body = {
        "text_input": text,
        "stream": True,
        "exclude_input_in_output": True,
        "sampling_parameters": _encoder.encode(sampling).decode(),
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    return _encoder.encode({**body, "return_logprobs": True} if "logprobs" in sampling else body)


def read_event(payload: bytes) -> Event:
    """Raises UpstreamFailed when the payload is not an event."""
    try:
        return _event_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed("the engine sent something that is not an event") from error


def finish_reason(event: Event) -> str | None:
    """OpenAI's finish reason, or None while the answer goes on (the backend then says "None").

    Raises UpstreamFailed when the engine gave the request up.
    """
    reason = event.finish_reason
    if reason is None or reason in ("None", ""):
        return None
    if reason in _FAILED_REASONS:
        raise UpstreamFailed(STOPPED)
    return "length" if reason == "length" else "stop"


def error_message(body: bytes) -> str:
    """The text in Triton's {"error": …}, or the first bytes of whatever came instead.

    /generate_stream answers so even with a status of 400, and then as an event: behind `data:`.
    """
    try:
        return _error_decoder.decode(body.removeprefix(b"data:").strip()).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode(errors="replace")


def refusal(status: int, message: str) -> ApiError:
    """What the client is told when Triton refused a request before answering."""
    faultless = any(words in message for words in _NOT_THE_CLIENTS_FAULT + _DEAD)
    if not faultless and (status == 400 or any(words in message for words in _NOT_TAKEN)):
        return InvalidRequest(f"the engine refused the request: {message}")
    return UpstreamFailed("the engine failed before answering")


def named_refusal(error: InvalidRequest, fields: Mapping[str, str]) -> InvalidRequest:
    """The engine's refusal, with the request's field in it where the cause is one of `fields`: vLLM's name →
    the request's. An engine that does not know a parameter says so by name, or only that it got nothing."""
    if error.param is not None or not fields:
        return error
    named = [ours for theirs, ours in fields.items() if f"'{theirs}'" in error.message]
    if named or any(words in error.message for words in _NOT_TAKEN):
        param = named[0] if named else next(iter(fields.values()))
        return InvalidRequest(
            f"`{param}` is not supported by this model's engine, whose vLLM is too old for it: leave it out",
            param=param,
            code="unsupported_parameter",
        )
    mentioned = [ours for theirs, ours in fields.items() if theirs in error.message]
    if not mentioned and _GRAMMAR in error.message and "structured_outputs" in fields:
        mentioned = [fields["structured_outputs"]]
    return InvalidRequest(error.message, param=mentioned[0] if mentioned else None, code="invalid_value")


def is_dead(message: str) -> bool:
    """Whether the message says that the model's process is gone, while tritonserver itself lives."""
    return any(words in message for words in _DEAD)


def infer_body(texts: Sequence[str]) -> bytes:
    """Body of a KServe v2 request for the embeddings of at most MAX_INFER_TEXTS texts."""
    binary = {"binary_data": True}
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}]
    outputs = [{"name": name, "parameters": binary} for name in ("embedding", "num_tokens")]
    return _encoder.encode({"inputs": inputs, "outputs": outputs})


def read_embeddings(body: bytes, head_length: int, texts: int) -> Embeddings:
    """`head_length` bytes of JSON, then binary tensors. Raises UpstreamFailed unless both are as promised."""
    try:
        outputs = _head_decoder.decode(body[:head_length]).outputs
        tensors = _tensors(outputs, body[head_length:])
        shape, vectors = tensors["embedding"]
        dimensions = shape[-1]
        tokens = tuple(memoryview(tensors["num_tokens"][1]).cast("i"))
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise UpstreamFailed("the engine sent something that is not an embedding") from error
    if len(tokens) != texts or len(vectors) != texts * dimensions * FLOAT32_BYTES:
        raise UpstreamFailed("the engine sent a different number of embeddings than it was asked for")
    return Embeddings(vectors, dimensions, tokens)


def _tensors(outputs: list[_Output], data: bytes) -> dict[str, tuple[list[int], bytes]]:
    """Binary tensors lie one after the other, in the order of `outputs`."""
    found, start = {}, 0
    for output in outputs:
        size = output.parameters["binary_data_size"]
        found[output.name] = (output.shape, data[start : start + size])
        start += size
    return found
