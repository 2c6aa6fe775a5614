"""The control plane's image, as far as its files tell: what it starts from, who it runs as, what is in it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sovereign_ai.config import ClusterSettings

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "Containerfile"
LOCK = ROOT / "image" / "requirements.lock"
FILES = [CONTAINERFILE, ROOT / ".containerignore", *sorted((ROOT / "image").iterdir())]
EXTRAS = ("kubernetes", "tracing")


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(word, rest.strip()) for word, rest in pairs]


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def required() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    return [Requirement(text) for text in texts]


def test_every_stage_starts_from_the_local_pinned_base() -> None:
    assert ("ARG", "BASE=localhost/debian-base:12") in instructions()
    starts = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert starts == ["${BASE}", "${BASE}"]
    assert "localhost/debian-base:12" in (ROOT / "image" / "base.sh").read_text()


def test_runs_as_user_1000_by_number() -> None:
    assert [rest for word, rest in instructions() if word == "USER"] == ["1000:1000"]


def test_the_last_stage_takes_only_what_was_installed() -> None:
    last = instructions()[max(n for n, (word, _) in enumerate(instructions()) if word == "FROM") :]
    copies = [rest for word, rest in last if word in ("COPY", "ADD")]
    assert copies == ["--from=built /opt/sovereign /opt/sovereign"]
    assert not any("pip" in rest or "apt" in rest for _, rest in last)
    assert any(word == "ENV" and "PATH=/opt/sovereign/bin:" in rest for word, rest in last)


def test_lock_answers_every_requirement() -> None:
    versions = locked()
    for one in required():
        assert one.specifier.contains(versions[canonicalize_name(one.name)]), one


def test_lock_pins_exactly_and_in_order() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert list(locked()) == sorted(locked())
    assert len(locked()) == len(lines)


def test_no_engine_in_the_image() -> None:
    heavy = [
        name for name in locked() if re.match(r"(torch|vllm|triton|transformers|nvidia-(?!ml-py))", name)
    ]
    assert heavy == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_names_no_registry_and_no_moving_tag(path: Path) -> None:
    text = path.read_text()
    assert "latest" not in text
    # a host has a dot and a known ending; file names and versions have not
    assert re.findall(r"(?<![\w.$/-])(?:[\w-]+\.)+(?:org|io|com|net|dev)\b|https?://", text) == []


@pytest.mark.parametrize("path", sorted((ROOT / "image").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    assert "set -eu" in path.read_text().splitlines()


def test_only_wheels_enter_the_build() -> None:
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines == ["**", "!build/image/wheels", "!build/image/wheels/*"]


def test_make_builds_the_image_that_the_manifests_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = ClusterSettings().control_image
    assert name == f"localhost/sovereign-ai:{project['version']}"
    assert f"\nIMAGE  ?= {name}\n" in (ROOT / "Makefile").read_text()
