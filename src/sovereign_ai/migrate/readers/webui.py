"""text-generation-webui. Pure.

https://github.com/oobabooga/text-generation-webui#list-of-command-line-flags
"""

from __future__ import annotations

import posixpath
import re
import shlex

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.draft import Draft, Fact, draft_of, shared_context
from sovereign_ai.migrate.names import original, plain_name
from sovereign_ai.migrate.reading import ENGINE_DOES, PLAN_DOES, Job, Reader, Reading, image_is, tell_settings
from sovereign_ai.migrate.script import commands
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import Known, Settings, read_settings
from sovereign_ai.migrate.sources import from_path
from sovereign_ai.spec import Format

PORT = 5000
"""Of the API; the page is at 7860."""
FOLDER = "/app"
ARGUMENTS = ("EXTRA_LAUNCH_ARGS", "CLI_ARGS", "CMD_FLAGS")
"""Variables that hold a command line."""

FORMATS: dict[str, Format] = {
    "autogptq": "gptq",
    "gptq-for-llama": "gptq",
    "exllama": "gptq",
    "autoawq": "awq",
}
"""By the loader's name."""

KNOWN = {
    "model": Known("--model"),
    "folder": Known("--model-dir"),
    "loader": Known("--loader"),
    "context": Known("-c --ctx-size --n-ctx --max-seq-len"),
    "parallel": Known("--parallel"),
    "split": Known("--tensor-split --gpu-split"),
    "four_bit": Known("--load-in-4bit", switch=True),
    "eight_bit": Known("--load-in-8bit", switch=True),
    "layers": Known(
        "--n-gpu-layers --gpu-layers", why="a model is on its cards as a whole: no layer is left to the CPU"
    ),
    "memory": Known("--gpu-memory", why="memory is planned in bytes for each card"),
    "cpu_memory": Known("--cpu-memory", why="nothing is left to the CPU"),
    "auto_devices": Known("--auto-devices", switch=True, why=PLAN_DOES),
    "lora": Known("--lora", why="adapters are not served: merge them into the model, and name that"),
    "api": Known("--api", switch=True),
    "api_port": Known("--api-port"),
    "api_key": Known("--api-key --admin-key"),
    "listen": Known("--listen", switch=True),
    "listen_host": Known("--listen-host"),
    "listen_port": Known("--listen-port"),
    "nowebui": Known("--nowebui", switch=True),
    "code": Known("--trust-remote-code", switch=True),
    "threads": Known("--threads --threads-batch", why=ENGINE_DOES),
    "flash": Known("--flash-attn --no-flash-attn", switch=True, why=ENGINE_DOES),
    "cache": Known("--cache-type", why="the KV cache has 16 bit"),
    "extensions": Known("--extensions", why="the gateway has no extensions"),
}


def recognises(service: Service) -> bool:
    if image_is(service, "text-generation-webui", "oobabooga"):
        return True
    in_command = any(word.text.endswith("server.py") for word in service.words)
    return in_command and any(word.text in ("--loader", "--api", "--listen") for word in service.words)


def _arguments(service: Service) -> list[Word]:
    words = [word for command in commands(service.words, service.environment) for word in command]
    scripts = [at for at, word in enumerate(words) if word.text.endswith("server.py")]
    found = words[scripts[0] + 1 :] if scripts else words
    for name in ARGUMENTS:
        if (variable := service.environment.get(name)) is not None:
            found += [Word(part, variable.place) for part in _split(variable, name)]
    return found


def _split(variable: Word, name: str) -> list[str]:
    try:
        return shlex.split(variable.text)
    except ValueError as error:
        raise ConfigError(f"{variable.place}: `{name}` has a quote that is not closed") from error


def read(job: Job) -> Reading:
    settings = read_settings(job.service, _arguments(job.service), KNOWN)
    draft = _draft(job, settings)
    tell_settings(job.page, settings, KNOWN)
    job.page.left(
        job.service.place,
        "its page for chatting is not carried over: there is an OpenAI-compatible endpoint instead",
        "use a page that speaks to such an endpoint, or `sovereign chat`",
    )
    port = settings.whole("api_port", "a port", 1, 65535)
    return Reading([draft] if draft else [], port[0] if port else PORT, split=settings.get("split"))


def _draft(job: Job, settings: Settings) -> Draft | None:
    page, word = job.page, settings.get("model")
    if word is None:
        what = "no model is named: it was chosen in the page"
        page.left(job.service.place, what, "add it by hand: source: file:PATH or hf:ORG/NAME")
        return None
    loader = settings.get("loader")
    if _is_exl(word, loader):
        known = original(re.sub(r"(?i)[-_.](exl[23]|[0-9.]+bpw).*$", "", word.text))
        todo = f"name the original: source: hf:{known or 'ORG/NAME'}"
        page.left(word.place, f"`{word.text}` is for ExLlama: its weights cannot be converted", todo)
        return None
    folder = _folder(job.service, settings)
    origin = from_path(job.service, page, word, folder=folder)
    if origin is None:
        return None
    if loader and "llama" in loader.text.lower().replace("exllama", "") and not _is_gguf(word):
        what = f"`{word.text}` is a folder with a GGUF in it, by its loader"
        page.assumed(word.place, what, "name the .gguf itself in `source`")
    facts = shared_context(page, settings, word.place) | _quantization(job, settings)
    if code := settings.on("code"):
        what = "code from a model runs only where you say so anew"
        page.left(code.place, what, "write `remote_code: true` at the model if it needs its own code")
    return draft_of(page, word.place, origin, facts, plain_name(word.text)[0])


def _is_exl(word: Word, loader: Word | None) -> bool:
    name = word.text.lower()
    newer = loader is not None and loader.text.lower().startswith(("exllamav2", "exllamav3"))
    return "exl2" in name or "exl3" in name or (newer and "gptq" not in name and not _is_gguf(word))


def _is_gguf(word: Word) -> bool:
    return word.text.lower().endswith(".gguf")


def _folder(service: Service, settings: Settings) -> str:
    """The folder of models in the container: said, or the volume that is called so, or the image's own."""
    said = settings.get("folder")
    if said is not None:
        return posixpath.join(FOLDER, said.text.strip())
    targets = [mount.target.rstrip("/") for mount in service.mounts]
    mounts = [target for target in targets if posixpath.basename(target) == "models"]
    return mounts[0] if mounts else f"{FOLDER}/models"


def _quantization(job: Job, settings: Settings) -> dict[str, Fact]:
    loader, four = settings.get("loader"), settings.on("four_bit")
    if four:
        job.page.carried(four.place, "quantization bnb4, no other")
        return {"quantization": Fact(["bnb4"], four.place)}
    if eight := settings.on("eight_bit"):
        what = "8 bits of bitsandbytes are no format of the planner's: it chooses, where 16 bit does not fit"
        job.page.changed(eight.place, what)
    form = FORMATS.get(loader.text.lower()) if loader else None
    if loader is None or form is None:
        return {}
    job.page.carried(loader.place, f"quantization {form}, no other")
    return {"quantization": Fact([form], loader.place)}


READER = Reader("text-generation-webui", recognises, read)
