from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.store.contents import Contents, choose, is_safe, parts_of


def chosen(*names: str) -> Contents:
    return choose([PurePosixPath(name) for name in names], "the package")


def test_a_folder_with_config_and_safetensors() -> None:
    found = chosen(
        "p/m/config.json", "p/m/a.safetensors", "p/m/1_Pooling/config.json", "p/m/x.py", "p/other.json"
    )
    assert found.gguf is None
    assert found.root == PurePosixPath("p/m")
    assert [str(path) for path in found.files] == [
        "p/m/config.json",
        "p/m/a.safetensors",
        "p/m/1_Pooling/config.json",
    ]


def test_the_outermost_of_nested_folders() -> None:
    found = chosen("config.json", "model.safetensors", "2_Dense/config.json", "2_Dense/model.safetensors")
    assert found.root == PurePosixPath()
    assert len(found.files) == 4


def test_a_gguf_where_there_is_no_folder() -> None:
    found = chosen("p/__init__.py", "p/m.GGUF", "p/config.json")
    assert found == Contents(PurePosixPath("p/m.GGUF"), PurePosixPath("p"), (PurePosixPath("p/m.GGUF"),))


def test_the_manifest_of_another_store_stays_behind() -> None:
    found = chosen("config.json", "a.safetensors", "manifest.json", "1_Pooling/manifest.json")
    assert [str(path) for path in found.files] == ["config.json", "a.safetensors", "1_Pooling/manifest.json"]


def test_licenses_are_taken_and_hidden_files_are_not() -> None:
    found = chosen("config.json", "a.safetensors", "LICENSE", "LICENSE.md", ".git/x.json", "model.bin")
    assert {path.name for path in found.files} == {"config.json", "a.safetensors", "LICENSE", "LICENSE.md"}


@pytest.mark.parametrize(
    "names", [("a.gguf", "b.gguf"), ("a/config.json", "a/m.safetensors", "b/config.json", "b/m.safetensors")]
)
def test_two_models_are_too_many(names: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedModel, match="the package holds 2"):
        chosen(*names)


def test_pickles_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel, match=r"pickles \(p/pytorch_model.bin\); loading a pickle can run"):
        chosen("p/config.json", "p/pytorch_model.bin")


def test_no_model_at_all() -> None:
    with pytest.raises(UnsupportedModel, match="the package holds no model"):
        chosen("p/__init__.py")


def test_a_split_gguf_is_taken_with_all_its_parts() -> None:
    names = ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf", "README.md")
    found = chosen(*names)
    assert found.gguf == PurePosixPath(names[0])
    assert found.files == tuple(map(PurePosixPath, names[:3]))


def test_one_of_several_ggufs_by_name() -> None:
    names = [PurePosixPath(name) for name in ("q4/m-Q4.gguf", "m-Q8.gguf", "config.json")]
    found = choose(names, "x", gguf=PurePosixPath("q4/m-Q4.gguf"))
    assert found == Contents(names[0], PurePosixPath("q4"), (names[0],))
    with pytest.raises(UnsupportedModel, match=r"x holds no file m-Q5\.gguf"):
        choose(names, "x", gguf=PurePosixPath("m-Q5.gguf"))
    with pytest.raises(UnsupportedModel) as refused:
        choose(names, "x")
    assert "hf:ORG/NAME/FILE.gguf" in refused.value.hint


def test_absurd_numbers_of_parts_are_not_counted_out() -> None:
    name = PurePosixPath("m-00001-of-99999.gguf")
    assert parts_of(name) == {name}


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/x.json", "a/../x.json", ".x/y.json", "a\\b.json", "a\nb.json", "x" * 256, "a/" * 9 + "b"],
)
def test_names_that_are_not_safe(name: str) -> None:
    assert not is_safe(PurePosixPath(name))
