"""Byte-level BPE (`tokenizer.ggml.model` = gpt2): GPT-2, Llama 3, Qwen, Mistral Nemo, SmolLM.

GGUF stores the vocabulary and the merges but only the name of the rule that splits text before merging. The
rules are those of the models' own tokenizer.json files; which name means which rule, and what it implies
besides, by `llama-vocab.cpp` of https://github.com/ggml-org/llama.cpp, which quotes the originals.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import ELSEWHERE
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.vocabulary import CONTROL, USER_DEFINED, Built, Vocabulary, added, numbered

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s" + _REST % ""
LLAMA3_SPLIT = _WORD % "{1,3}"
"""`pre_tokenizer` of meta-llama/Meta-Llama-3-8B/tokenizer.json: digits in threes."""
QWEN2_SPLIT = _WORD % ""
"""`pre_tokenizer` of Qwen/Qwen2-7B/tokenizer.json: digits one by one."""

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}%s"
    + _REST % "/"
)
TEKKEN_SPLIT = _CASED % ("", "", "")
"""`pattern` of mistralai/Mistral-Nemo-Instruct-2407/tekken.json: words also begin at a capital letter."""
O200K_SPLIT = _CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?", "{1,3}")
"""`pre_tokenizer` of microsoft/Phi-4-mini-instruct/tokenizer.json."""
CODER_SPLITS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")
"""`pre_tokenizer` of deepseek-ai/deepseek-coder-6.7b-instruct/tokenizer.json, one after the other."""


class _Rule(NamedTuple):
    """How text is split before merging. Without `splits`: by GPT-2's own rule, which ByteLevel contains."""

    splits: tuple[str, ...] = ()
    digits: bool = False
    normalize: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3 = _Rule(splits=(LLAMA3_SPLIT,), whole_words=True, add_bos=True)
_QWEN2 = _Rule(splits=(QWEN2_SPLIT,), normalize=True)
_RULES = {
    "default": _Rule(),
    "gpt-2": _Rule(),
    "phi-2": _Rule(),
    "olmo": _Rule(),
    "smollm": _Rule(digits=True),
    "starcoder": _Rule(digits=True),
    "refact": _Rule(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _Rule(splits=(LLAMA3_SPLIT,)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "deepseek-coder": _Rule(splits=CODER_SPLITS, digits=True),
    "tekken": _Rule(splits=(TEKKEN_SPLIT,), whole_words=True, add_bos=True),
    "gpt-4o": _Rule(splits=(O200K_SPLIT,)),
}


def byte_level(file: GgufFile, words: Vocabulary) -> Built:
    """Raises UnsupportedModel for a rule that is not known, BadModelFile for merges of unknown tokens."""
    rule = _rule(file)
    numbers = numbered(file, words.tokens)
    merges = [_merge(file, text, numbers) for text in file.texts("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges, ignore_merges=rule.whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_steps(rule))
    if rule.normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(added(words.of_kind(CONTROL), special=True))
    tokenizer.add_tokens(added(words.of_kind(USER_DEFINED)))
    begins = file.flag("tokenizer.ggml.add_bos_token", rule.add_bos)
    ends = file.flag("tokenizer.ggml.add_eos_token", False)
    return Built(
        tokenizer,
        words.tokens,
        first=words.special.get("bos_token") if begins else None,
        last=words.special.get("eos_token") if ends else None,
    )


def _rule(file: GgufFile) -> _Rule:
    name = file.text("tokenizer.ggml.pre", "default")
    if name not in _RULES:
        raise UnsupportedModel(
            f"{file.path}: pre-tokenizer `{name}` cannot be converted yet (can be: {', '.join(_RULES)})",
            ELSEWHERE,
        )
    return _RULES[name]


def _steps(rule: _Rule) -> list[pre_tokenizers.PreTokenizer]:
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(split), behavior="isolated") for split in rule.splits
    ]
    if rule.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule.splits))
    return steps


def _merge(file: GgufFile, text: str, numbers: dict[str, int]) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not space or not {left, right, left + right} <= numbers.keys():
        raise BadModelFile(f"{file.path}: merge `{text}` does not join two tokens into a third")
    return left, right
