"""The tokenizer inside a GGUF → tokenizer.json and the two small files beside it.

Byte-level BPE only (`tokenizer.ggml.model` = gpt2). GGUF stores the vocabulary and merges but only the name
of the rule that splits text before merging; the rules are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.llama import UNSET

CONTROL, USER_DEFINED = 3, 4
"""`tokenizer.ggml.token_type`: tokens that steer the model, and words added beside the merges."""

_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = _WORD % "{1,3}"
"""`pre_tokenizer` of meta-llama/Meta-Llama-3-8B/tokenizer.json: digits in threes."""
QWEN2_SPLIT = _WORD % ""
"""`pre_tokenizer` of Qwen/Qwen2-7B/tokenizer.json: digits one by one."""


class _Rule(NamedTuple):
    """How text is split before merging. `split` None: by GPT-2's own rule, which ByteLevel contains."""

    split: str | None = None
    digits: bool = False
    normalize: bool = False
    whole_words: bool = False
    add_bos: bool = False


_RULES = {
    "default": _Rule(),
    "gpt-2": _Rule(),
    "smollm": _Rule(digits=True),
    "llama-bpe": _Rule(split=LLAMA3_SPLIT, whole_words=True, add_bos=True),
    "qwen2": _Rule(split=QWEN2_SPLIT, normalize=True),
}


class TokenizerFiles(NamedTuple):
    """Contents of tokenizer.json (text), tokenizer_config.json and special_tokens_map.json."""

    tokenizer: str
    config: dict[str, Any]
    special_tokens: dict[str, str]


def convert_tokenizer(file: GgufFile, vocabulary: int, context: int) -> TokenizerFiles:
    """Build the files. `vocabulary` is the number of embedding rows, `context` in tokens.

    Raises UnsupportedModel for other tokenizers than byte-level BPE, BadModelFile for one that contradicts
    itself.
    """
    rule = _rule(file)
    tokens = file.texts("tokenizer.ggml.tokens")
    if len(tokens) > vocabulary:
        raise BadModelFile(f"{file.path}: {len(tokens)} tokens, but only {vocabulary} embeddings")
    special = _special_tokens(file, tokens)
    add_bos = file.flag("tokenizer.ggml.add_bos_token", rule.add_bos) and "bos_token" in special
    tokenizer = _bpe(file, tokens, rule)
    _add_special(tokenizer, file, tokens)
    if add_bos:
        _begin_with(tokenizer, special["bos_token"], tokens.index(special["bos_token"]))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        **special,
    }
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.text("tokenizer.chat_template")
    return TokenizerFiles(tokenizer.to_str(), config, special)


def _rule(file: GgufFile) -> _Rule:
    model = file.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedModel(
            f"{file.path}: tokenizer `{model}` cannot be converted yet, only byte-level BPE (`gpt2`)",
            "look for the same model as SafeTensors",
        )
    name = file.text("tokenizer.ggml.pre", "default")
    if name not in _RULES:
        raise UnsupportedModel(
            f"{file.path}: pre-tokenizer `{name}` cannot be converted yet (known: {', '.join(_RULES)})",
            "look for the same model as SafeTensors",
        )
    return _RULES[name]


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    found: dict[str, str] = {}
    for name, key in keys.items():
        number = file.integer(f"tokenizer.ggml.{key}_token_id", UNSET)
        if number == UNSET:
            continue
        if not 0 <= number < len(tokens):
            raise BadModelFile(f"{file.path}: the {key} token is number {number} of {len(tokens)}")
        found[name] = tokens[number]
    return found


def _bpe(file: GgufFile, tokens: list[str], rule: _Rule) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise BadModelFile(f"{file.path}: a token is listed twice")
    merges = [_merge(file, text, vocabulary) for text in file.texts("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.whole_words))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.split:
        steps.append(pre_tokenizers.Split(Regex(rule.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rule.normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(file: GgufFile, text: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not space or not {left, right, left + right} <= vocabulary.keys():
        raise BadModelFile(f"{file.path}: merge `{text}` does not join two tokens into a third")
    return left, right


def _add_special(tokenizer: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    kinds = file.integers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise BadModelFile(f"{file.path}: {len(tokens)} tokens, but {len(kinds)} token types")
    named = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(token, special=True, normalized=False) for token, kind in named if kind == CONTROL]
    added = [AddedToken(token, normalized=False) for token, kind in named if kind == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(added)


def _begin_with(tokenizer: Tokenizer, token: str, number: int) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, number)]
    )
