"""WordPiece (`tokenizer.ggml.model` = bert): BERT's words, and pieces that continue them.

GGUF marks the words, with U+2581 before them, and leaves the pieces bare; tokenizer.json leaves the words
bare and marks the pieces, with `##`. How a text is cut into words before is BERT's own, by
https://github.com/google-research/bert/blob/master/tokenization.py.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sovereign_ai.errors import BadModelFile
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.vocabulary import CONTROL, Built, Vocabulary, added, numbered

WORD, CONTINUED = "▁", "##"
LONGEST_WORD = 100
"""Characters; longer words are unknown (`max_input_chars_per_word`)."""


def wordpiece(file: GgufFile, words: Vocabulary) -> Built:
    """Raises BadModelFile for a vocabulary without BERT's special tokens."""
    special = {words.tokens[number] for number in words.special.values()}
    tokens = [
        token if kind == CONTROL or token in special else _bert_spelling(token)
        for token, kind in zip(words.tokens, words.kinds, strict=True)
    ]
    first = words.special.get("cls_token", -1)
    if "bos_token" in words.special and "tokenizer.ggml.cls_token_id" not in file.metadata:
        first = words.special["bos_token"]
    if first < 0 or not {"unk_token", "sep_token"} <= words.special.keys():
        raise BadModelFile(f"{file.path}: the tokenizer lacks [CLS], [SEP] or [UNK]")
    tokenizer = _tokenizer(numbered(file, tokens), tokens[words.special["unk_token"]], _lowers(words))
    spelled = words._replace(tokens=tokens)
    tokenizer.add_special_tokens(added(spelled.of_kind(CONTROL), special=True))
    return Built(tokenizer, tokens, first=first, last=words.special["sep_token"], first_again=False)


def _bert_spelling(token: str) -> str:
    return token[1:] if token.startswith(WORD) else CONTINUED + token


def _lowers(words: Vocabulary) -> bool:
    """Whether text is put in lower case: the file does not say it, but then no word has a capital letter."""
    special = {words.tokens[number] for number in words.special.values()}
    return not any(
        token != token.lower() and token not in special and kind != CONTROL
        for token, kind in zip(words.tokens, words.kinds, strict=True)
    )


def _tokenizer(numbers: dict[str, int], unknown: str, lowers: bool) -> Tokenizer:
    model = models.WordPiece(
        vocab=numbers,
        unk_token=unknown,
        max_input_chars_per_word=LONGEST_WORD,
        continuing_subword_prefix=CONTINUED,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowers)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    return tokenizer
