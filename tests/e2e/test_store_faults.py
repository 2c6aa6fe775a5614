"""What a kill, a full disk and two writers leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import save_file

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import NoSpace
from sovereign_ai.store import Store, ensure
from sovereign_ai.store.archive import export, import_archive
from tests.e2e import killing
from tests.store.hub_server import Hub, serving
from tests.store.tiny import folder_files, write_folder, write_gguf

pytestmark = pytest.mark.engine

LEAST_STEPS = {"pull": 30, "hub": 40, "convert": 30, "import": 25, "remove": 20, "export": 5}
"""Fewer would mean that the steps are not seen."""


@pytest.mark.parametrize("action", LEAST_STEPS)
def test_sigkill_at_every_step(action: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "minilm")
    write_gguf(tmp_path / "tiny.gguf")
    elsewhere = Store(tmp_path / "elsewhere" / "models", tmp_path / "elsewhere" / "cache")
    made = ensure(
        elsewhere, ModelEntry(name="imported", source=f"file:{tmp_path / 'minilm'}"), Console(json=True)
    )
    export(elsewhere, made, tmp_path / "m.tar", Console(json=True))
    hub = Hub()
    files = folder_files(tmp_path / "minilm", "x").items()
    hub.models["tiny/MiniLM"] = {name.removeprefix("x/"): data for name, data in files}
    reachable = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    with serving(hub):
        done = subprocess.run(
            [sys.executable, killing.__file__, str(tmp_path), action],
            env={**os.environ, **reachable, "HF_ENDPOINT": hub.endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= LEAST_STEPS[action]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["folder", "gguf", "tar"])
def test_a_disk_that_fills_up_in_the_middle(small_disk: Path, tmp_path: Path, kind: str) -> None:
    """The space was there when it was asked for; somebody else took it."""
    store = Store(small_disk / "models", tmp_path / "cache", free_bytes=lambda folder: 1 << 40)
    console = Console(json=True)
    kept = ensure(store, ModelEntry(name="kept", source=f"file:{write_folder(tmp_path / 'minilm')}"), console)
    source = tmp_path / "large"
    if kind == "gguf":
        source = write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q4_0)
        (small_disk / "others").write_bytes(b"x" * ((1 << 20) * 9 // 10))
    else:
        write_folder(source)
        save_file({"embeddings.weight": np.ones((100_000, 4), np.float32)}, source / "model.safetensors")
    with pytest.raises(NoSpace, match="no space left"):
        if kind == "tar":
            elsewhere = Store(tmp_path / "elsewhere", tmp_path / "cache")
            made = ensure(elsewhere, ModelEntry(name="m", source=f"file:{source}"), console)
            export(elsewhere, made, tmp_path / "m.tar", console)
            import_archive(store, tmp_path / "m.tar", console, code=frozenset())
        else:
            ensure(store, ModelEntry(name="m", source=f"file:{source}"), console)
    assert store.list() == (kept,)
    store.verify(kept, Silent())
    assert sorted(path.name for path in store.models.iterdir()) == [".lock", "kept"]
