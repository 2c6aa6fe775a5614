"""The control plane's image, as far as it can be told without building it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = dict(
    line.split("==") for line in (ROOT / "image" / "requirements.lock").read_text().splitlines() if line
)
LOCKED = {canonicalize_name(name): version for name, version in LOCK.items()}


def test_the_lock_is_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["kubernetes"]]
    for line in wanted:
        requirement = Requirement(line)
        version = LOCKED.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), line
    assert not {"torch", "vllm", "transformers"} & LOCKED.keys()


def test_it_is_small_and_nobodys_root() -> None:
    text = (ROOT / "Containerfile").read_text()
    assert "\nUSER 1000:1000\n" in text
    assert ":latest" not in text
    final = text.rpartition("FROM ")[2]
    assert "pip install" not in final
    copied = [words.split() for words in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)]
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    for words in copied:
        for source in words[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored, source
