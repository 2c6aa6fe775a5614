"""References for conversion, computed without our code by the engine environment's Python; answers in JSON.

PYTHON convert_references.py tokenizers < request.json    real and small tokenizers, and what they answer
PYTHON convert_references.py models < request.json        converted models beside their originals
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any


def tokenizers(request: dict[str, Any]) -> dict[str, Any]:
    """By name: the metadata that a GGUF of the tokenizer has, and the numbers of every text's tokens."""
    texts = request["texts"]
    data = _mistral_data()
    found = {
        "mistral-v1": _pieces(data / "tokenizer.model.v1", texts),
        "mistral-v3": _pieces(data / "mistral_instruct_tokenizer_240323.model.v3", texts),
        "tekken": _tekken(data / "tekken_240911.json", texts),
        "smollm2": {"ids": [_bpe(request["smollm2"], text) for text in texts]},
    }
    for name, prefix in (("small", True), ("small-bare", False)):
        found[name] = _pieces(_trained(request["sentences"], prefix=prefix), texts, prefix=prefix)
    return found


def _mistral_data() -> Path:
    import mistral_common  # type: ignore[import-not-found]

    return Path(mistral_common.__file__).parent / "data"


def _trained(sentences: list[str], *, prefix: bool) -> bytes:
    """A small SentencePiece BPE, like Llama 2's with a space before every text, like Gemma's without."""
    import sentencepiece  # type: ignore[import-not-found]

    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[] if prefix else ["▁▁", "▁▁▁▁", "\n\n", "<table>"],
        minloglevel=2,
    )
    return model.getvalue()


def _pieces(source: Path | bytes, texts: list[str], *, prefix: bool = True) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece model, and SentencePiece's own answers."""
    import sentencepiece

    raw = source if isinstance(source, bytes) else source.read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_proto=raw)
    count = model.get_piece_size()
    tokens = [model.id_to_piece(number) for number in range(count)]
    user = set() if prefix else {"▁▁", "▁▁▁▁", "\n\n", "<table>"}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [t.replace("▁", " ") if t in user else t for t in tokens],
        "tokenizer.ggml.scores": [model.get_score(number) for number in range(count)],
        "tokenizer.ggml.token_type": [_kind(model, n, tokens[n] in user) for n in range(count)],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return {"metadata": metadata, "ids": [[model.bos_id(), *model.encode(text)] for text in texts]}


def _kind(model: Any, number: int, user_defined: bool) -> int:
    if model.is_unknown(number):
        return 2
    if model.is_control(number):
        return 3
    return 4 if user_defined else 6 if model.is_byte(number) else 1


def _tekken(path: Path, texts: list[str]) -> dict[str, Any]:
    """Mistral Nemo's tokenizer: tokens in GPT-2's letters, merges told from the ranks."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # type: ignore[import-not-found]

    model = Tekkenizer.from_file(path)
    special = model.num_special_tokens
    pieces = [model.id_to_byte_piece(number) for number in range(special, model.n_words)]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    tokens = [model.id_to_piece(number) for number in range(special)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": tokens + [_letters(piece) for piece in pieces],
        "tokenizer.ggml.merges": [
            " ".join(map(_letters, halves))
            for piece in pieces
            if len(piece) > 1
            for halves in [_halves(piece, ranks)]
            if len(halves) == 2
        ],
        "tokenizer.ggml.token_type": [3] * special + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": model.bos_id,
        "tokenizer.ggml.eos_token_id": model.eos_id,
        "tokenizer.ggml.unknown_token_id": model.unk_id,
        "tokenizer.ggml.add_bos_token": True,
    }
    return {
        "metadata": metadata,
        "ids": [model.encode(text, bos=True, eos=False) for text in texts],
    }


def _halves(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that are left when a token is built of those of lower rank only."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        joins = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(joins)
        if rank >= ranks[piece]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _alphabet() -> dict[int, str]:
    """GPT-2's letter for every byte: visible Latin-1 characters stand for themselves, the rest follows."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


ALPHABET = _alphabet()


def _letters(piece: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in piece)


def _bpe(model: dict[str, Any], text: str) -> list[int]:
    """Byte-level BPE as GPT-2's paper has it, by hand: control tokens first, digits one by one, then words,
    then the merges in their order."""
    import regex  # type: ignore[import-untyped]

    if "ranks" not in model:
        model["ranks"] = {tuple(merge.split(" ")): rank for rank, merge in enumerate(model["merges"])}
        model["numbers"] = {token: number for number, token in enumerate(model["tokens"])}
        model["control"] = regex.compile("(" + "|".join(map(regex.escape, model["special"])) + ")")
    words = r"\p{Nd}|\p{Nl}|\p{No}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ids = []
    for part in model["control"].split(text):
        if part in model["special"]:
            ids.append(model["numbers"][part])
            continue
        for digits in regex.split(r"(\p{N})", part):
            for word in regex.findall(words, digits):
                ids += [model["numbers"][token] for token in _merged(model["ranks"], word)]
    return ids


def _merged(ranks: dict[tuple[str, str], int], word: str) -> list[str]:
    parts = list(_letters(word.encode()))
    while len(parts) > 1:
        pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts))]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def models(request: dict[str, Any]) -> dict[str, Any]:
    """By name, how far each converted model is from its original."""
    found = {name: _compared(**pair) for name, pair in request["families"].items()}
    return found | {
        "smollm2": _smollm2(request["smollm2"], request["texts"], request["conversations"]),
        "minilm": _minilm(request["minilm"], request["texts"]),
    }


def _compared(original: str, converted: str) -> dict[str, Any]:
    """The largest difference between outputs on texts shorter and longer than the model's windows."""
    import torch

    outputs = []
    for folder in (original, converted):
        model, info = _loaded(folder)
        torch.manual_seed(1)
        tokens = [torch.randint(3, 300, (2, length)) for length in (5, 28, 60)]
        if model.config.model_type == "bert":
            tokens = tokens[:2]
        with torch.no_grad():
            outputs.append([model(ids)[0] for ids in tokens])
    pairs = list(zip(*outputs, strict=True))
    return {
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "spread": min(float(a.std()) for a, _ in pairs),
        "missing": sorted(name for name in info["missing_keys"] if "pooler" not in name),
        "unexpected": sorted(info["unexpected_keys"]),
    }


def _loaded(folder: str) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    kind: Any = AutoModel if AutoConfig.from_pretrained(folder).model_type == "bert" else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), info


def _smollm2(request: dict[str, str], texts: list[str], conversations: list[Any]) -> dict[str, Any]:
    """transformers' own load of the GGUF beside the converted folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = Path(request["gguf"])
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    ours, info = _loaded(request["converted"])
    tokenizer = AutoTokenizer.from_pretrained(request["converted"])
    original = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = torch.tensor([tokenizer("def fibonacci(n):\n    return 1 if n < 2 else")["input_ids"]])
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids).logits
    return {
        "difference": float((expected - found).abs().max()),
        "spread": float(expected.std()),
        "missing": sorted(info["missing_keys"]),
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "rendered": [
            [
                kind.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                for kind in (original, tokenizer)
            ]
            for messages in conversations
        ],
    }


def _minilm(request: dict[str, str], texts: list[str]) -> dict[str, Any]:
    """The vectors of a real encoder before and after it was a GGUF, and its tokenizer's answers."""
    import torch
    from transformers import AutoTokenizer

    vectors: dict[str, list[Any]] = {}
    ids: dict[str, list[Any]] = {}
    for name, folder in request.items():
        model, _ = _loaded(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids[name] = [tokenizer(text)["input_ids"] for text in texts]
        vectors[name] = list(_means(model, tokenizer, texts[:50]))
    difference = max(
        float((a - b).abs().max()) for a, b in zip(vectors["original"], vectors["converted"], strict=True)
    )
    return {
        "difference": difference,
        "same_ids": ids["original"] == ids["converted"],
        "torch": torch.__version__,
    }


def _means(model: Any, tokenizer: Any, texts: list[str]) -> Iterator[Any]:
    import torch

    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            yield model(**encoded).last_hidden_state[0].mean(dim=0)


if __name__ == "__main__":
    verb: Any = {"tokenizers": tokenizers, "models": models}[sys.argv[1]]
    answer = verb(json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
