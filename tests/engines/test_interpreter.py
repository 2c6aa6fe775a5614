from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_ai.engines import interpreter
from sovereign_ai.engines.interpreter import Interpreter, find_interpreter, probe
from sovereign_ai.errors import EngineUnavailable

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"

MakePython = Callable[[str, str], Path]


@pytest.fixture
def make_python(tmp_path: Path) -> MakePython:
    """Makes an executable that says what a Python would say of itself, or anything else."""

    def make(name: str, script: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def says(minor: str, folder: Path) -> str:
    (folder / f"libpython{minor}.so").touch()
    return (
        f'echo \'{{"minor": "{minor}", "full": "{minor}.9", "library": "libpython{minor}.so", '
        f'"folders": [null, "/nowhere", "{folder}"]}}\''
    )


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Makes a Python the base one and hides all others of this machine but /usr/bin/python3."""

    def choose(base: Path) -> None:
        monkeypatch.setattr(interpreter, "base_executable", lambda: base)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return choose


def test_the_python_behind_this_environment_is_usable() -> None:
    found = find_interpreter([OWN])
    assert found.minor == OWN
    assert found.version == sys.version.split()[0]
    assert list(Path(found.library_folder).glob("libpython*.so*"))
    assert Path(found.executable).resolve() == interpreter.base_executable().resolve()


def test_the_folder_with_the_library_is_found(make_python: MakePython, tmp_path: Path) -> None:
    python = make_python("python3.11", says("3.11", tmp_path))
    assert probe(python) == Interpreter(str(python), "3.11", "3.11.9", str(tmp_path))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "does not answer (CalledProcessError)"),
        ("echo hello", "does not answer (JSONDecodeError)"),
        ('echo \'{"minor": "3.11", "library": null, "folders": ["/"]}\'', "has no shared libpython3.11"),
        ('echo \'{"minor": "3.11", "library": "libx.so", "folders": ["/"]}\'', "has no shared libpython3.11"),
    ],
)
def test_a_python_that_is_no_use_says_why(make_python: MakePython, script: str, reason: str) -> None:
    assert probe(make_python("python3.11", script)) == reason


def test_a_missing_python_is_no_use(tmp_path: Path) -> None:
    assert probe(tmp_path / "none") == "does not answer (FileNotFoundError)"


def test_a_python_that_hangs_is_given_up(make_python: MakePython, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PROBE_TIMEOUT_S", 0.05)
    assert probe(make_python("python3.11", "exec sleep 60")) == "does not answer (TimeoutExpired)"


def test_the_first_minor_version_is_preferred_over_the_first_python(
    make_python: MakePython, only: Callable[[Path], None], tmp_path: Path
) -> None:
    only(make_python("mine", says("3.12", tmp_path)))
    wanted = make_python("python3.11", says("3.11", tmp_path))
    assert find_interpreter(["3.11", "3.12"]).executable == str(wanted)


def test_the_next_minor_version_is_better_than_none(
    make_python: MakePython, only: Callable[[Path], None], tmp_path: Path
) -> None:
    base = make_python("mine", says("3.98", tmp_path))
    only(base)
    make_python("python3.99", "exit 1")
    assert find_interpreter(["3.99", "3.98"]).executable == str(base)


def test_a_python_is_asked_once_under_all_its_names(
    make_python: MakePython, only: Callable[[Path], None], tmp_path: Path
) -> None:
    base = make_python("mine", f"echo asked >> {tmp_path}/asked; exit 1")
    (tmp_path / "bin" / "python3.98").symlink_to(base)
    only(base)
    with pytest.raises(EngineUnavailable):
        find_interpreter(["3.98"])
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_no_usable_python_says_what_was_looked_at(
    make_python: MakePython, only: Callable[[Path], None], tmp_path: Path
) -> None:
    only(make_python("mine", says("3.97", tmp_path)))
    make_python("python3.98", "exit 1")
    with pytest.raises(EngineUnavailable) as caught:
        find_interpreter(["3.99", "3.98"])
    assert "the engine needs Python 3.99 or 3.98 with a shared libpython" in caught.value.message
    assert f"{tmp_path}/bin/mine: is Python 3.97" in caught.value.message
    assert f"{tmp_path}/bin/python3.98: does not answer (CalledProcessError)" in caught.value.message
    assert "python3.99-venv" in caught.value.hint
