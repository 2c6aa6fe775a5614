"""Which architectures of GGUF can be converted, by which module, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.store.bert import bert
from sovereign_ai.store.decoder import ELSEWHERE, Blueprint
from sovereign_ai.store.gemma import gemma2, gemma3
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.llama import llama
from sovereign_ai.store.phi3 import phi3
from sovereign_ai.store.qwen import qwen2, qwen3

FAMILIES: dict[str, Callable[[GgufFile], Blueprint]] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "phi3": phi3,
    "bert": bert,
}
"""`general.architecture` → what reads it. The names are those of `gguf.constants.MODEL_ARCH_NAMES`."""

_REFUSED = {
    "clip": "the vision part of a model; the language part is another file",
    "phimoe": "a mixture of experts",
    "grok": "a mixture of experts",
    "dbrx": "a mixture of experts",
    "gpt-oss": "a mixture of experts",
    "llama4": "a mixture of experts",
    "nomic-bert": "a BERT with rotary positions and gates",
    "nomic-bert-moe": "a mixture of experts",
    "jina-bert-v2": "a BERT with ALiBi",
    "jina-bert-v3": "a BERT with rotary positions and adapters",
}
"""What to call some that people have; the others are named by their architecture alone."""


def read_blueprint(file: GgufFile) -> Blueprint:
    """What the file becomes. Raises BadModelFile, or UnsupportedModel for one that cannot be converted."""
    architecture = file.architecture
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedModel(
            f"{file.path}: architecture `{architecture}`{_what(architecture)} cannot be converted yet "
            f"(can be: {', '.join(FAMILIES)})",
            ELSEWHERE,
        )
    return family(file)


def _what(architecture: str) -> str:
    known = _REFUSED.get(architecture) or ("a mixture of experts" if architecture.endswith("moe") else "")
    return f", {known}," if known else ""
