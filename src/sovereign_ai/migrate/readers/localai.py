"""LocalAI: models in the command, in MODELS, or in YAML files: https://localai.io/advanced/. Pure."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.draft import Draft, Fact, draft_of
from sovereign_ai.migrate.formats import quantization
from sovereign_ai.migrate.names import original, plain_name
from sovereign_ai.migrate.reading import ENGINE_DOES, Job, Reader, Reading, image_is, tell_settings
from sovereign_ai.migrate.script import commands
from sovereign_ai.migrate.service import Mount, Service, Word
from sovereign_ai.migrate.settings import Known, Settings, is_option, read_settings, tokens
from sovereign_ai.migrate.sources import (
    Origin,
    from_gguf_repository,
    from_path,
    is_host_path,
    origin_of,
)
from sovereign_ai.migrate.tree import Fields, Place, Scalar, read_tree

PORT = 8080
FOLDERS = ("/models", "/build/models")
"""Where the images look for models, newer first."""

KNOWN = {
    "models": Known("--models", "LOCALAI_MODELS MODELS"),
    "preload": Known("--preload-models", "LOCALAI_PRELOAD_MODELS PRELOAD_MODELS"),
    "folder": Known("--models-path", "LOCALAI_MODELS_PATH MODELS_PATH"),
    "context": Known("--context-size", "LOCALAI_CONTEXT_SIZE CONTEXT_SIZE"),
    "api_key": Known("--api-keys", "LOCALAI_API_KEY API_KEY LOCALAI_API_KEYS"),
    "address": Known("--address", "LOCALAI_ADDRESS ADDRESS"),
    "threads": Known("--threads", "LOCALAI_THREADS THREADS", why=ENGINE_DOES),
    "f16": Known("--f16", "LOCALAI_F16 F16", switch=True, why="the plan decides it"),
    "galleries": Known("--galleries", "LOCALAI_GALLERIES GALLERIES", why="models are named in factory.yaml"),
    "debug": Known("--debug", "DEBUG LOCALAI_DEBUG", switch=True, why="the gateway logs"),
    "parallel": Known(
        "--parallel-requests", "LOCALAI_PARALLEL_REQUESTS PARALLEL_REQUESTS", switch=True, why=ENGINE_DOES
    ),
    "single": Known(
        "--single-active-backend",
        "LOCALAI_SINGLE_ACTIVE_BACKEND SINGLE_ACTIVE_BACKEND",
        switch=True,
        why="every model that has a place stays loaded",
    ),
}


class Described(NamedTuple):
    """A model by a YAML file of LocalAI's."""

    name: str
    model: Word
    fields: Fields


def recognises(service: Service) -> bool:
    if image_is(service, "localai/localai", "go-skynet/local-ai", "/local-ai", "local-ai:"):
        return True
    return any(word.text.rpartition("/")[2] == "local-ai" for word in service.words)


def read(job: Job) -> Reading:
    words = [word for one in commands(job.service.words, job.service.environment) for word in one]
    settings = read_settings(job.service, words, KNOWN)
    drafts = [draft for word in _asked(settings) if (draft := _by_name(job, settings, word))]
    described = list(_described(job, settings))
    drafts += [draft for one in described if (draft := _by_file(job, settings, one))]
    if "aio" in job.service.image.lower():
        what = "this image brings models of its own: which they are is not in this file"
        job.page.left(job.service.image_place, what, "add those you use: source: hf:ORG/NAME")
    elif not drafts and not _asked(settings) and not described:
        what = "no model is named, and there are no YAML files of models to read"
        job.page.left(job.service.place, what, "add them by hand: source: file:PATH or hf:ORG/NAME")
    tell_settings(job.page, settings, KNOWN)
    address = settings.get("address")
    port = re.search(r":(\d{1,5})$", address.text) if address else None
    return Reading(drafts, int(port[1]) if port else PORT)


def _asked(settings: Settings) -> list[Word]:
    words = [word for word in settings.leading if word.text not in ("run", "local-ai", "/build/local-ai")]
    words += [word for word in settings.found.get("models", ()) if not is_option(word.text)]
    parts = [Word(part, word.place) for word in words for part in re.split(r"[\s,]+", word.text) if part]
    if preload := settings.get("preload"):
        parts += _preloaded(preload)
    return parts


def _preloaded(word: Word) -> list[Word]:
    """[{"url": "github:…", "name": "…"}]. Raises ConfigError for what is not JSON."""
    try:
        entries = json.loads(word.text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{word.place}: PRELOAD_MODELS is not JSON") from error
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(address := entry.get("url") or entry.get("id"), str):
            found.append(Word(address, word.place))
    return found


def _by_name(job: Job, settings: Settings, word: Word) -> Draft | None:
    origin = _origin_of_name(job, word)
    if origin is None:
        return None
    facts: dict[str, Fact] = {}
    if context := settings.get("context"):
        facts["context"] = Fact(tokens(context.text, context.place), context.place)
        job.page.carried(context.place, f"context {facts['context'].value:,}")
    return draft_of(
        job.page, word.place, origin, facts, word.text if "://" not in word.text else origin.called
    )


def _origin_of_name(job: Job, word: Word) -> Origin | None:
    """`huggingface://ORG/NAME/FILE`, `ollama://NAME:TAG`, or a name of LocalAI's gallery."""
    scheme, separator, rest = word.text.partition("://")
    if separator and scheme in ("huggingface", "hf"):
        repository = Word("/".join(rest.partition("@")[0].split("/")[:2]), word.place)
        return from_gguf_repository(job.page, repository, plain_name(rest)[1])
    if separator and scheme == "ollama":
        return Origin(f"ollama:{rest}", plain_name(rest.replace(":", "-"))[0])
    if (known := original(word.text)) is not None:
        job.page.assumed(word.place, f"`{word.text}` of LocalAI's gallery is {known}, by its name")
        return Origin(f"hf:{known}", word.text)
    what = f"`{word.text}` is a name of LocalAI's gallery: which files it means is not in this file"
    job.page.left(word.place, what, "look it up in the gallery and add the model: source: hf:ORG/NAME")
    return None


# YAML files of models


def _described(job: Job, settings: Settings) -> Iterator[Described]:
    mount = _models_mount(job.service, settings)
    if mount is None or not is_host_path(mount.source):
        if mount is not None:
            what = f"YAML files in Docker's volume `{mount.source}` are not read"
            job.page.left(mount.place, what, "copy the folder out, or add its models by hand")
        return
    for path, text in job.yaml_files(mount.source).items():
        try:
            tree, _ = read_tree(path, text, None)
        except ConfigError as error:
            job.page.left(Place(path, 1), f"not read: {error.message}", error.hint)
            continue
        if isinstance(tree, Fields) and (one := _description(tree)):
            yield one


def _models_mount(service: Service, settings: Settings) -> Mount | None:
    said = settings.get("folder")
    folders = (said.text.rstrip("/"),) if said else FOLDERS
    return next((one for one in service.mounts if one.target.rstrip("/") in folders), None)


def _description(fields: Fields) -> Described | None:
    parameters = fields.get("parameters")
    name = fields.get("name")
    model = parameters.get("model") if isinstance(parameters, Fields) else None
    if not isinstance(model, Scalar) or not isinstance(name, Scalar):
        return None
    return Described(name.text or "", Word(model.text or "", model.place), fields)


def _by_file(job: Job, settings: Settings, one: Described) -> Draft | None:
    origin = _origin_of_file(job, settings, one)
    if origin is None:
        return None
    facts: dict[str, Fact] = {}
    embeddings = one.fields.get("embeddings")
    if isinstance(embeddings, Scalar) and embeddings.text == "true":
        facts["task"] = Fact("embed", embeddings.place)
        job.page.carried(embeddings.place, "task embed")
    for key in ("context_size", "max_model_len"):
        context = one.fields.get(key)
        if isinstance(context, Scalar):
            facts["context"] = Fact(tokens(context.text or "", context.place), context.place)
            job.page.carried(context.place, f"context {facts['context'].value:,}")
    said = one.fields.get("quantization")
    facts |= quantization(job.page, Word(said.text or "", said.place) if isinstance(said, Scalar) else None)
    _tell_split(job, one)
    return draft_of(job.page, one.model.place, origin, facts, one.name)


def _tell_split(job: Job, one: Described) -> None:
    for key in ("tensor_split", "main_gpu", "gpu_layers", "tensor_parallel_size"):
        if one.fields.get(key) is not None:
            job.page.changed(one.fields.keys[key], f"`{key}`: the plan decides which cards a model is on")


def _origin_of_file(job: Job, settings: Settings, one: Described) -> Origin | None:
    word, mount = one.model, _models_mount(job.service, settings)
    if "://" in word.text:
        return _origin_of_name(job, word)
    folder = mount.target if mount else FOLDERS[0]
    if word.text.lower().endswith((".gguf", ".bin")) or posixpath.isabs(word.text):
        return from_path(job.service, job.page, word, folder=folder)
    if "/" in word.text:
        return origin_of(job.service, job.page, word, folder="/nowhere")
    return from_path(job.service, job.page, word, folder=folder)


READER = Reader("LocalAI", recognises, read)
