"""The tokenizer inside a GGUF → tokenizer.json and the two small files beside it.

What the three kinds have in common; how each splits and joins stands in a module of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import processors

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.byte_level import byte_level
from sovereign_ai.store.decoder import ELSEWHERE
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.sentencepiece import sentencepiece
from sovereign_ai.store.vocabulary import Built, read_vocabulary
from sovereign_ai.store.wordpiece import wordpiece

_KINDS = {"gpt2": byte_level, "llama": sentencepiece, "bert": wordpiece}


class TokenizerFiles(NamedTuple):
    """Contents of tokenizer.json (text), tokenizer_config.json and special_tokens_map.json."""

    tokenizer: str
    config: dict[str, Any]
    special_tokens: dict[str, str]


def convert_tokenizer(file: GgufFile, vocabulary: int, context: int) -> TokenizerFiles:
    """Build the files. `vocabulary` is the number of embedding rows, `context` in tokens.

    Raises UnsupportedModel for a kind or a rule that is not known, BadModelFile for a tokenizer that
    contradicts itself.
    """
    model = file.text("tokenizer.ggml.model")
    if model not in _KINDS:
        raise UnsupportedModel(
            f"{file.path}: tokenizer `{model}` cannot be converted yet (can be: {', '.join(_KINDS)})",
            ELSEWHERE,
        )
    words = read_vocabulary(file, vocabulary)
    built = _KINDS[model](file, words)
    _frame(file, built)
    special = {name: built.tokens[number] for name, number in words.special.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": built.first is not None,
        **special,
    }
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.text("tokenizer.chat_template")
    return TokenizerFiles(built.tokenizer.to_str(), config, special)


def _frame(file: GgufFile, built: Built) -> None:
    """Put the tokens around every text that the model was trained to find there."""
    first, last = _piece(file, built, built.first), _piece(file, built, built.last)
    if not first + last:
        return
    again = first if built.first_again else []
    numbers = {built.tokens[n]: n for n in (built.first, built.last) if n is not None}
    built.tokenizer.post_processor = processors.TemplateProcessing(
        single=_template(first, "$A", last, 0),
        pair=_template(first, "$A", last, 0) + _template(again, "$B", last, 1),
        special_tokens=list(numbers.items()),
    )


def _piece(file: GgufFile, built: Built, number: int | None) -> list[str]:
    if number is None:
        return []
    token = built.tokens[number]
    if not token or token.startswith("$") or ":" in token:
        raise BadModelFile(f"{file.path}: `{token}` cannot be a token that begins or ends a text")
    return [token]


def _template(first: list[str], text: str, last: list[str], kind: int) -> list[str]:
    """Pieces of a template, each with the type that BERT's models tell two texts apart by."""
    return [f"{piece}:{kind}" for piece in (*first, text, *last)]
