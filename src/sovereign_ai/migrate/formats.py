"""Number formats of old stacks → those of factory.yaml. Pure."""

from __future__ import annotations

from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.draft import Fact
from sovereign_ai.migrate.service import Word
from sovereign_ai.spec import Format

FORMATS: dict[str, Format] = {
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "bitsandbytes": "bnb4",
    "bitsandbytes-nf4": "bnb4",
    "bitsandbytes-fp4": "bnb4",
    "w4a16": "w4a16",
}
"""By the names that vLLM and text-generation-inference use."""

BY_CHECKPOINT = ("compressed-tensors", "auto", "none", "modelopt")


def quantization(page: Page, word: Word | None) -> dict[str, Fact]:
    """The key `quantization`; nothing, told in the book, where the format does not carry over."""
    if word is None:
        return {}
    said = word.text.strip().lower()
    if said in FORMATS:
        page.carried(word.place, f"quantization {FORMATS[said]}, no other")
        return {"quantization": Fact([FORMATS[said]], word.place)}
    if said in BY_CHECKPOINT:
        page.changed(word.place, f"quantization `{said}` is told by the model's own files")
    else:
        what = f"quantization `{said}` is not one that the planner has: it chooses, where 16 bit does not fit"
        page.left(word.place, what, "see `quantization` in docs/reference/factory.md")
    return {}
