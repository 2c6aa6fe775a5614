"""How an embedding model makes one vector of many: the files of sentence-transformers that say it.

Names and fields by https://github.com/UKPLab/sentence-transformers (`models/Transformer.py`, `Pooling.py`,
`Normalize.py`), the types by `gguf.constants.PoolingType`.
"""

from __future__ import annotations

from typing import Any

from gguf.constants import PoolingType

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile

_MODES = {
    PoolingType.MEAN: "pooling_mode_mean_tokens",
    PoolingType.CLS: "pooling_mode_cls_token",
    PoolingType.LAST: "pooling_mode_lasttoken",
}
_NEVER = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)
_PACKAGE = "sentence_transformers.models"


def pooling_files(file: GgufFile, hidden: int, context: int) -> dict[str, Any]:
    """Paths in the model folder → contents, none where the file does not say how vectors are made.

    Vectors are brought to length one, as llama.cpp brings those of every GGUF. Raises UnsupportedModel for
    models that rank instead.
    """
    key = f"{file.architecture}.pooling_type"
    kind = file.integer(key, PoolingType.NONE)
    if kind == PoolingType.NONE:
        return {}
    if kind == PoolingType.RANK:
        raise UnsupportedModel(f"{file.path}: a reranker (`{key}` is {kind}), which cannot be converted")
    if kind not in _MODES:
        raise BadModelFile(f"{file.path}: `{key}` is {kind}")
    return {
        "modules.json": [_module(0, "", "Transformer"), _module(1, "1_Pooling"), _module(2, "2_Normalize")],
        "1_Pooling/config.json": _pooling(_MODES[PoolingType(kind)], hidden),
        "sentence_bert_config.json": {"max_seq_length": context, "do_lower_case": False},
    }


def _module(number: int, path: str, name: str = "") -> dict[str, Any]:
    kind = name or path.partition("_")[2]
    return {"idx": number, "name": str(number), "path": path, "type": f"{_PACKAGE}.{kind}"}


def _pooling(mode: str, hidden: int) -> dict[str, Any]:
    modes = {name: name == mode for name in (*_MODES.values(), *_NEVER)}
    return {"word_embedding_dimension": hidden, **modes, "include_prompt": True}
