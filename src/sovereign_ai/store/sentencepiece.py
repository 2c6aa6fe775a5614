"""SentencePiece's BPE (`tokenizer.ggml.model` = llama): Llama 2, Mistral 7B, Gemma, Phi-3.

SentencePiece stores pieces with scores: of all neighbours whose union is a piece, those with the best score
are joined first, until none are left; what no piece covers becomes bytes. tokenizer.json wants the joins
themselves, in order: every way to cut a piece into two others is one, ranked by the score of the piece
(https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import ELSEWHERE
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Built,
    Vocabulary,
    added,
    numbered,
)

SPACE = "▁"
"""How SentencePiece writes a space."""
NORMAL = 1
KEPT_SPACES = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""The special tokens of Phi-3 that do not swallow the white space behind them (its tokenizer.json, `rstrip`;
GGUF does not say it, and llama.cpp has the same list)."""


def sentencepiece(file: GgufFile, words: Vocabulary) -> Built:
    """Raises BadModelFile, or UnsupportedModel for pieces that were made from changed text."""
    _refuse_changed_text(file)
    prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    tokens = _spelled(words, prefix)
    numbers = numbered(file, tokens)
    unknown = words.special.get("unk_token")
    model = models.BPE(
        vocab=numbers,
        merges=_merges(file, words, numbers),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=BYTE in words.kinds,
    )
    tokenizer = Tokenizer(model)
    _around(tokenizer, prefix)
    spelled = words._replace(tokens=tokens)
    tokenizer.add_special_tokens(_special(file, spelled))
    tokenizer.add_tokens(added(spelled.of_kind(USER_DEFINED), normalized=not prefix))
    begins = file.flag("tokenizer.ggml.add_bos_token", True)
    ends = file.flag("tokenizer.ggml.add_eos_token", False)
    return Built(
        tokenizer,
        tokens,
        first=words.special.get("bos_token") if begins else None,
        last=words.special.get("eos_token") if ends else None,
    )


def _refuse_changed_text(file: GgufFile) -> None:
    if file.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        raise UnsupportedModel(f"{file.path}: a tokenizer that removes white space", ELSEWHERE)
    if "tokenizer.ggml.precompiled_charsmap" in file.metadata:
        raise UnsupportedModel(f"{file.path}: a tokenizer that replaces characters", ELSEWHERE)


def _spelled(words: Vocabulary, prefix: bool) -> list[str]:
    """User-defined words as they are looked for: in the text as it came where a space is put before it, else
    in the text with its spaces replaced."""
    old, new = (SPACE, " ") if prefix else (" ", SPACE)
    return [
        token.replace(old, new) if kind == USER_DEFINED else token
        for token, kind in zip(words.tokens, words.kinds, strict=True)
    ]


def _around(tokenizer: Tokenizer, prefix: bool) -> None:
    """Spaces become visible before the merges and spaces again after them."""
    before: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    after: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        before.insert(0, normalizers.Prepend(SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(after)


def _merges(file: GgufFile, words: Vocabulary, numbers: dict[str, int]) -> list[tuple[str, str]]:
    """The joins in order. Gemma's pieces are numbered by rank, and its tokenizer.json goes by the numbers
    (`GemmaConverter` of transformers), as the scores in its files are not always those of its pieces."""
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(words.tokens):
        raise BadModelFile(f"{file.path}: {len(words.tokens)} tokens, but {len(scores)} scores")
    if file.architecture.startswith("gemma"):
        order = list(range(len(scores)))
    else:
        order = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    return [
        join
        for number in order
        if words.kinds[number] == NORMAL
        for join in _cuts(words.tokens[number], numbers, words.kinds)
    ]


def _cuts(piece: str, numbers: dict[str, int], kinds: list[int]) -> Iterator[tuple[str, str]]:
    """The ways to make the piece of two others, those of the most common parts first."""
    found = []
    for cut in range(1, len(piece)):
        left, right = numbers.get(piece[:cut]), numbers.get(piece[cut:])
        if left is not None and right is not None and kinds[left] == kinds[right] == NORMAL:
            found.append((left, right, cut))
    return ((piece[:cut], piece[cut:]) for _, _, cut in sorted(found))


def _special(file: GgufFile, words: Vocabulary) -> list[AddedToken]:
    swallows = file.architecture == "phi3"
    return [
        AddedToken(token, special=True, normalized=False, rstrip=swallows and token not in KEPT_SPACES)
        for token in words.of_kind(CONTROL, UNKNOWN)
        if token
    ]
