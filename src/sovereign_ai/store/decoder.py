"""What the language models of all families share: their sizes, where each tensor goes, the common config.

Keys of GGUF by https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and `gguf.constants.Keys`, names of
tensors by `gguf.constants.TENSOR_NAMES`, names of the targets by the modelling files in
https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.gguf_file import GgufFile, TensorInfo

Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
ELSEWHERE = "look for the same model as SafeTensors"
"""What to do about a file that cannot be converted."""


class Sizes(NamedTuple):
    """The sizes that names and shapes follow from. All in elements, `context` in tokens."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int

    @property
    def queries(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim


class Place(NamedTuple):
    """Where a tensor goes: its name in GGUF, its new name, its row-major shape.

    `change` turns blocks of float32 rows into others of the same shape; blocks are of whole `unit`s of rows.
    """

    old: str
    new: str
    shape: tuple[int, ...]
    unit: int = 1
    change: Change | None = None


class Target(NamedTuple):
    """One tensor to write, and where its data comes from. `unit` and `change` as in Place."""

    name: str
    shape: tuple[int, ...]
    info: TensorInfo
    unit: int
    change: Change | None


class Blueprint(NamedTuple):
    """What a GGUF becomes: its tensors, config.json without the type of the weights, and other JSON files
    by their path in the folder."""

    targets: tuple[Target, ...]
    config: dict[str, Any]
    files: dict[str, Any]
    vocabulary: int
    context: int


def read_sizes(file: GgufFile, *, head_dim: int | None = None) -> Sizes:
    """The sizes of a decoder; `head_dim` is what its family has where the file does not say it.

    Raises BadModelFile for missing or impossible ones, UnsupportedModel for mixtures of experts and for heads
    whose keys and values differ in size.
    """
    prefix = file.architecture
    if file.integer(f"{prefix}.expert_count", 0):
        raise UnsupportedModel(
            f"{file.path}: a mixture of experts (`{prefix}.expert_count`), which cannot be converted yet",
            ELSEWHERE,
        )
    hidden = file.integer(f"{prefix}.embedding_length")
    heads = positive(file, f"{prefix}.attention.head_count", file.integer(f"{prefix}.attention.head_count"))
    usual = hidden // heads if head_dim is None else head_dim
    sizes = Sizes(
        layers=file.integer(f"{prefix}.block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=file.integer(f"{prefix}.attention.head_count_kv", heads),
        head_dim=file.integer(f"{prefix}.attention.key_length", usual),
        intermediate=file.integer(f"{prefix}.feed_forward_length"),
        vocabulary=embedding(file).shape[0],
        context=file.integer(f"{prefix}.context_length"),
    )
    _check(file, sizes)
    return sizes


def positive(file: GgufFile, key: str, value: int) -> int:
    if value <= 0:
        raise BadModelFile(f"{file.path}: `{key}` is {value}")
    return value


def embedding(file: GgufFile) -> TensorInfo:
    """The token embeddings. Raises BadModelFile where there are none."""
    found = file.tensor("token_embd.weight")
    if found is None:
        raise BadModelFile(f"{file.path}: tensor `token_embd.weight` is missing")
    return found


def _check(file: GgufFile, sizes: Sizes) -> None:
    for name, value in sizes._asdict().items():
        positive(file, name, value)
    check_layers(file, sizes.layers)
    if sizes.heads % sizes.kv_heads or sizes.head_dim % 2:
        raise BadModelFile(
            f"{file.path}: {sizes.heads} heads of {sizes.head_dim} do not divide by {sizes.kv_heads} KV heads"
        )
    key = f"{file.architecture}.attention.value_length"
    if file.integer(key, sizes.head_dim) != sizes.head_dim:
        raise UnsupportedModel(f"{file.path}: `{key}` differs from the head size {sizes.head_dim}", ELSEWHERE)


def check_layers(file: GgufFile, layers: int) -> None:
    """Names are made for every layer: a damaged number must not ask for millions."""
    if layers > len(file.tensors):
        raise BadModelFile(f"{file.path}: {layers} layers, but only {len(file.tensors)} tensors")


def rotated(file: GgufFile, sizes: Sizes) -> int:
    """How many numbers of each head RoPE turns: all, where the file does not say it."""
    key = f"{file.architecture}.rope.dimension_count"
    count = file.integer(key, sizes.head_dim)
    if not 0 < count <= sizes.head_dim or count % 2:
        raise BadModelFile(f"{file.path}: `{key}` is {count} of {sizes.head_dim}")
    return count


def whole_heads_rotated(file: GgufFile, sizes: Sizes) -> None:
    """Raises UnsupportedModel for a file that rotates a part of each head, which its family does not."""
    if rotated(file, sizes) != sizes.head_dim:
        key = f"{file.architecture}.rope.dimension_count"
        raise UnsupportedModel(f"{file.path}: `{key}` differs from the head size {sizes.head_dim}", ELSEWHERE)


def tied(file: GgufFile) -> bool:
    """Whether the head is the embedding."""
    return file.tensor("output.weight") is None


def model_places(file: GgufFile, sizes: Sizes, layer: Iterable[Place], norm: Change | None) -> list[Place]:
    """Embedding, the same `layer` over and over, last norm (changed by `norm`), and the head if there is one.

    Names in `layer` are relative to a layer.
    """
    table = (sizes.vocabulary, sizes.hidden)
    places = [Place("token_embd.weight", "model.embed_tokens.weight", table)]
    layer = tuple(layer)
    for number in range(sizes.layers):
        places += [
            place._replace(old=f"blk.{number}.{place.old}", new=f"model.layers.{number}.{place.new}")
            for place in layer
        ]
    places.append(Place("output_norm.weight", "model.norm.weight", (sizes.hidden,), change=norm))
    if not tied(file):
        places.append(Place("output.weight", "lm_head.weight", table))
    return places


def find_targets(
    file: GgufFile, model: str, places: Iterable[Place], ignored: frozenset[str] = frozenset()
) -> tuple[Target, ...]:
    """Every tensor to write, in the order of `places`. `ignored` ones are not weights but become config.

    Raises BadModelFile for one that is missing or has another shape, UnsupportedModel for one that `model`
    has no place for.
    """
    present = {tensor.name: tensor for tensor in file.tensors if tensor.name not in ignored}
    found = []
    for place in places:
        info = present.pop(place.old, None)
        if info is None:
            raise BadModelFile(f"{file.path}: tensor `{place.old}` is missing")
        if _without_ones(info.shape) != _without_ones(place.shape):
            raise BadModelFile(
                f"{file.path}: tensor `{place.old}` has shape {list(info.shape)}, "
                f"expected {list(place.shape)}"
            )
        found.append(Target(place.new, place.shape, info, place.unit, place.change))
    for name in present:
        raise UnsupportedModel(f"{file.path}: tensor `{name}` has no place in {model}", ELSEWHERE)
    return tuple(found)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tools that rewrite a GGUF drop leading dimensions of one."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def base_config(file: GgufFile, sizes: Sizes, architecture: str, model_type: str) -> dict[str, Any]:
    """The fields of config.json that every family has."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": file.number(f"{file.architecture}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": tied(file),
        "attention_bias": False,
    }
