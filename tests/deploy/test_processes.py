from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.deploy import processes
from sovereign_ai.deploy.processes import Entry, ProcessId
from tests.deploy.services import gone, pid_in, spawned, wait_for

PARENT = "sleep 600 & echo $! > child; exec sleep 600"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A marked process that leads a session, and its child."""
    parent = subprocess.Popen(
        ["/bin/sh", "-c", PARENT],
        cwd=tmp_path,
        env={**os.environ, processes.HOME_MARK: str(tmp_path)},
        start_new_session=True,
    )
    child = pid_in(tmp_path / "child")
    yield parent, child
    processes.send([parent.pid, child], signal.SIGKILL)
    parent.wait()
    wait_for(lambda: gone(child), "the end of the child")


def test_this_process_is_alive() -> None:
    own = processes.identify(os.getpid())
    assert processes.is_alive(own)
    entry = processes.read_entry(own.pid)
    assert entry
    assert (entry.parent, entry.session) == (os.getppid(), os.getsid(0))


def test_a_later_process_of_the_same_number_is_another() -> None:
    own = processes.identify(os.getpid())
    assert not processes.is_alive(ProcessId(own.pid, own.started - 1))


def test_a_number_that_nobody_has(tree: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, _ = tree
    parent.kill()
    parent.wait()
    assert processes.identify(parent.pid) == ProcessId(parent.pid, 0)
    assert not processes.is_alive(ProcessId(parent.pid, 0))
    processes.send([parent.pid], signal.SIGKILL)


def test_a_name_with_parentheses_does_not_shift_the_fields(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    with spawned([str(odd), "600"]) as child:
        wait_for(lambda: b"a) R" in Path(f"/proc/{child.pid}/comm").read_bytes(), "the start")
        entry = processes.read_entry(child.pid)
        assert entry
        assert entry.parent == os.getpid()
        child.kill()


def test_a_zombie_is_not_alive() -> None:
    with spawned(["/bin/true"]) as child:
        known = processes.identify(child.pid)
        wait_for(lambda: not processes.is_alive(known), "the end")
        entry = processes.read_entry(child.pid)
        assert entry
        assert entry.state == "Z"
        assert child.pid not in processes.wait_gone([child.pid], 0)


def test_a_zombie_with_threads_still_holds_its_memory() -> None:
    leader = Entry(pid=2, parent=1, session=2, state="Z", threads=3, started=1)
    assert leader.alive
    assert not Entry(pid=2, parent=1, session=2, state="Z", threads=1, started=1).alive


def test_descendants_are_the_whole_tree_without_its_root(
    tree: tuple[subprocess.Popen[bytes], int],
) -> None:
    parent, child = tree
    assert {found.pid for found in processes.descendants(parent.pid)} == {child}
    assert {parent.pid, child} <= {found.pid for found in processes.descendants(os.getpid())}
    assert processes.descendants(child) == set()


def test_the_mark_is_inherited(tree: tuple[subprocess.Popen[bytes], int], tmp_path: Path) -> None:
    parent, child = tree
    assert processes.marked(tmp_path) == {parent.pid, child}
    assert processes.marked(tmp_path / "other") == set()
    assert processes.marked(tmp_path.parent) == set()


def test_a_session_outlives_its_leader(tree: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, child = tree
    leader = processes.identify(parent.pid)
    assert processes.in_sessions([leader]) == {parent.pid, child}
    parent.kill()
    parent.wait()
    assert processes.in_sessions([leader]) == {child}
    assert processes.in_sessions([ProcessId(leader.pid, leader.started + 10**9)]) == set()
    assert processes.in_sessions([]) == set()


def test_waiting_for_one_that_stays_ends(tree: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, child = tree
    parent.kill()
    assert processes.wait_gone([parent.pid, child], 0.2) == {child}


def test_the_process_table_may_change_while_it_is_read() -> None:
    assert processes._environment(2**22 + 1) == []
    assert processes.read_entry(2**22 + 1) is None


ADOPTS = """
import os, subprocess, sys, time
from sovereign_ai.deploy import processes
processes.become_subreaper()
subprocess.run(["/bin/sh", "-c", "sleep 0.05 & sleep 0.05 &"])
own = subprocess.Popen(["/bin/true"])
def children():
    return [e for e in processes.all_entries() if e.parent == os.getpid()]
while any(entry.alive for entry in children()):
    time.sleep(0.01)
assert len(children()) == 3, children()
for _ in range(100):
    processes.reap_orphans({own.pid})
    if len(children()) == 1:
        break
    own.wait()
assert own.wait() == 0
assert children() == [], children()
processes.reap_orphans(set())
"""


def test_adopted_orphans_are_collected_and_own_children_left_to_their_owner() -> None:
    subprocess.run([sys.executable, "-c", ADOPTS], check=True)


def test_only_children_can_be_collected() -> None:
    processes.reap([1])


OUTLIVED = """
import os, signal, sys, time
from sovereign_ai.deploy import processes
if os.fork() == 0:
    processes.die_with_parent(signal.SIGTERM)
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
time.sleep(600)
"""


def test_a_child_can_end_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    with spawned([sys.executable, "-c", OUTLIVED, str(tmp_path / "child")]) as parent:
        child = pid_in(tmp_path / "child")
        parent.kill()
    wait_for(lambda: gone(child), "the end of the child")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_one_that_listens_is_named(family: socket.AddressFamily) -> None:
    with socket.socket(family) as opened:
        try:
            opened.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            pytest.skip("no loopback address of this family")
        port = opened.getsockname()[1]
        assert processes.listener(port) is None
        opened.listen()
        found = processes.listener(port)
        assert found
        assert found.endswith(f"(pid {os.getpid()})")


def test_files_that_close_while_they_are_looked_at(tmp_path: Path) -> None:
    assert processes._link(tmp_path / "none") == ""


def test_a_system_without_ipv6_has_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read(self: Path) -> str:
        if str(self) == "/proc/net/tcp6":
            raise FileNotFoundError(str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_text", read)
    assert processes._listening_inodes(1) == set()
