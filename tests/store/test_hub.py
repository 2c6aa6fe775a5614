from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import DigestMismatch, NoSpace, SourceError, StoreError, UnsupportedModel
from sovereign_ai.store import Manifest, Options, Store, ensure, hub
from tests.store import hub_server
from tests.store.hub_server import Fault, Hub, serving
from tests.store.tiny import folder_files, write_gguf

REPO = "tiny/MiniLM"
LATEST = Options(latest=True)


@pytest.fixture
def server(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one embedding model; no waiting between tries."""
    made = Hub()
    made.models[REPO] = {
        name.removeprefix("x/"): data for name, data in folder_files(tiny_folder, "x").items()
    } | {".gitattributes": b"* lfs", "README.md": b"# MiniLM"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub, "CHUNK_BYTES", 100)
    with serving(made):
        monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
        yield made


def entry(source: str = f"hf:{REPO}", **changes: Any) -> ModelEntry:
    return ModelEntry(name="minilm", source=source, **changes)


def weights(server: Hub) -> bytes:
    return server.models[REPO]["model.safetensors"]


def waiting(store: Store) -> list[str]:
    return sorted(path.name for path in (store.downloads / "hub").iterdir())


def check(store: Store, manifest: Manifest, server: Hub) -> None:
    """What is stored is what the hub has."""
    store.verify(manifest, Silent())
    for file in manifest.files:
        assert (store.folder(manifest) / file.path).read_bytes() == server.models[REPO][file.path]


def test_a_model_is_pinned_downloaded_and_described(store: Store, console: Console, server: Hub) -> None:
    manifest = ensure(store, entry(), console)
    check(store, manifest, server)
    assert manifest.version == "a" * 12
    assert manifest.source == f"hf:{REPO}"
    assert manifest.origin.revision == "a" * 40
    assert manifest.license == "apache-2.0"
    assert manifest.task == "embed"
    names = {file.path for file in manifest.files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"pytorch_model.bin", "run_me.py", "README.md", ".gitattributes"} & names
    assert not server.asked("pytorch_model.bin")
    assert waiting(store) == []


def test_nothing_is_asked_for_a_model_that_is_here(store: Store, console: Console, server: Hub) -> None:
    manifest = ensure(store, entry(), console)
    server.requests.clear()
    assert ensure(store, entry(), console) == manifest
    assert ensure(store, entry(f"hf:{REPO}@{'a' * 40}"), console) == manifest
    assert ensure(store, entry(f"hf:{REPO}@{'a' * 8}"), console) == manifest
    assert server.requests == []


def test_a_newer_commit_becomes_a_version_and_shares_what_is_the_same(
    store: Store, console: Console, server: Hub
) -> None:
    first = ensure(store, entry(), console)
    server.revisions["main"] = "b" * 40
    server.models[REPO]["tokenizer.json"] = b'{"newer": true}'
    assert ensure(store, entry(), console) == first
    second = ensure(store, entry(), console, LATEST)
    assert (second.version, store.current("minilm")) == ("b" * 12, "b" * 12)
    assert ensure(store, entry(), console, LATEST) == second
    check(store, second, server)
    store.verify(first, Silent())
    inodes = [(store.folder(one) / "model.safetensors").stat().st_ino for one in (first, second)]
    assert inodes[0] == inodes[1]


def test_a_revision_is_kept_to(store: Store, console: Console, server: Hub) -> None:
    server.revisions["v1"] = "c" * 40
    manifest = ensure(store, entry(f"hf:{REPO}@v1"), console)
    assert manifest.origin.revision == "c" * 40
    assert ensure(store, entry(f"hf:{REPO}@v1"), console) == manifest
    with pytest.raises(SourceError, match="has no revision `v2`"):
        ensure(store, entry(f"hf:{REPO}@v2"), console)


def test_the_token_goes_to_the_hub_and_no_further(
    store: Store, console: Console, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    with pytest.raises(SourceError, match=f"no model `{REPO}`, or not for you") as refused:
        ensure(store, entry(), console)
    assert "HF_TOKEN" in refused.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check(store, ensure(store, entry(), console), server)
    elsewhere = [headers for _, path, headers in server.requests if path.startswith("/storage/")]
    assert elsewhere
    assert not [headers for headers in elsewhere if "authorization" in headers]


def test_offline_asks_nobody(
    store: Store, console: Console, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        ensure(store, entry(), console)
    assert server.requests == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(reset_after=100)],
        [Fault(reset_after=0)] * 3,
        [Fault(status=429, headers={"Retry-After": "0"})] * 2,
        [Fault(status=503)] * 3,
        [Fault(reset_after=200), Fault(status=500), Fault(reset_after=50)],
        [Fault(), Fault(close_after=300), Fault(), Fault(ignore_range=True)],
    ],
)
def test_a_bad_network_is_outlived(store: Store, console: Console, server: Hub, faults: list[Fault]) -> None:
    server.faults["model.safetensors"] = list(faults)
    check(store, ensure(store, entry(), console), server)


def test_a_reset_goes_on_where_it_ended(store: Store, console: Console, server: Hub) -> None:
    # The redirect uses up the first; the second is for the bytes.
    server.faults["model.safetensors"] = [Fault(), Fault(close_after=1000)]
    check(store, ensure(store, entry(), console), server)
    ranges = [headers.get("range") for headers in server.asked("model.safetensors")]
    assert "bytes=1000-" in ranges  # in chunks of 100 bytes


def test_it_gives_up_in_the_end_and_keeps_what_arrived(store: Store, console: Console, server: Hub) -> None:
    server.faults["model.safetensors"] = [Fault(), Fault(close_after=700)] + [Fault(status=503)] * 100
    with pytest.raises(SourceError) as failed:
        ensure(store, entry(), console)
    assert "what has arrived is kept" in failed.value.hint
    assert store.list() == ()
    digest = hashlib.sha256(weights(server)).hexdigest()
    assert f"{digest}.partial" in waiting(store)
    server.faults.clear()
    server.requests.clear()
    check(store, ensure(store, entry(), console), server)
    assert [headers.get("range") for headers in server.asked("model.safetensors")] == ["bytes=700-"] * 2
    assert not server.asked("config.json")


def test_a_full_partial_file_of_the_wrong_content_is_thrown_away(
    store: Store, console: Console, server: Hub
) -> None:
    digest = hashlib.sha256(weights(server)).hexdigest()
    (store.downloads / "hub").mkdir(parents=True)
    (store.downloads / "hub" / f"{digest}.partial").write_bytes(b"x" * len(weights(server)))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors: its digest is"):
        ensure(store, entry(), console)
    check(store, ensure(store, entry(), console), server)


def test_a_partial_file_that_is_too_long_is_thrown_away(store: Store, console: Console, server: Hub) -> None:
    digest = hashlib.sha256(weights(server)).hexdigest()
    (store.downloads / "hub").mkdir(parents=True)
    (store.downloads / "hub" / f"{digest}.partial").write_bytes(b"x" * (len(weights(server)) + 1))
    check(store, ensure(store, entry(), console), server)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_found_and_not_kept(store: Store, console: Console, server: Hub, name: str) -> None:
    server.faults[name] = [Fault(), Fault(corrupt=True)] if "safe" in name else [Fault(corrupt=True)]
    with pytest.raises(DigestMismatch, match=name):
        ensure(store, entry(), console)
    assert store.list() == ()
    check(store, ensure(store, entry(), console), server)


def test_a_hub_that_is_not_there(
    store: Store, console: Console, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot reach http://127\.0\.0\.1:9"):
        ensure(store, entry(), console)


def test_a_server_that_is_no_hub(
    store: Store, console: Console, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "info", lambda *_: {"hello": "world"})
    with pytest.raises(StoreError):
        ensure(store, entry(), console)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "lets only named people in"),
        (403, "", "refuses tiny/MiniLM \\(403\\)"),
        (404, "RepoNotFound", "or not for you"),
        (418, "", "answers 418"),
    ],
)
def test_refusals_are_told_apart(
    store: Store, console: Console, server: Hub, status: int, code: str, message: str
) -> None:
    server.faults["main"] = server.faults["MiniLM"] = [Fault(status=status, headers={"X-Error-Code": code})]
    with pytest.raises(SourceError, match=message):
        ensure(store, entry(), console)


def test_names_that_lead_elsewhere_are_not_taken(
    store: Store, console: Console, server: Hub, tmp_path: Path
) -> None:
    server.models[REPO] |= {"../../escaped.json": b"{}", "/tmp/absolute.json": b"{}", "a\\b.json": b"{}"}
    manifest = ensure(store, entry(), console)
    assert not [file.path for file in manifest.files if "escaped" in file.path or "absolute" in file.path]
    assert not list(tmp_path.rglob("escaped*"))


def test_digests_that_are_none_do_not_become_names(
    store: Store, console: Console, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Hub._sibling

    def evil(self: Hub, path: str, data: bytes) -> dict[str, Any]:
        return sound(self, path, data) | ({"blobId": "../../../x"} if path == "tokenizer.json" else {})

    monkeypatch.setattr(Hub, "_sibling", evil)
    manifest = ensure(store, entry(), console)
    assert "tokenizer.json" not in {file.path for file in manifest.files}


def test_pickles_are_refused_with_the_way_out(store: Store, console: Console, server: Hub) -> None:
    del server.models[REPO]["model.safetensors"]
    with pytest.raises(UnsupportedModel, match="only as pickles") as refused:
        ensure(store, entry(), console)
    assert "SafeTensors or GGUF" in refused.value.hint


def test_code_of_its_own_needs_leave(store: Store, console: Console, server: Hub) -> None:
    files = server.models[REPO]
    files["config.json"] = files["config.json"].replace(b"{", b'{"auto_map": {"AutoModel": "run_me.X"}, ', 1)
    with pytest.raises(UnsupportedModel, match="never run unasked") as refused:
        ensure(store, entry(), console)
    assert "remote_code: true" in refused.value.hint
    manifest = ensure(store, entry(remote_code=True), console)
    assert manifest.remote_code
    assert "run_me.py" in {file.path for file in manifest.files}


def test_a_gguf_on_a_hub_is_converted(store: Store, console: Console, server: Hub, tmp_path: Path) -> None:
    server.models[REPO] = {"tiny.gguf": write_gguf(tmp_path / "t.gguf").read_bytes(), "README.md": b""}
    manifest = ensure(store, entry(), console, Options(dtype="bfloat16"))
    assert manifest.conversion
    assert (manifest.conversion.file, manifest.conversion.dtype) == ("tiny.gguf", "bfloat16")


def test_one_gguf_of_a_collection(store: Store, console: Console, server: Hub, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "t.gguf").read_bytes()
    server.models[REPO] = {"m-Q4.gguf": b"never taken", "m-Q8.gguf": data}
    with pytest.raises(UnsupportedModel, match="holds 2 GGUF files"):
        ensure(store, entry(), console)
    source = f"hf:{REPO}/m-Q8.gguf"
    manifest = ensure(store, entry(source), console)
    assert manifest.source == source
    assert not server.asked("m-Q4.gguf")
    assert ensure(store, entry(f"{source}@{'a' * 40}"), console) == manifest


def test_no_space_is_told_before_the_first_byte(console: Console, server: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 1000)
    with pytest.raises(NoSpace, match="downloading hf:tiny/MiniLM needs"):
        ensure(store, entry(), console)
    assert not server.asked("config.json")


PULL = """
import sys
from pathlib import Path
from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console
from sovereign_ai.store import Store, ensure
store = Store(Path(sys.argv[1]) / "storage" / "models", Path(sys.argv[1]) / "cache")
ensure(store, ModelEntry(name="minilm", source="hf:tiny/MiniLM"), Console())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on(
    store: Store,
    console: Console,
    server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """The server holds the file back in the middle; the reader is killed there."""
    files = server.models[REPO]
    random = np.random.default_rng(1)
    files["model.safetensors"] = save({"embeddings.weight": random.random((10_000, 100), np.float32)})
    reached, go_on = threading.Event(), threading.Event()

    data = weights(server)
    half = len(data) // 2

    def file(handler: Any, content: bytes, fault: Fault) -> None:
        handler._begin(200, len(content), {})
        handler.wfile.write(content[:half])
        handler.wfile.flush()
        reached.set()
        go_on.wait(30)
        handler.close_connection = True

    sound = hub_server._Handler._file

    def slow(handler: Any, content: bytes, fault: Fault) -> None:
        (file if content == data else sound)(handler, content, fault)

    monkeypatch.setattr(hub_server._Handler, "_file", slow)
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", PULL, str(tmp_path)], stderr=subprocess.PIPE, env={**os.environ}
        )
        assert reached.wait(30)
        partial = store.downloads / "hub" / f"{hashlib.sha256(data).hexdigest()}.partial"
        deadline = time.monotonic() + 10
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        child.send_signal(number)
        child.communicate(timeout=30)
    finally:
        go_on.set()
        monkeypatch.setattr(hub_server._Handler, "_file", sound)
    assert child.returncode != 0
    assert store.list() == ()
    server.requests.clear()
    check(store, ensure(store, entry(), console), server)
    ranges = [headers.get("range", "") for headers in server.asked("model.safetensors")]
    assert any(one.startswith("bytes=") for one in ranges)
    assert [path.name for path in store.models.iterdir() if path.name != ".lock"] == ["minilm"]


def test_the_library_is_told_who_asks_and_nothing_more(store: Store, console: Console, server: Hub) -> None:
    ensure(store, entry(), console)
    agents = {headers["user-agent"] for headers in server.asked("config.json")}
    assert agents
    assert all("sovereign-ai/" in agent for agent in agents)
