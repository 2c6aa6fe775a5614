from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovereign_ai.console import Silent
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store import wheel
from tests.store.tiny import folder_files, write_wheel


@pytest.fixture
def folder_wheel(tmp_path: Path, tiny_folder: Path) -> Path:
    return write_wheel(
        tmp_path / "wheels", "tiny-model", "1.0", folder_files(tiny_folder, "tiny_model/model")
    )


def test_a_model_folder_comes_out_whole(folder_wheel: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with wheel.opened(folder_wheel) as archive:
        contents = archive.choose()
        archive.extract(contents, tmp_path / "out", Silent())
        assert archive.size(contents) == sum(
            path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()
        )
        assert archive.license() == "MIT"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tiny_folder / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
    assert not list((tmp_path / "out").rglob("*.py"))
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_a_license_expression_wins(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(
            "a-1.dist-info/METADATA", "Name: a\nLicense-Expression: Apache-2.0\nLicense: long\n  text\n"
        )
    with wheel.opened(tmp_path / "a.whl") as found:
        assert found.license() == "Apache-2.0"


def test_no_license_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a/", "")
        archive.writestr("a/b", "x")
        archive.writestr("a-1.dist-info/METADATA", "Name: a\n")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("x", "")
    for name in ("a.whl", "b.whl"):
        with wheel.opened(tmp_path / name) as found:
            assert found.license() is None


def test_a_package_of_pickles_is_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "a", "1", {"a/config.json": b"{}", "a/pytorch_model.bin": b"x"})
    with (
        pytest.raises(UnsupportedModel, match="loading a pickle can run any program"),
        wheel.opened(path) as archive,
    ):
        archive.choose()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("../evil", "leads outside"),
        ("a/../../evil", "leads outside"),
        ("/etc/passwd", "leads outside"),
        ("a//b", "leads outside"),
        ("./a", "leads outside"),
        ("a\\..\\b", "no portable path"),
        ("c:/a", "no portable path"),
        (link("a/link"), "neither a file nor a folder"),
    ],
)
def test_ways_out_of_the_folder_are_refused(
    tmp_path: Path, entry: str | zipfile.ZipInfo, problem: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(entry, "/etc")
    with pytest.raises(BadModelFile, match=f"refused: .* is .*{problem}"), wheel.opened(tmp_path / "a.whl"):
        pass


def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("config.jsonX.gguf", "x")
    (tmp_path / "a.whl").write_bytes((tmp_path / "a.whl").read_bytes().replace(b"jsonX", b"json\0"))
    with pytest.raises(BadModelFile, match="no portable path"), wheel.opened(tmp_path / "a.whl"):
        pass


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a/b", "x")
        archive.writestr("a/c", "x")
    (tmp_path / "a.whl").write_bytes((tmp_path / "a.whl").read_bytes().replace(b"a/c", b"a/b"))
    with pytest.raises(BadModelFile, match="a second entry of that name"), wheel.opened(tmp_path / "a.whl"):
        pass


def test_other_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", "x")
    with pytest.raises(BadModelFile, match="compressed in a way"), wheel.opened(tmp_path / "a.whl"):
        pass


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a", "x")
    raw = bytearray((tmp_path / "a.whl").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.whl").write_bytes(raw)
    with pytest.raises(BadModelFile, match="encrypted"), wheel.opened(tmp_path / "a.whl"):
        pass


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_wheel: Path) -> None:
    monkeypatch.setattr(wheel, "MAX_ENTRIES", 3)
    with pytest.raises(BadModelFile, match="entries, more than 3"), wheel.opened(folder_wheel):
        pass


def test_an_entry_that_declares_less_than_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.gguf", bytes(1000))
    raw = (tmp_path / "a.whl").read_bytes().replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "a.whl").write_bytes(raw)
    with pytest.raises(BadModelFile), wheel.opened(tmp_path / "a.whl") as archive2:
        archive2.extract(archive2.choose(), tmp_path / "out", Silent())
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 10


def test_an_entry_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.gguf", bytes(1000))
    raw = (
        (tmp_path / "a.whl").read_bytes().replace((1000).to_bytes(4, "little"), (5000).to_bytes(4, "little"))
    )
    (tmp_path / "a.whl").write_bytes(raw)
    with (
        pytest.raises(
            BadModelFile, match=r"not 5000 bytes long as the archive declares|not a readable wheel"
        ),
        wheel.opened(tmp_path / "a.whl") as found,
    ):
        found.extract(found.choose(), tmp_path / "out", Silent())


def test_an_entry_that_begins_before_the_archive(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "a", "1", {"a/config.json": b"{}", "a/model.safetensors": b"abc"})
    raw = bytearray(path.read_bytes())
    # The end record says where the directory begins (APPNOTE.TXT 4.3.16); one more shifts all entries by -1.
    raw[-6:-2] = (int.from_bytes(raw[-6:-2], "little") + 1).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(BadModelFile, match="begin before the archive"), wheel.opened(path):
        pass


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_never_another_error(tmp_path: Path, tiny_folder: Path, data: st.DataObject) -> None:
    path = write_wheel(tmp_path / "w", "a", "1", {"a/config.json": b"{}", "a/model.safetensors": b"abc" * 30})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw))) or None])
    target = tmp_path / "out"
    try:
        with wheel.opened(path) as archive:
            for file in sorted(target.rglob("*")):
                file.unlink()
            archive.extract(archive.choose(), target, Silent())
    except (BadModelFile, UnsupportedModel) as error:
        assert path.name in error.message
