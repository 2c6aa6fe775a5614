"""Readers of the services that run models, one file a kind."""

from __future__ import annotations

from sovereign_ai.migrate.readers import hugging_face, llama_cpp, localai, ollama, vllm, webui
from sovereign_ai.migrate.reading import Reader
from sovereign_ai.migrate.service import Service

READERS: tuple[Reader, ...] = (
    hugging_face.EMBEDDINGS,
    hugging_face.GENERATION,
    vllm.READER,
    llama_cpp.READER,
    ollama.READER,
    webui.READER,
    localai.READER,
)
"""In order: the first that recognises a service reads it."""


def reader_of(service: Service) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(service)), None)
