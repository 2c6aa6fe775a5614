from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_ai.console import Console
from sovereign_ai.store import Store
from tests.store.tiny import write_folder, write_gguf

FakePip = Callable[[str], None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage" / "models", tmp_path / "cache")


@pytest.fixture
def console() -> Console:
    return Console(json=True)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama; not to be changed."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedding model; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("folder") / "minilm")


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """Puts a script, which gets pip's arguments, in the place of `python -m pip`."""

    def place(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport os, pathlib, sys, time\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return place
