from __future__ import annotations

import errno
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from sovereign_ai.deploy.processes import identify
from sovereign_ai.deploy.state import (
    RunLock,
    RunState,
    ServiceStatus,
    last_load_seconds,
    read_state,
    remember_loads,
    write_json,
)
from sovereign_ai.errors import NoPermission, NoSpace
from tests.deploy.services import read_line, spawned

HOLDS = """
import sys, time
from pathlib import Path
from sovereign_ai.deploy.state import RunLock
from tests.deploy.services import read_line, spawned
lock = RunLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def state() -> RunState:
    tiny = ServiceStatus(name="tiny", state="ready", process=identify(os.getpid()), load_s=1.5)
    return RunState(
        run_id="1", supervisor=identify(os.getpid()), gateway_url="http://x", started_at=1.0, services=[tiny]
    )


def test_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", state())
    found = read_state(tmp_path)
    assert found == state()
    assert found.service("tiny").load_s == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert json.loads((tmp_path / "state.json").read_text())["run_id"] == "1"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"run_id": "1"}'])
def test_what_is_no_state_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert read_state(tmp_path) is None


def test_a_file_in_the_place_of_the_folder_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert read_state(tmp_path / "run") is None


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoSpace), (errno.EROFS, NoPermission)])
def test_a_disk_that_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(self: Path, content: bytes) -> int:
        raise OSError(number, os.strerror(number))

    write_json(tmp_path / "state.json", state())
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(error, match="writing the run state"):
        write_json(tmp_path / "state.json", {})
    assert read_state(tmp_path) == state()


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    assert first.acquire()
    assert not second.acquire()
    holder = second.holder()
    assert holder
    assert holder.process == identify(os.getpid())
    assert first.holder() == holder
    first.release()
    first.release()
    assert second.holder() is None
    assert second.acquire()
    second.release()


def test_the_lock_is_for_its_owners_eyes(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_holder_that_has_not_written_yet_is_unknown(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / "lock").write_text("")
    assert RunLock(tmp_path).holder() is None
    lock.release()


def test_the_kernel_frees_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with spawned([sys.executable, "-c", HOLDS, str(tmp_path)]) as child:
        assert read_line(child) == b"held\n"
        assert not lock.acquire()
        holder = lock.holder()
        assert holder
        assert holder.process.pid == child.pid
        child.kill()
    assert lock.acquire()
    lock.release()


def test_load_times_are_remembered_by_service(tmp_path: Path) -> None:
    file = tmp_path / "loads.json"
    assert last_load_seconds(file) == {}
    remember_loads(file, {"a": 1.0, "b": 2.0})
    remember_loads(file, {"b": 3.0})
    assert last_load_seconds(file) == {"a": 1.0, "b": 3.0}
    file.write_text("nonsense")
    assert last_load_seconds(file) == {}
