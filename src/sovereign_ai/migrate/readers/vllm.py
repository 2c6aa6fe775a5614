"""vLLM's OpenAI server: https://docs.vllm.ai/en/latest/cli/serve.html. Pure."""

from __future__ import annotations

from sovereign_ai.config import MAX_REPLICAS
from sovereign_ai.migrate.draft import Draft, Fact, draft_of
from sovereign_ai.migrate.formats import quantization
from sovereign_ai.migrate.reading import (
    ENGINE_DOES,
    PLAN_DOES,
    Job,
    Reader,
    Reading,
    image_is,
    tell_more_models,
    tell_settings,
)
from sovereign_ai.migrate.script import commands, program
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import Known, Settings, is_option, read_settings, tokens
from sovereign_ai.migrate.sources import origin_of

FOLDER = "/vllm-workspace"
"""The working folder of the published image."""
PORT = 8000

_SERVER = "vllm.entrypoints"
_FRACTION = "memory is planned in bytes for each card, beside what others hold of it"
_LORA = "adapters are not served: merge them into the model, and name that"

KNOWN = {
    "model": Known("--model", "VLLM_MODEL MODEL_NAME MODEL"),
    "revision": Known("--revision"),
    "served": Known("--served-model-name"),
    "context": Known("--max-model-len", "MAX_MODEL_LEN VLLM_MAX_MODEL_LEN"),
    "quantization": Known("-q --quantization"),
    "tensor": Known("-tp --tensor-parallel-size"),
    "pipeline": Known("-pp --pipeline-parallel-size"),
    "data": Known("-dp --data-parallel-size"),
    "sequences": Known(
        "--max-num-seqs",
        why="it bounds the batch and promises nobody a full context, which `concurrency` would: "
        "the plan chooses the batch",
    ),
    "fraction": Known("--gpu-memory-utilization", why=_FRACTION),
    "task": Known("--task --runner"),
    "code": Known("--trust-remote-code", switch=True),
    "api_key": Known("--api-key", "VLLM_API_KEY"),
    "token": Known("--hf-token"),
    "port": Known("--port"),
    "host": Known("--host"),
    "dtype": Known("--dtype", why=f"{PLAN_DOES}, by the model and what the cards compute in"),
    "kv_dtype": Known("--kv-cache-dtype", why="the KV cache has 16 bit"),
    "eager": Known("--enforce-eager", switch=True, why=f"{PLAN_DOES}"),
    "swap": Known("--swap-space", why="nothing is swapped: the plan keeps within the cards"),
    "offload": Known("--cpu-offload-gb", why="nothing is left to the CPU: the plan keeps within the cards"),
    "prefix": Known("--enable-prefix-caching", switch=True, why=ENGINE_DOES),
    "chunked": Known("--enable-chunked-prefill", switch=True, why=PLAN_DOES),
    "batched": Known("--max-num-batched-tokens", why=PLAN_DOES),
    "reduce": Known(
        "--disable-custom-all-reduce", switch=True, why=f"{PLAN_DOES}, by how the cards are linked"
    ),
    "executor": Known("--distributed-executor-backend", why=ENGINE_DOES),
    "load": Known("--load-format", why="the store holds SafeTensors"),
    "download": Known("--download-dir", why="models are kept in the store: `storage` in factory.yaml"),
    "lora": Known("--enable-lora", switch=True, why=_LORA),
    "lora_modules": Known("--lora-modules", why=_LORA),
    "requests_log": Known("--disable-log-requests", switch=True, why="the gateway logs"),
    "stats_log": Known("--disable-log-stats", switch=True, why="the gateway logs"),
}


def recognises(service: Service) -> bool:
    if image_is(service, "vllm"):
        return True
    return any(
        program(command) == "vllm" or any(_SERVER in word.text for word in command)
        for command in commands(service.words, service.environment)
    )


def _arguments(service: Service) -> tuple[Word, ...]:
    """Behind `vllm serve` or the module's name; all words where the image's own entry point starts it."""
    found = commands(service.words, service.environment)
    for command in found:
        for at, word in enumerate(command):
            if _SERVER in word.text or (word.text == "serve" and at < 2):
                return command[at + 1 :]
    return tuple(word for command in found for word in command)


def read(job: Job) -> Reading:
    settings = read_settings(job.service, _arguments(job.service), KNOWN)
    draft = _draft(job, settings)
    tell_settings(job.page, settings, KNOWN)
    port = settings.whole("port", "a port", 1, 65535)
    _check_parallel(settings)
    cards = settings.get("tensor") or settings.get("pipeline")
    return Reading([draft] if draft else [], port[0] if port else PORT, cards=cards)


def _check_parallel(settings: Settings) -> None:
    for name in ("tensor", "pipeline"):
        settings.whole(name, "a number of cards", 1, 1024)


def _draft(job: Job, settings: Settings) -> Draft | None:
    page, leading = job.page, [word for word in settings.leading if word.text.strip()]
    word = leading[0] if leading else settings.get("model")
    if word is None:
        page.left(job.service.place, "no model is named", "add it by hand: source: hf:ORG/NAME")
        return None
    option = settings.get("model")
    if word is option and not is_option(settings.spelled["model"].text):
        what = f"the model is taken from the variable `{settings.spelled['model'].text}`: no option names it"
        page.assumed(word.place, what)
    tell_more_models(page, [*leading[1:], *([option] if leading and option else [])], word.text)
    revision = settings.get("revision")
    origin = origin_of(
        job.service, page, word, folder=FOLDER, revision=revision.text.strip() if revision else ""
    )
    if origin is None:
        return None
    facts = _facts(job, settings, word)
    return draft_of(page, word.place, origin, facts, _served(job, settings) or word.text)


def _served(job: Job, settings: Settings) -> str:
    names = [word for word in settings.found.get("served", ()) if word.text.strip()]
    if len(names) > 1:
        others = ", ".join(f"`{word.text}`" for word in names[1:])
        job.page.left(
            names[1].place, f"further names of the model ({others}): it has one", "change the clients"
        )
    return names[0].text if names else ""


def _facts(job: Job, settings: Settings, model: Word) -> dict[str, Fact]:
    page = job.page
    facts: dict[str, Fact] = {}
    task = settings.get("task")
    if task is not None and task.text in ("embed", "embedding", "pooling"):
        facts["task"] = Fact("embed", task.place)
        page.carried(task.place, "task embed")
    elif task is not None and task.text not in ("auto", "generate"):
        page.left(task.place, f"task `{task.text}` is not served: the gateway has chat and embeddings")
    context = settings.get("context")
    if context is None or context.text.strip() in ("auto", "-1"):
        page.assumed(model.place, "no context is given: it is left to the plan, the longest that fits")
    else:
        facts["context"] = Fact(tokens(context.text, context.place), context.place)
        page.carried(context.place, f"context {facts['context'].value:,}")
    facts |= quantization(page, settings.get("quantization"))
    copies = settings.whole("data", "a number of copies", 1, MAX_REPLICAS)
    if copies and copies[0] > 1:
        facts["replicas"] = Fact(copies[0], copies[1])
        page.carried(copies[1], f"replicas {copies[0]}")
    if code := settings.on("code"):
        what = "`--trust-remote-code` is not carried over: code from a model runs only where you say so anew"
        page.left(code.place, what, "write `remote_code: true` at the model if it needs its own code")
    return facts


READER = Reader("vLLM", recognises, read)
