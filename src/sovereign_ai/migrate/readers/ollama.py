"""Ollama, and the services beside it that pull its models.

https://github.com/ollama/ollama/blob/main/docs/faq.md and https://docs.ollama.com/context-length. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sovereign_ai.config import MAX_CONCURRENCY, OLLAMA_SOURCE
from sovereign_ai.migrate.draft import Draft, Fact, draft_of
from sovereign_ai.migrate.names import plain_name
from sovereign_ai.migrate.reading import ENGINE_DOES, Job, Reader, Reading, tell_settings
from sovereign_ai.migrate.script import Command, commands, program
from sovereign_ai.migrate.service import Mount, Service, Word
from sovereign_ai.migrate.settings import LONGEST_CONTEXT, Known, Settings, read_settings
from sovereign_ai.migrate.sources import Origin, is_host_path

PORT = 11434
FOLDER = "/root/.ollama"
"""Where the image keeps its models."""

PULLING = ("/api/pull", "/api/generate", "/api/chat", "/api/embed")
PULL = "sovereign models pull -f factory.yaml"
LISTED = "docker compose exec {service} ollama list"

KNOWN = {
    "context": Known("", "OLLAMA_CONTEXT_LENGTH OLLAMA_NUM_CTX"),
    "parallel": Known("", "OLLAMA_NUM_PARALLEL"),
    "host": Known("", "OLLAMA_HOST"),
    "loaded": Known("", "OLLAMA_MAX_LOADED_MODELS", why="every model that has a place stays loaded"),
    "alive": Known("", "OLLAMA_KEEP_ALIVE", why="every model that has a place stays loaded"),
    "flash": Known("", "OLLAMA_FLASH_ATTENTION", why=ENGINE_DOES),
    "cache": Known("", "OLLAMA_KV_CACHE_TYPE", why="the KV cache has 16 bit"),
    "spread": Known("", "OLLAMA_SCHED_SPREAD", why="the plan decides over which cards a model is split"),
    "queue": Known("", "OLLAMA_MAX_QUEUE", why="the gateway queues"),
    "origins": Known("", "OLLAMA_ORIGINS", why="the gateway asks for a key, not where a page came from"),
}


def recognises(service: Service) -> bool:
    return _has_image(service) or bool(_pulls(service)) or any(_serves(one) for one in _commands(service))


def _has_image(service: Service) -> bool:
    return service.image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower() == "ollama"


def _commands(service: Service) -> list[Command]:
    return commands(service.words, service.environment)


def _serves(command: Command) -> bool:
    return program(command) == "ollama" and len(command) > 1 and command[1].text == "serve"


def is_server(service: Service) -> bool:
    """The image serves unless it is told to do something else."""
    found = _commands(service)
    if not recognises(service) or not (_has_image(service) or any(_serves(one) for one in found)):
        return False
    return (
        not found or any(word.text == "serve" for command in found for word in command) or not _pulls(service)
    )


def _pulls(service: Service) -> list[Word]:
    """Models that the service's command, its hooks or its health check pull or run."""
    found = [*_commands(service), *commands(service.others, service.environment)]
    if _has_image(service) and service.command and service.command[0].text in ("pull", "run"):
        return _pulled((Word("ollama", service.place), *service.command))
    return [word for command in found for word in _pulled(command)]


def _pulled(command: Command) -> list[Word]:
    """`ollama pull NAME` and `ollama run NAME`, or a request to its API."""
    texts = [word.text for word in command]
    found: list[Word] = []
    if any(path in text for text in texts for path in PULLING):
        for word in command:
            for name in re.findall(r"""["'](?:name|model)["']\s*:\s*["']([^"']+)["']""", word.text):
                found.append(Word(name, word.place))
    for at in range(2, len(command)):
        if texts[at - 1] in ("pull", "run") and texts[at - 2].rpartition("/")[2] == "ollama":
            return [*found, *[word for word in command[at:] if not word.text.startswith("-")][:1]]
    return found


def _named(service: Service) -> list[Word]:
    """Models that variables such as OLLAMA_MODEL name; OLLAMA_MODELS proper is a folder."""
    found: list[Word] = []
    for name, word in service.environment.items():
        if re.match(r"OLLAMA_(\w+_)?MODELS?$", name) and "MAX_LOADED" not in name and word.text[:1] != "/":
            found += [Word(part, word.place) for part in re.split(r"[\s,;]+", word.text) if part]
    return found


def read(job: Job) -> Reading:
    servers = [service for service in job.services if is_server(service)]
    if servers and not is_server(job.service):
        owner = _owner(job, servers)
        job.page.carried(job.service.place, f"the models that it pulls: see service `{owner.name}`")
        return Reading([], PORT)
    pullers = [one for one in job.services if recognises(one) and not is_server(one)]
    helpers = [one for one in pullers if not servers or _owner_of(one, servers) is job.service]
    if not servers:
        helpers = []
        what = "it pulls models for an Ollama that is not in this file: they are carried over from here"
        job.page.assumed(job.service.place, what)
    words = [word for one in (job.service, *helpers) for word in (*_pulls(one), *_named(one))]
    settings = read_settings(job.service, (), KNOWN)
    drafts = _drafts(job, settings, words)
    tell_settings(job.page, settings, KNOWN)
    return Reading(drafts, _port(settings))


def _owner_of(helper: Service, servers: list[Service]) -> Service:
    """The server that the helper's texts name; the first where they name none."""
    texts = [word.text for word in (*helper.words, *helper.environment.values())]
    for server in servers:
        if any(re.search(rf"(?:^|[/@]){re.escape(server.name)}(?::\d|$|/)", text) for text in texts):
            return server
    return servers[0]


def _owner(job: Job, servers: list[Service]) -> Service:
    owner = _owner_of(job.service, servers)
    if len(servers) > 1:
        job.page.assumed(job.service.place, f"it pulls models for `{owner.name}`, one of {len(servers)}")
    return owner


def _port(settings: Settings) -> int:
    """OLLAMA_HOST may be an address with a port."""
    host = settings.get("host")
    found = re.search(r":(\d{1,5})/?$", host.text) if host else None
    return int(found[1]) if found else PORT


def _drafts(job: Job, settings: Settings, words: Iterable[Word]) -> list[Draft]:
    unique = {_without_latest(word.text): word for word in reversed(list(words)) if word.text.strip()}
    if not unique:
        what = f"which models it has is only in its volume ({_volume(job.service)})"
        todo = f"{LISTED.format(service=job.service.name)} shows them; add each: source: ollama:NAME:TAG"
        job.page.left(job.service.place, what, todo)
        return []
    facts = _facts(job, settings)
    drafts = [_draft(job, name, word, facts) for name, word in reversed(unique.items())]
    found = [draft for draft in drafts if draft is not None]
    if found:
        what = f"the models are taken from Ollama's folder; this stack keeps it in {_volume(job.service)}"
        job.page.changed(job.service.place, what, _bring(job.service))
    return found


def _without_latest(name: str) -> str:
    return name.strip().removesuffix(":latest")


def _mount(service: Service) -> Mount | None:
    said = service.environment.get("OLLAMA_MODELS")
    folders = (FOLDER, f"{FOLDER}/models", *([said.text.rstrip("/")] if said else []))
    return next((one for one in service.mounts if one.target.rstrip("/") in folders), None)


def _bring(service: Service) -> str:
    """How the store finds the models."""
    mount = _mount(service)
    if mount is not None and is_host_path(mount.source):
        below = "/models" if mount.target.rstrip("/") == FOLDER else ""
        return f"OLLAMA_MODELS={mount.source.rstrip('/')}{below} {PULL} brings them in"
    copied = f"docker compose cp {service.name}:{FOLDER}/models ./ollama-models"
    return f"{copied}; OLLAMA_MODELS=./ollama-models {PULL} brings them in"


def _volume(service: Service) -> str:
    """Where the models are, for a person to find."""
    mount = _mount(service)
    if mount is None:
        return "the container itself, without a volume"
    return f"`{mount.source}`" if mount.source else "a volume without a name"


def _draft(job: Job, name: str, word: Word, facts: dict[str, Fact]) -> Draft | None:
    if not OLLAMA_SOURCE.fullmatch(name):
        what = f"`{name}` is not a name that `ollama:` takes"
        job.page.left(word.place, what, "add it by hand: source: hf:ORG/NAME or file:PATH")
        return None
    bare, quant = plain_name(name.rpartition("/")[2].replace(":", "-"))
    held = f" ({quant})" if quant else ""
    job.page.changed(
        word.place,
        f"`{name}`{held} is a GGUF: it becomes SafeTensors at 16 bit when it is brought in, and the plan "
        "quantizes anew only where that does not fit",
    )
    return draft_of(job.page, word.place, Origin(f"ollama:{name}", bare), facts, name)


def _facts(job: Job, settings: Settings) -> dict[str, Fact]:
    """Ollama gives each of its parallel requests the whole context."""
    facts: dict[str, Fact] = {}
    context = settings.whole("context", "a context in tokens", 16, LONGEST_CONTEXT)
    if context:
        facts["context"] = Fact(*context)
        job.page.carried(context[1], f"context {context[0]:,} for each of its models")
    else:
        what = (
            "Ollama's own context, or what clients asked for: it is left to the plan, the longest that fits"
        )
        job.page.assumed(job.service.place, what)
    parallel = settings.whole("parallel", "a number of requests", 0, MAX_CONCURRENCY)
    if parallel and parallel[0] > 1:
        facts["concurrency"] = Fact(*parallel)
        job.page.carried(parallel[1], f"concurrency {parallel[0]}: as many requests of full context at once")
    return facts


READER = Reader("Ollama", recognises, read)
