"""The tokens that mean something beyond their text: where texts begin and end, what fills, what masks.

Keys by https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (`seperator` is spelled so there). What a
file leaves out is what llama.cpp takes for its kind of tokenizer.
"""

from __future__ import annotations

from typing import Any

from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.gguf_file import GgufFile

UNSET = 0xFFFFFFFF
"""A token id that files use for `there is none`."""

KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "cls_token": "cls",
    "mask_token": "mask",
}
"""Names in tokenizer_config.json → the part before `_token_id` in GGUF."""
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
    "bert": {"cls_token": 101, "unk_token": 100, "sep_token": 102, "pad_token": 0, "mask_token": 103},
}
"""By `tokenizer.ggml.model`: SentencePiece's own numbers, and those of BERT's vocabularies."""
END_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>"})
"""Chat templates of the families here end an answer with one of these, whatever the file calls its end."""


def special_numbers(file: GgufFile, count: int) -> dict[str, int]:
    """Names as in tokenizer_config.json → numbers. Raises BadModelFile for one beyond the `count` tokens."""
    defaults = DEFAULTS.get(file.text("tokenizer.ggml.model"), {})
    found = {}
    for name, key in KEYS.items():
        full = f"tokenizer.ggml.{key}_token_id"
        number = file.integer(full, UNSET)
        if number == UNSET and full not in file.metadata and defaults.get(name, count) < count:
            number = defaults[name]
        if number == UNSET:
            continue
        if not 0 <= number < count:
            raise BadModelFile(f"{file.path}: the {key} token is number {number} of {count}")
        found[name] = number
    return found


def config_ids(file: GgufFile) -> dict[str, int]:
    """The numbers that config.json names."""
    found = special_numbers(file, len(file.texts("tokenizer.ggml.tokens")))
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "pad_token_id"}
    return {field: found[name] for name, field in names.items() if name in found}


def generation_config(file: GgufFile) -> dict[str, Any]:
    """generation_config.json: where answers end is every token that ends a turn."""
    ids: dict[str, Any] = dict(config_ids(file))
    tokens = file.texts("tokenizer.ggml.tokens")
    ends = {ids["eos_token_id"]} if "eos_token_id" in ids else set()
    for key in ("eot", "eom"):
        number = file.integer(f"tokenizer.ggml.{key}_token_id", UNSET)
        ends |= {number} if 0 <= number < len(tokens) else set()
    ends |= {number for number, token in enumerate(tokens) if token in END_OF_TURN}
    if len(ends) > 1:
        first = ids.get("eos_token_id")
        ids["eos_token_id"] = sorted(ends, key=lambda number: (number != first, number))
    elif ends:
        ids["eos_token_id"] = ends.pop()
    return {"_from_model_config": True, **ids}
