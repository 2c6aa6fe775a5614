from __future__ import annotations

import os
from pathlib import Path

import pytest

from sovereign_ai.errors import NoSpace
from sovereign_ai.store.pip import PipFailed, run_pip
from tests.store.conftest import FakePip

SLOW = """
pathlib.Path(os.environ["TMPDIR"], "pid").write_text(str(os.getpid()))
print("Progress 0 of 100", flush=True)
print("Progress 60 of 100", flush=True)
time.sleep(600)
"""


def test_ctrl_c_ends_the_child(tmp_path: Path, fake_pip: FakePip) -> None:
    seen: list[tuple[int, int]] = []

    def pressed(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 60:
            raise KeyboardInterrupt

    fake_pip(SLOW)
    with pytest.raises(KeyboardInterrupt):
        run_pip(["download"], tmp_path, on_bytes=pressed)
    assert seen == [(0, 100), (60, 100)]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_real_pip_answers(tmp_path: Path) -> None:
    lines: list[str] = []
    run_pip(["--version"], tmp_path, on_line=lines.append)
    assert lines[0].startswith("pip ")


def test_lines_and_progress_are_told_apart(tmp_path: Path, fake_pip: FakePip) -> None:
    lines: list[str] = []
    fake_pip("print('Progress 1 of 2'); print('Collecting a')")
    run_pip(["download"], tmp_path, on_line=lines.append)
    assert lines == ["Collecting a"]


def test_another_environment_is_worked_on(tmp_path: Path, fake_pip: FakePip) -> None:
    lines: list[str] = []
    fake_pip("print(' '.join(sys.argv[1:]))")
    run_pip(["install", "a"], tmp_path, on_line=lines.append, python=Path("/env/python"))
    assert lines[0].startswith("-P -m pip --python /env/python install a")


def test_a_file_of_the_callers_does_not_shadow_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    run_pip(["--version"], tmp_path)


def test_a_full_disk_in_pip_is_no_space(tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip("print('ERROR: failed: [Errno 28] No space left', file=sys.stderr); sys.exit(1)")
    with pytest.raises(NoSpace, match="no space left: failed"):
        run_pip(["download"], tmp_path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('ERROR: one\\nERROR: two\\nother'); sys.exit(1)", "two"),
        ("print('No module named pip'); sys.exit(1)", "No module named pip"),
        ("sys.exit(3)", "exit status 3"),
    ],
)
def test_a_failure_has_pips_last_words(tmp_path: Path, fake_pip: FakePip, script: str, said: str) -> None:
    fake_pip(script)
    with pytest.raises(PipFailed) as caught:
        run_pip(["download"], tmp_path)
    assert caught.value.said == said
    assert caught.value.hint == "check the index that pip is set up to use"


def test_an_index_that_cannot_be_reached(tmp_path: Path, fake_pip: FakePip) -> None:
    fake_pip("print('WARNING: Retrying (Retry(total=0)) after'); print('ERROR: none'); sys.exit(1)")
    with pytest.raises(PipFailed) as caught:
        run_pip(["download"], tmp_path)
    assert caught.value.unreachable
    assert "check the network" in caught.value.hint
