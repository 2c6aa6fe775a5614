"""BERT encoders that embed (MiniLM, bge, e5, gte) in the names of BertModel.

llama.cpp leaves the pooler out, which none of them needs for its vectors.
"""

from __future__ import annotations

from typing import Any

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.store.decoder import (
    ELSEWHERE,
    Blueprint,
    Place,
    check_layers,
    embedding,
    find_targets,
    positive,
)
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.pooling import pooling_files

LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
"""Names in GGUF → names in BertModel, each with a weight and a bias."""


def bert(file: GgufFile) -> Blueprint:
    """Raises BadModelFile, or UnsupportedModel for relatives that BertModel does not cover."""
    _refuse_relatives(file)
    sizes = _sizes(file)
    return Blueprint(
        targets=find_targets(file, "BertModel", _places(file, sizes)),
        config=sizes,
        files=pooling_files(file, sizes["hidden_size"], sizes["max_position_embeddings"]),
        vocabulary=sizes["vocab_size"],
        context=sizes["max_position_embeddings"],
    )


def _refuse_relatives(file: GgufFile) -> None:
    """RoBERTa's and XLM-R's files call themselves BERT, with tables of positions cut at the front."""
    model = file.text("tokenizer.ggml.model", "bert")
    if model != "bert":
        raise UnsupportedModel(
            f"{file.path}: a RoBERTa or XLM-RoBERTa (tokenizer `{model}`), which cannot be converted yet",
            ELSEWHERE,
        )
    if file.tensor("token_types.weight") is None:
        raise UnsupportedModel(f"{file.path}: a BERT without token types (DistilBERT)", ELSEWHERE)
    if file.tensor("cls.weight") or file.tensor("cls.output.weight"):
        raise UnsupportedModel(f"{file.path}: a BERT that classifies or ranks", ELSEWHERE)


def _sizes(file: GgufFile) -> dict[str, Any]:
    """config.json."""
    hidden = positive(file, "bert.embedding_length", file.integer("bert.embedding_length"))
    counts = {
        "num_hidden_layers": file.integer("bert.block_count"),
        "num_attention_heads": file.integer("bert.attention.head_count"),
        "intermediate_size": file.integer("bert.feed_forward_length"),
        "max_position_embeddings": file.integer("bert.context_length"),
    }
    check_layers(file, counts["num_hidden_layers"])
    kinds = file.tensor("token_types.weight")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        **{name: positive(file, name, value) for name, value in counts.items()},
        "vocab_size": embedding(file).shape[0],
        "type_vocab_size": kinds.shape[0] if kinds and len(kinds.shape) > 1 else 1,
        "layer_norm_eps": file.number("bert.attention.layer_norm_epsilon"),
        "position_embedding_type": "absolute",
    }


def _places(file: GgufFile, config: dict[str, Any]) -> list[Place]:
    hidden = config["hidden_size"]
    places = [
        Place("token_embd.weight", "embeddings.word_embeddings.weight", (config["vocab_size"], hidden)),
        Place(
            "position_embd.weight",
            "embeddings.position_embeddings.weight",
            (config["max_position_embeddings"], hidden),
        ),
        Place(
            "token_types.weight",
            "embeddings.token_type_embeddings.weight",
            (config["type_vocab_size"], hidden),
        ),
        Place("token_embd_norm.weight", "embeddings.LayerNorm.weight", (hidden,)),
        Place("token_embd_norm.bias", "embeddings.LayerNorm.bias", (hidden,)),
    ]
    for number in range(config["num_hidden_layers"]):
        for old, new in LAYER.items():
            rows, columns = _shape(old, hidden, config["intermediate_size"])
            name, target = f"blk.{number}.{old}", f"encoder.layer.{number}.{new}"
            weight = (rows,) if old.endswith("norm") else (rows, columns)
            places.append(Place(f"{name}.weight", f"{target}.weight", weight))
            places.append(Place(f"{name}.bias", f"{target}.bias", (rows,)))
    return places


def _shape(name: str, hidden: int, inner: int) -> tuple[int, int]:
    return {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}.get(name, (hidden, hidden))
