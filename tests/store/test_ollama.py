from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import DigestMismatch, NoPermission, SourceError, UnsupportedModel
from sovereign_ai.store import Options, Store, ensure, ollama

GGUF = "application/vnd.ollama.image.model"


class Ollama:
    """A folder of models as Ollama lays it out. What it does not prove: that a later Ollama still does so."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, data: bytes, name: str = "") -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = self.root / "blobs" / f"sha256-{name or digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": f"sha256:{name or digest}", "size": len(data)}

    def model(self, name: str, *layers: dict[str, Any]) -> Path:
        path = self.root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
        return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ollama:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return Ollama(tmp_path / "ollama")


def entry(source: str) -> ModelEntry:
    return ModelEntry(name="m", source=source)


@pytest.fixture
def tiny(here: Ollama, tiny_gguf: Path) -> Ollama:
    weights = {"mediaType": GGUF, **here.blob(tiny_gguf.read_bytes())}
    license_ = {"mediaType": "application/vnd.ollama.image.license", **here.blob(b"do as you like")}
    here.model("registry.ollama.ai/library/tiny/1b", weights, license_)
    here.model("registry.ollama.ai/someone/tiny/latest", weights)
    return here


def test_a_model_of_ollamas_is_converted(
    store: Store, console: Console, tiny: Ollama, tiny_gguf: Path
) -> None:
    manifest = ensure(store, entry("ollama:tiny:1b"), console, Options(dtype="bfloat16"))
    store.verify(manifest, Silent())
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert (manifest.version, manifest.origin.sha256) == (digest[:12], digest)
    assert manifest.source == "ollama:tiny:1b"
    assert manifest.conversion
    assert manifest.conversion.dtype == "bfloat16"
    assert ensure(store, entry("ollama:library/tiny:1b"), console) == manifest
    assert ensure(store, entry("ollama:registry.ollama.ai/library/tiny:1b"), console) == manifest


def test_a_tag_that_means_something_else_now_is_brought_in_again(
    store: Store, console: Console, tiny: Ollama, tiny_gguf: Path
) -> None:
    first = ensure(store, entry("ollama:tiny:1b"), console)
    newer = tiny_gguf.read_bytes() + b"\0"
    tiny.model("registry.ollama.ai/library/tiny/1b", {"mediaType": GGUF, **tiny.blob(newer)})
    second = ensure(store, entry("ollama:tiny:1b"), console)
    assert second.version != first.version
    assert store.current("m") == second.version


def test_what_is_stored_serves_on_without_ollama(
    store: Store, console: Console, tiny: Ollama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = ensure(store, entry("ollama:tiny:1b"), console)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "gone"))
    assert ensure(store, entry("ollama:tiny:1b"), console) == manifest


def test_a_model_it_does_not_have(store: Store, console: Console, tiny: Ollama) -> None:
    with pytest.raises(SourceError, match=r"Ollama has no model `tiny` here \(looked in") as refused:
        ensure(store, entry("ollama:tiny"), console)
    assert refused.value.hint == "it has someone/tiny:latest, tiny:1b"


def test_no_ollama_at_all(store: Store, console: Console, here: Ollama) -> None:
    with pytest.raises(SourceError) as refused:
        ensure(store, entry("ollama:tiny"), console)
    assert "OLLAMA_MODELS" in refused.value.hint


def test_a_damaged_blob_is_found(store: Store, console: Console, here: Ollama, tiny_gguf: Path) -> None:
    layer = {"mediaType": GGUF, **here.blob(tiny_gguf.read_bytes(), name="a" * 64)}
    here.model("registry.ollama.ai/library/tiny/latest", layer)
    with pytest.raises(DigestMismatch, match="its name says aaaa"):
        ensure(store, entry("ollama:tiny"), console)
    assert store.list() == ()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "lists 0 files of weights"),
        ([{"mediaType": GGUF, "digest": "sha256:" + "b" * 64, "size": 1}] * 2, "lists 2 files of weights"),
        ([{"mediaType": GGUF, "digest": "sha256:../../x", "size": 1}], "is not a digest"),
        (
            [{"mediaType": "application/vnd.ollama.image.adapter", "digest": "x", "size": 1}],
            "an adapter",
        ),
        (
            [{"mediaType": "application/vnd.ollama.image.projector", "digest": "x", "size": 1}],
            "a vision part",
        ),
        ([{"mediaType": GGUF}], "not a manifest of Ollama's"),
    ],
)
def test_what_is_more_than_weights_is_refused(
    store: Store, console: Console, here: Ollama, layers: list[dict[str, Any]], message: str
) -> None:
    here.model("registry.ollama.ai/library/tiny/latest", *layers)
    with pytest.raises(UnsupportedModel, match=message):
        ensure(store, entry("ollama:tiny"), console)


def test_a_missing_blob(store: Store, console: Console, here: Ollama) -> None:
    layer = {"mediaType": GGUF, "digest": "sha256:" + "b" * 64, "size": 1}
    here.model("registry.ollama.ai/library/tiny/latest", layer)
    with pytest.raises(SourceError) as refused:
        ensure(store, entry("ollama:tiny"), console)
    assert refused.value.hint == "run: ollama pull tiny"


def test_a_manifest_that_may_not_be_read(
    store: Store, console: Console, tiny: Ollama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NoPermission):
        ollama.stamp("ollama:tiny:1b")


def test_where_ollama_keeps_models() -> None:
    assert ollama.model_folders({"OLLAMA_MODELS": "/x"}) == [Path("/x")]
    usual = ollama.model_folders({"HOME": "/home/me"})
    assert usual[0] == Path("/home/me/.ollama/models")
    assert Path("/usr/share/ollama/.ollama/models") in usual
