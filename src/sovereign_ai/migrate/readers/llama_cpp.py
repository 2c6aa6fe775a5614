"""llama.cpp's server: https://github.com/ggml-org/llama.cpp/tree/master/tools/server. Pure."""

from __future__ import annotations

from sovereign_ai.migrate.draft import Draft, Fact, draft_of, shared_context
from sovereign_ai.migrate.names import plain_name
from sovereign_ai.migrate.reading import (
    ENGINE_DOES,
    PLAN_DOES,
    Job,
    Reader,
    Reading,
    image_is,
    tell_settings,
)
from sovereign_ai.migrate.script import Command, commands, program
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import Known, Settings, read_settings
from sovereign_ai.migrate.sources import Origin, from_gguf_repository, from_path

FOLDER = "/app"
"""The working folder of the published images."""
PORT = 8080

PROGRAMS = ("llama-server", "server")

KNOWN = {
    "model": Known("-m --model", "LLAMA_ARG_MODEL"),
    "url": Known("-mu --model-url", "LLAMA_ARG_MODEL_URL"),
    "hub": Known("-hf -hfr --hf-repo", "LLAMA_ARG_HF_REPO"),
    "hub_file": Known("-hff --hf-file", "LLAMA_ARG_HF_FILE"),
    "alias": Known("-a --alias", "LLAMA_ARG_ALIAS"),
    "context": Known("-c --ctx-size", "LLAMA_ARG_CTX_SIZE"),
    "parallel": Known("-np --parallel", "LLAMA_ARG_N_PARALLEL"),
    "unified": Known("-kvu --kv-unified", "LLAMA_ARG_KV_UNIFIED", switch=True),
    "split": Known("-ts --tensor-split", "LLAMA_ARG_TENSOR_SPLIT"),
    "split_mode": Known("-sm --split-mode", "LLAMA_ARG_SPLIT_MODE", why=f"{PLAN_DOES}, by what is fastest"),
    "main_gpu": Known(
        "-mg --main-gpu", "LLAMA_ARG_MAIN_GPU", why="an index of a card is not carried: indexes change"
    ),
    "device": Known("-dev --device", "LLAMA_ARG_DEVICE", why=f"{PLAN_DOES}: see `sovereign plan`"),
    "layers": Known(
        "-ngl --gpu-layers --n-gpu-layers",
        "LLAMA_ARG_N_GPU_LAYERS",
        why="a model is on its cards as a whole: no layer is left to the CPU",
    ),
    "embedding": Known("--embedding --embeddings", "LLAMA_ARG_EMBEDDINGS", switch=True),
    "reranking": Known("--rerank --reranking", "LLAMA_ARG_RERANKING", switch=True),
    "api_key": Known("--api-key", "LLAMA_API_KEY"),
    "api_key_file": Known(
        "--api-key-file", why="the gateway has keys of its own: sovereign keys create NAME"
    ),
    "port": Known("--port", "LLAMA_ARG_PORT"),
    "host": Known("--host", "LLAMA_ARG_HOST"),
    "cache_k": Known("-ctk --cache-type-k", "LLAMA_ARG_CACHE_TYPE_K", why="the KV cache has 16 bit"),
    "cache_v": Known("-ctv --cache-type-v", "LLAMA_ARG_CACHE_TYPE_V", why="the KV cache has 16 bit"),
    "flash": Known("-fa --flash-attn", "LLAMA_ARG_FLASH_ATTN", why=f"{ENGINE_DOES}"),
    "batching": Known(
        "-cb --cont-batching", "LLAMA_ARG_CONT_BATCHING", switch=True, why="the engine always does so"
    ),
    "threads": Known("-t --threads", "LLAMA_ARG_THREADS", why=ENGINE_DOES),
    "batch": Known("-b --batch-size", "LLAMA_ARG_BATCH", why=PLAN_DOES),
    "ubatch": Known("-ub --ubatch-size", "LLAMA_ARG_UBATCH", why=PLAN_DOES),
    "mmap": Known("--no-mmap", "LLAMA_ARG_NO_MMAP", switch=True, why="weights are read once, at the start"),
    "mlock": Known("--mlock", "LLAMA_ARG_MLOCK", switch=True, why="weights are in the cards' memory"),
    "metrics": Known(
        "--metrics", "LLAMA_ARG_ENDPOINT_METRICS", switch=True, why="the gateway's are at /metrics"
    ),
    "jinja": Known(
        "--jinja", "LLAMA_ARG_JINJA", switch=True, why="the gateway renders the model's own chat template"
    ),
    "lora": Known("--lora", why="adapters are not served: merge them into the model, and name that"),
    "vision": Known(
        "--mmproj", "LLAMA_ARG_MMPROJ", why="the vision part stays behind: the model reads text alone"
    ),
    "draft": Known("-md --model-draft", "LLAMA_ARG_MODEL_DRAFT", why="no second model guesses ahead"),
    "template": Known(
        "--chat-template --chat-template-file",
        "LLAMA_ARG_CHAT_TEMPLATE LLAMA_ARG_CHAT_TEMPLATE_FILE",
        why="the gateway renders the model's own chat template",
    ),
    "server": Known("--server -s", switch=True),
}


def recognises(service: Service) -> bool:
    if image_is(service, "llama.cpp", "llama-cpp:", "llama-server"):
        return True
    if any(name.startswith("LLAMA_ARG_") for name in service.environment):
        return True
    return any(program(command) == "llama-server" for command in _commands(service))


def _commands(service: Service) -> list[Command]:
    return commands(service.words, service.environment)


def _arguments(service: Service) -> tuple[Word, ...]:
    """Those of the command that starts the server; all words where the image's own entry point does."""
    found = _commands(service)
    started = next((command for command in found if program(command) in PROGRAMS), None)
    return started[1:] if started else tuple(word for command in found for word in command)


def read(job: Job) -> Reading:
    settings = read_settings(job.service, _arguments(job.service), KNOWN)
    draft = _draft(job, settings)
    tell_settings(job.page, settings, KNOWN)
    port = settings.whole("port", "a port", 1, 65535)
    return Reading([draft] if draft else [], port[0] if port else PORT, split=settings.get("split"))


def _draft(job: Job, settings: Settings) -> Draft | None:
    page = job.page
    if reranking := settings.on("reranking"):
        page.left(
            reranking.place, "a model that ranks: the gateway has no /rerank", "keep that service for it"
        )
        return None
    word = next((found for name in ("model", "hub", "url") if (found := settings.get(name))), None)
    if word is None:
        page.left(job.service.place, "no model is named", "add it by hand: source: file:PATH or hf:ORG/NAME")
        return None
    origin = _origin(job, settings, word)
    if origin is None:
        return None
    facts: dict[str, Fact] = {}
    if embedding := settings.on("embedding"):
        facts["task"] = Fact("embed", embedding.place)
        page.carried(embedding.place, "task embed")
    facts |= shared_context(page, settings, word.place, unified=settings.on("unified") is not None)
    alias = settings.get("alias")
    return draft_of(page, word.place, origin, facts, alias.text.partition(",")[0] if alias else "")


def _origin(job: Job, settings: Settings, word: Word) -> Origin | None:
    """A file wins over a repository, and that over an address, as in llama.cpp."""
    if settings.get("model") is word:
        return from_path(job.service, job.page, word, folder=FOLDER)
    if settings.get("hub") is word:
        name, _, quant = word.text.strip().partition(":")
        file = settings.get("hub_file")
        return from_gguf_repository(
            job.page, Word(name, word.place), quant or (plain_name(file.text)[1] if file else "")
        )
    return from_address(job, word)


def from_address(job: Job, word: Word) -> Origin | None:
    """https://huggingface.co/ORG/NAME/resolve/main/FILE.gguf is a repository; other addresses are told."""
    address = word.text.strip().partition("?")[0]
    scheme, _, rest = address.partition("://")
    parts = rest.split("/")
    if scheme in ("https", "http") and len(parts) >= 3 and parts[0] in ("huggingface.co", "hf.co"):
        name = "/".join(parts[1:3])
        return from_gguf_repository(job.page, Word(name, word.place), plain_name(address)[1])
    what = "a model at an address of the web: it is not fetched from there"
    job.page.left(word.place, what, "download it and add the model: source: file:PATH")
    return None


READER = Reader("llama.cpp", recognises, read)
