from __future__ import annotations

import http.server
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.config import Paths
from sovereign_ai.deploy import local, processes, supervisor
from sovereign_ai.deploy.sharedmemory import SHM
from sovereign_ai.deploy.state import RunSpec, RunState, Service, last_load_seconds, read_state, write_json
from sovereign_ai.deploy.supervisor import Supervised, Supervisor, answers_ok
from tests.deploy.services import gone, make_service, pid_in, wait_for

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(paths: Paths) -> Iterator[Start]:
    """Starts a supervisor of the given services, as `up` does."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*services: Service) -> subprocess.Popen[bytes]:
        spec = RunSpec(run_id="test", home=str(paths.home), services=services, gateway_url="http://gw")
        write_json(paths.run / "spec.json", spec)
        with (paths.logs / "supervisor.log").open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "sovereign_ai", "supervise", str(paths.run)],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.wait()


def in_state(paths: Paths, name: str, wanted: str) -> Callable[[], bool]:
    def check() -> bool:
        state = read_state(paths.run)
        return state is not None and state.service(name).state == wanted

    return check


def state_of(paths: Paths) -> RunState:
    state = read_state(paths.run)
    assert state
    return state


def test_a_killed_service_is_started_again_without_what_it_left(
    paths: Paths, start: Start, tmp_path: Path, prefix: str
) -> None:
    folder = tmp_path / "tiny"
    service = make_service(folder, "grandchild segment brief", prefix=prefix)
    child = start(service)
    wait_for(in_state(paths, "tiny", "ready"), "readiness")
    first, grandchild = pid_in(folder / "started"), pid_in(folder / "grandchild")
    state = state_of(paths)
    assert state.supervisor == processes.identify(child.pid)
    assert state.service("tiny").process == processes.identify(first)
    assert "tiny" in last_load_seconds(paths.run / "loads.json")
    _check_restart(paths, folder, first, grandchild, prefix)
    wait_for(lambda: gone(pid_in(folder / "brief")), "the end of the helper")
    wait_for(lambda: not _zombies_of(child.pid), "the collection of adopted orphans")
    child.terminate()
    assert child.wait() == 0
    assert not (paths.run / "state.json").exists()
    assert gone(pid_in(folder / "started"))
    assert not list(SHM.glob(f"{prefix}*"))


def _check_restart(paths: Paths, folder: Path, first: int, grandchild: int, prefix: str) -> None:
    (SHM / f"{prefix}stale").touch()
    (folder / "grandchild").unlink()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: state_of(paths).service("tiny").restarts == 1, "the restart")
    wait_for(in_state(paths, "tiny", "ready"), "readiness again")
    assert gone(grandchild)
    assert pid_in(folder / "started") != first
    assert pid_in(folder / "grandchild") != grandchild
    assert state_of(paths).service("tiny").error == ""
    assert [path.name for path in SHM.glob(f"{prefix}*")] == [f"{prefix}region"]


def _zombies_of(parent: int) -> list[int]:
    return [e.pid for e in processes.all_entries() if e.parent == parent and not e.alive]


def test_everything_is_gone_after_sigterm_even_what_ignores_it(
    paths: Paths, start: Start, tmp_path: Path
) -> None:
    one = make_service(tmp_path / "one", "grandchild daemon", name="one")
    two = make_service(tmp_path / "two", name="two")
    failing = make_service(tmp_path / "failing", "fails", name="failing")
    child = start(one, two, failing)
    for name, wanted in (("one", "ready"), ("two", "ready"), ("failing", "failed")):
        wait_for(in_state(paths, name, wanted), f"{name} {wanted}")
    error = state_of(paths).service("failing").error
    assert error == "ended with exit code 1: ValueError: no such model: tiny"
    daemon = pid_in(tmp_path / "one" / "daemon")
    child.send_signal(signal.SIGHUP)
    assert child.wait() == 0
    started = [tmp_path / "one" / name for name in ("started", "grandchild")] + [tmp_path / "two" / "started"]
    assert all(gone(pid) for pid in (daemon, *map(pid_in, started)))
    assert not (paths.run / "state.json").exists()
    log = (paths.logs / "supervisor.log").read_text()
    assert "failing: failed ended with exit code 1" in log
    assert "Traceback" not in log


def test_a_killed_supervisor_leaves_what_clean_up_finds(
    paths: Paths, start: Start, tmp_path: Path, prefix: str
) -> None:
    folder = tmp_path / "tiny"
    service = make_service(folder, "grandchild segment", prefix=prefix)
    unmarked = msgspec.structs.replace(service, environment=dict(os.environ))
    child = start(unmarked)
    wait_for(in_state(paths, "tiny", "ready"), "readiness")
    child.kill()
    child.wait()
    report = local.report(paths)
    assert (report.state, report.supervisor_pid) == ("crashed", None)
    assert [service.state for service in report.services] == ["ready, unsupervised"]
    assert local.running(paths) is None
    assert local.clean_up(paths) == 2
    assert gone(pid_in(folder / "started"))
    assert gone(pid_in(folder / "grandchild"))
    assert local.report(paths).state == "stopped"
    assert local.clean_up(paths) == 0
    (SHM / f"{prefix}region").unlink()  # this run's number is not in its name


def test_a_supervisor_without_a_disk_to_write_to_goes_on(paths: Paths, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    child = start(make_service(folder))
    wait_for(in_state(paths, "tiny", "ready"), "readiness")
    first = pid_in(folder / "started")
    shutil.move(paths.run, paths.home / "moved")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pid_in(folder / "started") != first, "the restart")
    child.terminate()
    assert child.wait() == 0
    assert "the run state is not written" in (paths.logs / "supervisor.log").read_text()
    assert gone(pid_in(folder / "started"))


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Makes a service that the test itself looks after."""
    made: list[Supervised] = []

    def make(mode: str = "", *, watch: bool = False) -> Supervised:
        made.append(Supervised(make_service(tmp_path / "tiny", mode, watch=watch)))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.clean_up()


def look_until(one: Supervised, wanted: str) -> None:
    """Look, at a clock that runs fast enough to make every pause short, until the service is there."""
    clock = iter(range(1, 10**9))

    def there() -> bool:
        one.look(time.monotonic() + 40 * next(clock))
        return one.status.state == wanted

    wait_for(there, wanted)


def test_a_service_that_lost_a_worker_is_started_again(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised("grandchild", watch=True)
    look_until(one, "ready")
    worker = pid_in(tmp_path / "tiny" / "grandchild")
    os.kill(worker, signal.SIGKILL)
    look_until(one, "restarting")
    assert one.status.error == f"lost its worker process {worker}"
    look_until(one, "ready")
    assert one.status.restarts == 1


def test_a_worker_is_not_missed_where_nobody_watches(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised("grandchild")
    look_until(one, "ready")
    worker = pid_in(tmp_path / "tiny" / "grandchild")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: gone(worker), "the end")
    one.look(time.monotonic() + 100)
    assert one.status.state == "ready"


def test_a_service_that_stops_answering_is_unhealthy_and_may_recover(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised()
    look_until(one, "ready")
    load_s = one.status.load_s
    (tmp_path / "tiny" / "sick").touch()
    look_until(one, "unhealthy")
    (tmp_path / "tiny" / "sick").unlink()
    look_until(one, "ready")
    assert (one.status.restarts, one.status.load_s) == (0, load_s)


def test_pauses_double_until_a_start_was_stable(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised("once")
    look_until(one, "ready")
    assert one.child
    os.kill(one.child.pid, signal.SIGKILL)
    one.child.wait()
    pauses = []
    for _ in range(8):
        assert one.look(100.0)
        pauses.append(one.start_at - 100.0)
        assert not one.look(100.0)
        assert one.look(one.start_at)
        assert one.child
        one.child.wait()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert one.status.error == "ended with exit code 3: OSError: gone for good"
    one.status.state, one.status.since = "ready", time.time() - supervisor.STABLE_S - 1
    assert one.look(100.0)
    assert one.start_at == 100.5


def test_a_signal_without_a_name_is_a_number(supervised: Callable[..., Supervised]) -> None:
    one = supervised()
    assert one.child
    os.kill(one.child.pid, 35)
    look_until(one, "failed")
    assert one.status.error == "ended by signal 35"
    assert not one.look(time.monotonic() + 1000)


def test_a_log_that_is_gone_leaves_the_exit_code(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised("fails")
    assert one.child
    one.child.wait()
    (tmp_path / "tiny" / "tiny.log").unlink()
    look_until(one, "failed")
    assert one.status.error == "ended with exit code 1: the log is empty"


def test_only_the_last_start_explains_a_failure(tmp_path: Path) -> None:
    service = make_service(tmp_path / "tiny")
    Path(service.log).write_text("ValueError: of an earlier start\n")
    one = Supervised(msgspec.structs.replace(service, command=("/bin/sh", "-c", "echo hello; exit 7")))
    one.start()
    look_until(one, "failed")
    assert one.status.error == "ended with exit code 7: hello"


def test_a_program_that_is_not_there_fails(tmp_path: Path) -> None:
    service = make_service(tmp_path / "tiny")
    one = Supervised(msgspec.structs.replace(service, command=("/nowhere/tritonserver",)))
    one.start()
    assert one.status.state == "failed"
    assert one.status.error == (
        "cannot be started: [Errno 2] No such file or directory: '/nowhere/tritonserver'"
    )


def test_a_program_that_vanished_is_tried_again(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised()
    look_until(one, "ready")
    assert one.child
    os.kill(one.child.pid, signal.SIGKILL)
    look_until(one, "restarting")
    one.service = msgspec.structs.replace(one.service, folder="/nowhere")
    assert one.look(one.start_at)
    assert one.status.state == "restarting"
    assert one.status.error.startswith("cannot be started")
    assert one.status.restarts == 1


MAKER = "import sys, time; from multiprocessing.shared_memory import SharedMemory as S; "
MAKER += "s = S(name=sys.argv[1], create=True, size=64); open(sys.argv[2], 'w').close(); time.sleep(600)"


def test_the_segment_of_an_orphan_goes_with_it(tmp_path: Path, prefix: str) -> None:
    service = make_service(tmp_path / "tiny")
    made = tmp_path / "made"
    shell = f'"$@" & echo $! > {tmp_path}/worker; exec sleep 600'
    command = ("/bin/sh", "-c", shell, "sh", sys.executable, "-c", MAKER, f"{prefix}worker", str(made))
    one = Supervised(msgspec.structs.replace(service, command=command))
    one.start()
    wait_for(made.exists, "the segment")
    assert one.child
    one.child.kill()
    look_until(one, "failed")
    assert gone(pid_in(tmp_path / "worker"))
    assert not (SHM / f"{prefix}worker").exists()


def test_a_service_that_still_loads_cannot_hear_sigterm(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    one = supervised()
    assert one.child
    one.ask_to_stop()
    assert one.child.wait() == -signal.SIGKILL
    one.ask_to_stop()
    one.clean_up()
    one.ask_to_stop()


def test_a_ready_service_is_asked_kindly(supervised: Callable[..., Supervised]) -> None:
    one = supervised()
    look_until(one, "ready")
    assert one.child
    one.ask_to_stop()
    assert one.child.wait() == -signal.SIGTERM


def test_the_loop_in_this_process_saves_what_it_sees(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(tmp_path / "tiny")
    loop = Supervisor(RunSpec(run_id="1", home="", services=(service,), gateway_url=""), paths.run)
    ticks: list[float] = []

    def tick(seconds: float) -> None:
        ticks.append(seconds)
        sleep(0.02)
        state = state_of(paths).service("tiny")
        if state.state == "ready":
            assert last_load_seconds(paths.run / "loads.json") == {"tiny": state.load_s}
            loop._on_signal(signal.SIGTERM, None)

    sleep = time.sleep
    monkeypatch.setattr(processes, "become_subreaper", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda number, action: None)
    monkeypatch.setattr(time, "sleep", tick)
    with caplog.at_level(logging.INFO):
        loop.run()
    assert set(ticks) >= {supervisor.TICK_S}
    assert read_state(paths.run) is None
    assert gone(pid_in(tmp_path / "tiny" / "started"))


@pytest.fixture
def url() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_200_is_ready(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for addresses of this machine
    monkeypatch.delenv("no_proxy", raising=False)
    assert answers_ok(f"{url}/200")
    assert not answers_ok(f"{url}/204")
    assert not answers_ok(f"{url}/503")


def test_what_is_no_http_or_nobody_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HELLO\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        assert not answers_ok(f"http://127.0.0.1:{port}/")
        thread.join()
    assert not answers_ok(f"http://127.0.0.1:{port}/")
