"""Hugging Face's servers: text-embeddings-inference and text-generation-inference. Pure.

https://huggingface.co/docs/text-embeddings-inference/cli_arguments,
https://huggingface.co/docs/text-generation-inference/reference/launcher
"""

from __future__ import annotations

from sovereign_ai.migrate.draft import Draft, Fact, draft_of
from sovereign_ai.migrate.formats import quantization
from sovereign_ai.migrate.reading import ENGINE_DOES, PLAN_DOES, Job, Reader, Reading, image_is, tell_settings
from sovereign_ai.migrate.script import commands, program
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import Known, Settings, read_settings, tokens
from sovereign_ai.migrate.sources import origin_of

PORT = 80
"""Of both images; the programs by themselves take 3000."""

_SHARED = {
    "model": Known("--model-id", "MODEL_ID"),
    "revision": Known("--revision", "REVISION"),
    "dtype": Known("--dtype", "DTYPE", why=PLAN_DOES),
    "api_key": Known("--api-key", "API_KEY"),
    "token": Known("--hf-token --hf-api-token"),
    "port": Known("-p --port", "PORT"),
    "host": Known("--hostname", "HOSTNAME"),
    "cache": Known(
        "--huggingface-hub-cache", "HUGGINGFACE_HUB_CACHE HF_HOME", why="the store keeps the models"
    ),
    "requests": Known("--max-concurrent-requests", "MAX_CONCURRENT_REQUESTS", why="the gateway queues"),
    "json": Known("--json-output", "JSON_OUTPUT", switch=True, why="the gateway logs"),
}

EMBEDDING_KNOWN = _SHARED | {
    "pooling": Known("--pooling", "POOLING", why="the model's own files tell it"),
    "batch": Known("--max-batch-tokens", "MAX_BATCH_TOKENS", why=PLAN_DOES),
    "batch_requests": Known("--max-batch-requests", "MAX_BATCH_REQUESTS", why=PLAN_DOES),
    "client_batch": Known(
        "--max-client-batch-size", "MAX_CLIENT_BATCH_SIZE", why="the gateway bounds bodies"
    ),
    "workers": Known("--tokenization-workers", "TOKENIZATION_WORKERS", why=ENGINE_DOES),
    "truncate": Known("--auto-truncate", "AUTO_TRUNCATE"),
}

GENERATION_KNOWN = _SHARED | {
    "tensor": Known("--num-shard", "NUM_SHARD"),
    "sharded": Known("--sharded", "SHARDED", why=PLAN_DOES),
    "quantization": Known("--quantize", "QUANTIZE"),
    "context": Known("--max-total-tokens", "MAX_TOTAL_TOKENS"),
    "input": Known(
        "--max-input-length --max-input-tokens",
        "MAX_INPUT_LENGTH MAX_INPUT_TOKENS",
        why="prompt and answer share the context",
    ),
    "prefill": Known("--max-batch-prefill-tokens", "MAX_BATCH_PREFILL_TOKENS", why=PLAN_DOES),
    "batch": Known("--max-batch-total-tokens", "MAX_BATCH_TOTAL_TOKENS", why=PLAN_DOES),
    "fraction": Known("--cuda-memory-fraction", "CUDA_MEMORY_FRACTION", why="memory is planned in bytes"),
    "code": Known("--trust-remote-code", "TRUST_REMOTE_CODE", switch=True),
}


def _embeds(service: Service) -> bool:
    return image_is(service, "text-embeddings-inference") or _starts(service, "text-embeddings-router")


def _generates(service: Service) -> bool:
    return image_is(service, "text-generation-inference") or _starts(service, "text-generation-launcher")


def _starts(service: Service, name: str) -> bool:
    return any(program(command) == name for command in commands(service.words, service.environment))


def _settings(service: Service, known: dict[str, Known]) -> Settings:
    words = [word for command in commands(service.words, service.environment) for word in command]
    return read_settings(service, words, known)


def read_embeddings(job: Job) -> Reading:
    settings = _settings(job.service, EMBEDDING_KNOWN)
    word = settings.get("model")
    drafts: list[Draft] = []
    if word is not None and "rerank" in word.text.lower():
        what = f"`{word.text}` ranks: the gateway has no /rerank"
        job.page.left(word.place, what, "keep that service for it")
    elif draft := _draft(job, settings, word, {"task": Fact("embed", job.service.image_place)}):
        drafts = [draft]
        job.page.changed(job.service.image_place, "requests to /embed become requests to /v1/embeddings")
    if settings.on("truncate"):
        what = "texts that are too long were cut off: the gateway refuses them"
        job.page.left(settings.found["truncate"][0].place, what, "cut them before they are sent")
    tell_settings(job.page, settings, EMBEDDING_KNOWN)
    return Reading(drafts, _port(settings))


def read_generation(job: Job) -> Reading:
    settings = _settings(job.service, GENERATION_KNOWN)
    facts: dict[str, Fact] = {}
    if context := settings.get("context"):
        facts["context"] = Fact(tokens(context.text, context.place), context.place)
        job.page.carried(context.place, f"context {facts['context'].value:,}")
    facts |= quantization(job.page, settings.get("quantization"))
    draft = _draft(job, settings, settings.get("model"), facts)
    if draft and not context:
        job.page.assumed(draft.place, "no context is given: it is left to the plan, the longest that fits")
    if code := settings.on("code"):
        what = "code from a model runs only where you say so anew"
        job.page.left(code.place, what, "write `remote_code: true` at the model if it needs its own code")
    tell_settings(job.page, settings, GENERATION_KNOWN)
    settings.whole("tensor", "a number of cards", 1, 1024)
    return Reading([draft] if draft else [], _port(settings), cards=settings.get("tensor"))


def _port(settings: Settings) -> int:
    port = settings.whole("port", "a port", 1, 65535)
    return port[0] if port else PORT


def _draft(job: Job, settings: Settings, word: Word | None, facts: dict[str, Fact]) -> Draft | None:
    if word is None:
        job.page.left(job.service.place, "no model is named", "add it by hand: source: hf:ORG/NAME")
        return None
    revision = settings.get("revision")
    said = revision.text.strip() if revision else ""
    origin = origin_of(job.service, job.page, word, folder="/", revision=said)
    return draft_of(job.page, word.place, origin, facts) if origin else None


EMBEDDINGS = Reader("text-embeddings-inference", _embeds, read_embeddings)
GENERATION = Reader("text-generation-inference", _generates, read_generation)
