from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console
from sovereign_ai.errors import NoSpace, SourceError, UnsupportedModel
from sovereign_ai.store import Store, files
from sovereign_ai.store.material import Material


def brought(store: Store, path: Path, staging: Path, console: Console) -> Material:
    staging.mkdir(exist_ok=True)
    with files.material(store, ModelEntry(name="m", source=f"file:{path}"), staging, console) as material:
        return material


def test_a_gguf_is_used_where_it_is(store: Store, console: Console, tiny_gguf: Path, tmp_path: Path) -> None:
    material = brought(store, tiny_gguf, tmp_path / "s", console)
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert material.gguf == tiny_gguf
    assert material.version == digest[:12]
    assert material.origin.sha256 == digest
    assert not list((tmp_path / "s").iterdir())


def test_a_folder_is_copied_without_its_code(
    store: Store, console: Console, tiny_folder: Path, tmp_path: Path
) -> None:
    material = brought(store, tiny_folder, tmp_path / "s", console)
    assert material.gguf is None
    copied = {path.relative_to(tmp_path / "s" / "model").as_posix() for path in (tmp_path / "s").rglob("*.*")}
    assert copied == {
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "model.safetensors",
        "1_Pooling/config.json",
    }


def test_the_version_of_a_folder_is_that_of_its_content(
    store: Store, console: Console, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    first = brought(store, tiny_folder, tmp_path / "a", console)
    assert brought(store, tmp_path / "copy", tmp_path / "b", console).version == first.version
    (tmp_path / "copy" / "tokenizer.json").write_text('{"other": 1}')
    assert brought(store, tmp_path / "copy", tmp_path / "c", console).version != first.version


def test_links_are_followed(store: Store, console: Console, tiny_folder: Path, tmp_path: Path) -> None:
    """The hub's cache keeps its models as links to blobs."""
    (tmp_path / "links").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "links" / name).symlink_to(tiny_folder / name)
    brought(store, tmp_path / "links", tmp_path / "s", console)
    assert not (tmp_path / "s" / "model" / "model.safetensors").is_symlink()
    (tmp_path / "links" / "tokenizer.json").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match="a link to a file that is not there"):
        brought(store, tmp_path / "links", tmp_path / "t", console)


def test_a_path_that_is_not_there(store: Store, console: Console, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        brought(store, tmp_path / "gone.gguf", tmp_path / "s", console)


def test_a_path_that_is_no_model(store: Store, console: Console, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UnsupportedModel, match="holds no model"):
        brought(store, tmp_path / "notes.txt", tmp_path / "s", console)


def test_a_full_disk_is_noticed_before_copying(console: Console, tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 10)
    with pytest.raises(NoSpace, match="copying"):
        brought(store, tiny_folder, tmp_path / "s", console)
    assert not list((tmp_path / "s").iterdir())


def test_the_stamp_changes_with_the_files(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "copy")
    before = files.stamp(f"file:{tmp_path}/copy")
    assert before == files.stamp(f"file:{tmp_path}/copy")
    (tmp_path / "copy" / "tokenizer.json").write_text('{"longer": true}')
    assert files.stamp(f"file:{tmp_path}/copy") not in (before, None)
    assert files.stamp(f"file:{tmp_path}/gone") is None
