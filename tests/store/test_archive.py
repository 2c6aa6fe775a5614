from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import (
    BadModelFile,
    DigestMismatch,
    NoSpace,
    SourceError,
    SovereignError,
    UnsupportedModel,
    UsageError,
)
from sovereign_ai.store import Manifest, Store, archive, ensure
from sovereign_ai.store.archive import export, import_archive

NOBODY: frozenset[str] = frozenset()


@pytest.fixture
def model(store: Store, console: Console, tiny_folder: Path) -> Manifest:
    return ensure(store, ModelEntry(name="m", source=f"file:{tiny_folder}"), console)


@pytest.fixture
def tar(store: Store, console: Console, model: Manifest, tmp_path: Path) -> Path:
    export(store, model, tmp_path / "m.tar", console)
    return tmp_path / "m.tar"


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """The store of another machine."""
    return Store(tmp_path / "other" / "models", tmp_path / "other" / "cache")


def visible(store: Store) -> list[str]:
    return sorted(path.name for path in store.models.iterdir() if path.name != ".lock")


def test_a_model_goes_to_another_machine_unchanged(
    store: Store, console: Console, model: Manifest, tar: Path, other: Store
) -> None:
    assert import_archive(other, tar, console, code=NOBODY) == model
    other.verify(model, Silent())
    assert other.current("m") == model.version
    assert other.find("m", model.source) == model
    assert import_archive(other, tar, console, code=NOBODY) == model


def test_the_same_model_makes_the_same_bytes(
    store: Store, console: Console, model: Manifest, tar: Path, tmp_path: Path
) -> None:
    export(store, model, tmp_path / "again.tar", console)
    assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes()


def test_any_tar_program_can_read_it(model: Manifest, tar: Path) -> None:
    with tarfile.open(tar) as opened:
        names = opened.getnames()
        assert names == ["manifest.json", *(file.path for file in model.files)]
        config = opened.extractfile("config.json")
        assert config
        assert json.load(config)["architectures"] == ["BertModel"]


def test_a_file_that_is_there_is_not_replaced_unasked(
    store: Store, console: Console, model: Manifest, tar: Path
) -> None:
    before = tar.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        export(store, model, tar, console)
    tar.write_bytes(b"old")
    export(store, model, tar, console, force=True)
    assert tar.read_bytes() == before


def test_a_folder_that_is_not_there(store: Store, console: Console, model: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        export(store, model, tmp_path / "none" / "m.tar", console)


def test_a_damaged_model_is_not_exported(
    store: Store, console: Console, model: Manifest, tmp_path: Path
) -> None:
    path = store.folder(model) / "config.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"BertModel", b"BertM0del"))
    with pytest.raises(DigestMismatch, match=r"config\.json: SHA-256 is"):
        export(store, model, tmp_path / "m.tar", console)
    assert not list(tmp_path.glob("*.tar*"))
    assert not list(tmp_path.glob(".*partial"))


def test_names_that_a_plain_header_cannot_hold(
    store: Store, console: Console, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "long"
    shutil.copytree(tiny_folder, folder)
    (folder / ("x" * 120 + ".json")).write_text("{}")
    made = ensure(store, ModelEntry(name="m", source=f"file:{folder}"), console)
    with pytest.raises(UnsupportedModel, match="longer than the 100 bytes"):
        export(store, made, tmp_path / "m.tar", console)


def test_no_space(store: Store, console: Console, model: Manifest, tmp_path: Path, tar: Path) -> None:
    full = Store(store.models, tmp_path / "cache", free_bytes=lambda folder: 10)
    with pytest.raises(NoSpace, match="exporting m needs"):
        export(full, model, tmp_path / "full.tar", console)
    empty = Store(tmp_path / "empty" / "models", tmp_path / "cache", free_bytes=lambda folder: 10)
    with pytest.raises(NoSpace, match="importing"):
        import_archive(empty, tar, console, code=NOBODY)
    assert visible(empty) == []


def test_no_file(other: Store, console: Console, tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(SourceError, match="no such file"):
            import_archive(other, path, console, code=NOBODY)


Change = Callable[[dict[str, Any], dict[str, bytes]], None]


def remade(tar: Path, change: Change, *, infos: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    """The archive with its manifest and files changed."""
    with tarfile.open(tar) as old:
        parts = {name: old.extractfile(name).read() for name in old.getnames()}  # type: ignore[union-attr]
    manifest = json.loads(parts.pop("manifest.json"))
    change(manifest, parts)
    path = tar.with_name("changed.tar")
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as new:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **parts}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if infos:
                infos(info)
            new.addfile(info, io.BytesIO(data))
    return path


def listed(manifest: dict[str, Any], path: str) -> dict[str, Any]:
    return next(file for file in manifest["files"] if file["path"] == path)


def rename(old: str, new: str) -> Change:
    def change(manifest: dict[str, Any], parts: dict[str, bytes]) -> None:
        listed(manifest, old)["path"] = new
        parts[new] = parts.pop(old)

    return change


def setting(*keys: Any) -> Change:
    def change(manifest: dict[str, Any], parts: dict[str, bytes]) -> None:
        *steps, last, value = keys
        place = manifest
        for step in steps:
            place = place[step]
        place[last] = value

    return change


def dropping(name: str) -> Change:
    def change(manifest: dict[str, Any], parts: dict[str, bytes]) -> None:
        del parts[name]

    return change


def adding(name: str) -> Change:
    return lambda manifest, parts: parts.update({name: b"{}"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("tokenizer.json", "../../tokenizer.json"), "leads outside"),
        (rename("tokenizer.json", "/tmp/tokenizer.json"), "leads outside"),
        (rename("tokenizer.json", "a//tokenizer.json"), "leads outside"),
        (rename("tokenizer.json", ".hidden/tokenizer.json"), "leads outside"),
        (rename("tokenizer.json", "weights.bin"), "is no file of a model"),
        (rename("tokenizer.json", "x/manifest.json"), "is no file of a model"),
        (setting("model", "name", "../../m"), "cannot be a model name"),
        (setting("model", "version", "../m"), "cannot be a version"),
        (setting("files", []), "it lists 0 files"),
        (setting("files", 0, "bytes", -1), "has -1 bytes"),
        (setting("files", 0, "bytes", 1), "is not what its manifest lists"),
        (setting("files", 0, "sha256", "0" * 64), "its manifest says 0000"),
        (setting("model", "weights_bytes", 1), "describes another model"),
        (setting("model", "shape", "layers", 99), "describes another model"),
        (setting("model", "format", "fp8"), "describes another model"),
        (setting("extra", 1), "not a readable manifest"),
        (dropping("config.json"), r"`config\.json` is missing"),
        (adding("more.json"), r"`more\.json` of 2 bytes is not what"),
        (lambda manifest, parts: manifest["files"].append(manifest["files"][0]), "lists a file twice"),
    ],
)
def test_an_archive_that_lies_is_refused(
    tar: Path, other: Store, console: Console, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises((BadModelFile, DigestMismatch), match=message):
        import_archive(other, remade(tar, change), console, code=NOBODY)
    assert not other.models.exists() or visible(other) == []
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tar: Path, other: Store, console: Console, kind: bytes) -> None:
    def turn(info: tarfile.TarInfo) -> None:
        if info.name == "config.json":
            info.type, info.linkname = kind, "/etc/passwd"

    path = remade(tar, lambda manifest, parts: None, infos=turn)
    with pytest.raises(BadModelFile, match="is not a plain file"):
        import_archive(other, path, console, code=NOBODY)
    assert visible(other) == []


def test_code_needs_leave(
    store: Store, console: Console, tiny_folder: Path, tmp_path: Path, other: Store
) -> None:
    entry = ModelEntry(name="m", source=f"file:{tiny_folder}", remote_code=True)
    export(store, ensure(store, entry, console), tmp_path / "code.tar", console)
    with pytest.raises(UnsupportedModel, match="never run unasked"):
        import_archive(other, tmp_path / "code.tar", console, code=NOBODY)
    assert import_archive(other, tmp_path / "code.tar", console, code=frozenset({"m"})).remote_code


def test_a_cut_archive_is_refused_wherever_it_ends(tar: Path, other: Store, console: Console) -> None:
    data = tar.read_bytes()
    end = len(data) - 1024  # the two empty blocks at the end say nothing
    for length in range(0, end, 97):
        tar.write_bytes(data[:length])
        with pytest.raises(BadModelFile):
            import_archive(other, tar, console, code=NOBODY)
    assert not other.models.exists() or visible(other) == []


def damaged(data: bytes, dice: random.Random, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        changed[dice.randrange(within if dice.random() < 0.5 else len(data))] = dice.randrange(256)
    return bytes(changed)


def test_damaged_archives_crash_nothing(tar: Path, other: Store, console: Console, tmp_path: Path) -> None:
    """A few bytes changed: refused in words, or taken whole where the byte means nothing."""
    data, dice = tar.read_bytes(), random.Random(5)
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(other.models.parent)}
    for _ in range(150):
        tar.write_bytes(damaged(data, dice, 6000))
        try:
            made = import_archive(other, tar, Console(json=True), code=NOBODY)
        except SovereignError:
            continue
        other.verify(made, Silent())
    now = {path for path in tmp_path.rglob("*") if not path.is_relative_to(other.models.parent)}
    assert now == outside
    assert not [path for path in visible(other) if path.startswith(".")]


@pytest.mark.engine
def test_damaged_manifests_and_headers_crash_nothing(tar: Path, tmp_path: Path) -> None:
    """The reader alone, 3,000 times: it ends in a BadModelFile or in exactly the files that were promised."""
    data, dice = tar.read_bytes(), random.Random(6)
    for number in range(3000):
        source, folder = io.BytesIO(damaged(data, dice, 6000)), tmp_path / "out" / str(number % 7)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            manifest = archive._manifest(tar, source)
            archive._extract(tar, source, manifest, folder, Silent())
        except (BadModelFile, DigestMismatch):
            continue
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert names == {file.path for file in manifest.files}
    assert {path.name for path in tmp_path.iterdir()} == {"m.tar", "out", "storage"}


def test_a_version_that_is_there_with_other_content_is_never_replaced(
    store: Store, console: Console, tar: Path
) -> None:
    path = remade(tar, setting("origin", "sha256", "f" * 64))
    with pytest.raises(SovereignError, match="already holds m"):
        import_archive(store, path, console, code=NOBODY)
    assert len(store.list()) == 1
    assert msgspec.json.encode(store.list()[0])
