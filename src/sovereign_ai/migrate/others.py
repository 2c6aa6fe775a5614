"""Services that run no model: why each is not carried over, and what takes its place. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.settings import is_option

POINT = "point it at the gateway, {url} from a container, with a key of `sovereign keys create NAME`"


class Other(NamedTuple):
    """`images`: parts of an image's repository. `{url}` in `todo` becomes the gateway's address. `front`:
    clients came through it."""

    images: str
    what: str
    todo: str = ""
    front: bool = False


OTHERS = (
    Other(
        "open-webui",
        "a page for chatting",
        "keep it: OPENAI_API_BASE_URL={url} and OPENAI_API_KEY from `sovereign keys create NAME`",
    ),
    Other(
        "librechat anything-llm anythingllm lobe-chat chatbot-ui big-agi flowise n8n dify langflow "
        "sillytavern searxng perplexica chat-ui nextchat",
        "a program that asks models",
        f"keep it, and {POINT}",
    ),
    Other(
        "litellm one-api new-api bifrost gateway llm-proxy",
        "a proxy before the models: the gateway takes its place, with keys, quotas, queueing and failover",
        "point its clients at the gateway, with new keys: sovereign keys create NAME",
        front=True,
    ),
    Other(
        "llama-swap",
        "it loads one model at a time, by a file that is not read: here all stay loaded",
        "add the models of its file to factory.yaml",
        front=True,
    ),
    Other(
        "nginx traefik caddy haproxy envoy nginx-proxy-manager cloudflared swag",
        "a web server: the gateway serves HTTP by itself",
        "keep it where it gives you TLS, before the gateway ({url})",
    ),
    Other(
        "qdrant chroma weaviate milvus elasticsearch opensearch pgvector meilisearch",
        "a database of vectors",
        "keep it; vectors stay valid only while the embedding model stays the same",
    ),
    Other(
        "redis valkey keydb postgres postgresql mysql mariadb mongo rabbitmq minio memcached etcd",
        "it keeps data for another service",
        "keep it if that service stays",
    ),
    Other("watchtower diun", "it replaces images: engines have a pinned release, `engine: {release: …}`"),
    Other(
        "prometheus grafana loki promtail node-exporter dcgm-exporter nvidia_gpu_exporter cadvisor alloy "
        "otel-collector jaeger",
        "monitoring",
        "keep it, and collect the gateway's /metrics",
    ),
    Other("portainer dozzle autoheal", "it watches containers: the supervisor restarts what fails"),
    Other(
        "whisper faster-whisper speaches piper kokoro xtts openedai-speech comfyui stable-diffusion "
        "automatic1111 sdnext invokeai",
        "speech or images: the gateway has chat and embeddings",
        "keep it; its cards must be told apart by hand, `devices:` at the models",
    ),
    Other("tika docling unstructured", "it reads documents", "keep it"),
)

MODEL_WORD = re.compile(r"(?i)(^|[_-])(model|model[_-]?(id|name|path|repo)|checkpoint|hf[_-]?repo)$")


def repository(service: Service) -> str:
    """`ghcr.io/berriai/litellm:main@sha256:…` → `berriai/litellm`."""
    plain = service.image.partition("@")[0].lower()
    host, slash, rest = plain.partition("/")
    name = rest if slash and ("." in host or ":" in host) else plain
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def other_of(service: Service) -> Other | None:
    parts = repository(service).split("/")
    words = {*parts, *(re.sub(r"-(alpine|server|database|proxy)$", "", part) for part in parts)}
    for other in OTHERS:
        if words & set(other.images.split()):
            return other
    return None


def tell_other(page: Page, service: Service, url: str) -> None:
    """Why it is not carried over; and, where it looks like an engine that nobody here knows, its options."""
    other = other_of(service)
    if other is not None:
        page.left(service.image_place, f"{other.what} ({service.image})", other.todo.format(url=url))
        return
    image = (
        f"image {service.image}" if service.image else "built from source" if service.built else "no image"
    )
    hints = model_like(service)
    if hints:
        names = ", ".join(f"`{word.text}`" for word in hints)
        what = f"not a kind that is known here ({image}), but {names} looks as if it served a model"
        page.left(hints[0].place, what, "add the model by hand: source: hf:ORG/NAME or file:PATH")
    else:
        page.left(service.image_place, f"not a kind that is known here ({image})", "keep it if you need it")


def model_like(service: Service) -> list[Word]:
    """Names of options and variables, never values: what is unknown may be a secret."""
    options = [word.text.partition("=")[0] for word in service.words if is_option(word.text)]
    places = [word.place for word in service.words if is_option(word.text)]
    found = [
        Word(name, place) for name, place in zip(options, places, strict=True) if MODEL_WORD.search(name)
    ]
    found += [Word(name, word.place) for name, word in service.environment.items() if MODEL_WORD.search(name)]
    return found
