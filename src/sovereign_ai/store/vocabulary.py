"""What a GGUF says of its tokens, whatever the kind of tokenizer, and what a kind makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.special_tokens import special_numbers

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""`tokenizer.ggml.token_type` (`gguf.constants.TokenType`): CONTROL steers the model, USER_DEFINED words
stand beside the merges and are never taken apart. 1 is a token like others, 5 one that is never used."""


class Vocabulary(NamedTuple):
    """As many `kinds` as `tokens`; `special` by the names of tokenizer_config.json, in numbers of tokens."""

    tokens: list[str]
    kinds: list[int]
    special: dict[str, int]

    def of_kind(self, *kinds: int) -> Iterator[str]:
        return (token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds)


class Built(NamedTuple):
    """A tokenizer without its frame: the numbers of the tokens before and after every text, None where there
    is none. `tokens` are spelled as tokenizer.json spells them."""

    tokenizer: Tokenizer
    tokens: list[str]
    first: int | None
    last: int | None
    first_again: bool = True
    """Whether the second of two texts read together begins with `first` too."""


def read_vocabulary(file: GgufFile, rows: int) -> Vocabulary:
    """Raises BadModelFile for one that contradicts itself, or the `rows` of the embedding."""
    tokens = file.texts("tokenizer.ggml.tokens")
    if len(tokens) > rows:
        raise BadModelFile(f"{file.path}: {len(tokens)} tokens, but only {rows} embeddings")
    kinds = file.integers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise BadModelFile(f"{file.path}: {len(tokens)} tokens, but {len(kinds)} token types")
    return Vocabulary(tokens, kinds, special_numbers(file, len(tokens)))


def numbered(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    """Tokens → their numbers. Raises BadModelFile where two are spelled alike."""
    found = {token: number for number, token in enumerate(tokens)}
    if len(found) != len(tokens):
        raise BadModelFile(f"{file.path}: a token is listed twice")
    return found


def added(tokens: Iterator[str], *, special: bool = False, normalized: bool = False) -> list[AddedToken]:
    """Words that are found before anything else is done to a text."""
    return [AddedToken(token, special=special, normalized=normalized) for token in tokens if token]
