from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.config import GatewaySettings, Paths, TlsSettings, decode_gateway
from sovereign_ai.console import Console
from sovereign_ai.deploy import local, processes
from sovereign_ai.deploy.processes import ProcessId, identify
from sovereign_ai.deploy.sharedmemory import SHM
from sovereign_ai.deploy.state import (
    RunLock,
    RunSpec,
    RunState,
    Service,
    ServiceState,
    ServiceStatus,
    read_state,
    write_json,
)
from sovereign_ai.engines.environment import Complete, EngineEnvironment
from sovereign_ai.engines.interpreter import Interpreter
from sovereign_ai.errors import DeployError, EngineFailed, PortTaken
from sovereign_ai.render import TritonProcess
from tests.deploy.services import ending, gone, make_service, pid_in, read_line, spawned, wait_for

NOBODY = ProcessId(2**22 + 1, 0)
ANY = "0.0.0.0"  # noqa: S104
OWN = identify(os.getpid())


def write_state(paths: Paths, *services: ServiceStatus, supervisor: ProcessId = OWN) -> None:
    state = RunState(
        run_id="1", supervisor=supervisor, gateway_url="http://gw", started_at=1.0, services=list(services)
    )
    write_json(paths.run / "state.json", state)


def status(state: ServiceState, process: ProcessId | None = OWN, *, name: str = "tiny") -> ServiceStatus:
    return ServiceStatus(name=name, state=state, process=process)


def test_free_ports_are_different_and_free() -> None:
    ports = local.free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        local.check_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", ANY, "localhost"])
def test_a_taken_port_names_its_owner(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} of {host} is taken by .*\(pid {os.getpid()}\)"):
            local.check_port(host, port)


def test_an_owner_that_cannot_be_seen_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "listener", lambda port: None)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTaken, match="another program"):
        local.check_port("127.0.0.1", other.getsockname()[1])


def test_a_port_without_permission_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(PortTaken, match=r"no permission to listen on 127\.0\.0\.1:80") as caught:
        local.check_port("127.0.0.1", 80)
    assert "1024" in caught.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "nosuchhost.invalid", "2001:db8::1"])
def test_an_address_of_somebody_else_is_not_a_taken_port(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DeployError, match="cannot listen on") as caught:
            local.check_port(host, port)
    assert not isinstance(caught.value, PortTaken)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        (ANY, "http://127.0.0.1:8000"),
        ("box.lan", "http://box.lan:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::2", "http://[fd00::2]:8000"),
    ],
)
def test_where_a_client_on_this_machine_reaches_the_gateway(host: str, url: str) -> None:
    assert local.gateway_url(GatewaySettings(host=host)) == url


def test_with_a_certificate_it_is_https() -> None:
    tls = TlsSettings(certificate=Path("/c.pem"), key=Path("/k.pem"))
    assert local.gateway_url(GatewaySettings(tls=tls)) == "https://127.0.0.1:8000"


def test_the_gateway_service(paths: Paths) -> None:
    settings = GatewaySettings(host=ANY, port=8123, max_body_bytes=4096)
    service = local.gateway_service(paths, settings, {"PATH": "/bin"})
    assert service.command[:4] == (sys.executable, "-m", "sovereign_ai", "gateway")
    assert service.command[4:] == (
        "--routes", str(paths.run / "routes.json"), "--ledger", str(paths.ledger),
        "--settings", service.command[-1],
    )  # fmt: skip
    assert decode_gateway(service.command[-1]) == settings
    assert service.environment == {"PATH": "/bin", "SOVEREIGN_RUN_HOME": str(paths.home)}
    assert service.ready_urls == ("http://127.0.0.1:8123/readyz",)


@pytest.fixture
def process() -> TritonProcess:
    return TritonProcess(
        name="triton-cpu",
        node="box",
        devices=("cpu",),
        models=("smol", "minilm"),
        files={"smol/config.pbtxt": "smöl", "smol/1/model.json": "{}"},
    )


def test_a_repository_is_written_anew(paths: Paths, process: TritonProcess) -> None:
    stale = paths.run / "repositories" / "triton-cpu" / "gone" / "config.pbtxt"
    stale.parent.mkdir(parents=True)
    stale.touch()
    root = local.write_repository(paths.run, process)
    assert {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()} == set(process.files)
    assert (root / "smol" / "config.pbtxt").read_text(encoding="utf-8") == "smöl"


def test_the_triton_service(
    paths: Paths, process: TritonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineEnvironment, "make_backends", lambda self, folder: folder)
    complete = Complete(
        kind="cpu",
        lock="x",
        interpreter=Interpreter("/python", "3.11", "3.11.7", "/python/lib"),
        versions={},
        bytes=1,
        installed_at=1.0,
    )
    engine = EngineEnvironment(tmp_path / "engine", complete)
    service = local.triton_service(
        process, engine, paths, ports=(4001, 4002), run_id="abc", variables={"PYTHONPATH": "/x", "A": "b"}
    )
    assert service.command[0] == str(engine.tritonserver)
    assert f"--backend-directory={paths.run / 'backends'}" in service.command
    assert "--http-port=4001" in service.command
    assert "--metrics-port=4002" in service.command
    assert service.shm_prefix == "sovereign-abc-triton-cpu-"
    assert service.watch_descendants
    assert service.folder == str(engine.stub_folder)
    assert service.ready_urls == (
        "http://127.0.0.1:4001/v2/models/smol/ready",
        "http://127.0.0.1:4001/v2/models/minilm/ready",
    )
    environment = service.environment
    assert environment["A"] == "b"
    assert "PYTHONPATH" not in environment
    assert environment["SOVEREIGN_RUN_HOME"] == str(paths.home)
    assert environment["LD_LIBRARY_PATH"].startswith("/python/lib:")
    cores = environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert [int(core) for core in cores] == sorted(os.sched_getaffinity(0))


def test_logs_begin_anew_and_the_last_runs_are_kept(paths: Paths) -> None:
    local.rotate_logs(paths.logs, ["a", "b"])
    (paths.logs / "a.log").write_text("first")
    local.rotate_logs(paths.logs, ["a", "b"])
    assert (paths.logs / "a.log").read_text() == ""
    assert (paths.logs / "a.log.1").read_text() == "first"


def test_nothing_written_is_stopped(paths: Paths) -> None:
    assert local.report(paths) == local.StackReport(state="stopped")
    assert local.running(paths) is None


@pytest.mark.parametrize(
    ("states", "overall"),
    [
        (("ready", "ready"), "ready"),
        (("starting", "ready"), "starting"),
        (("restarting", "ready"), "degraded"),
        (("failed", "starting"), "degraded"),
        (("unhealthy", "ready"), "degraded"),
    ],
)
def test_the_state_of_the_whole(paths: Paths, states: tuple[ServiceState, ...], overall: str) -> None:
    write_state(paths, *(status(state, name=state) for state in states))
    report = local.report(paths)
    assert report.state == overall
    assert report.supervisor_pid == os.getpid()
    assert [service.state for service in report.services] == list(states)
    assert local.running(paths) == read_state(paths.run)


def test_the_process_table_wins_over_what_was_written(paths: Paths) -> None:
    write_state(paths, status("ready", NOBODY))
    report = local.report(paths)
    assert report.state == "degraded"
    assert (report.services[0].state, report.services[0].pid) == ("dead, restarting", None)


def test_without_its_supervisor_a_stack_has_crashed(paths: Paths) -> None:
    write_state(paths, status("ready"), status("ready", NOBODY), status("failed", None), supervisor=NOBODY)
    report = local.report(paths)
    assert (report.state, report.supervisor_pid) == ("crashed", None)
    assert [service.state for service in report.services] == ["ready, unsupervised", "dead", "failed"]
    assert local.running(paths) is None


def run_spec(*services: Service) -> RunSpec:
    return RunSpec(run_id="1", home="", services=services, gateway_url="http://gw")


@pytest.fixture
def lock(paths: Paths) -> Iterator[RunLock]:
    held = RunLock(paths.run)
    assert held.acquire()
    yield held
    held.release()


def test_a_stack_is_started_watched_and_stopped(
    paths: Paths, tmp_path: Path, lock: RunLock, console: Console
) -> None:
    services = make_service(tmp_path / "one", name="one"), make_service(tmp_path / "two", name="two")
    Path(services[0].log).write_text('"loading: smol:1"\n')
    with ending(
        local.start_supervisor(paths, run_spec(*services), lock, os.environ, foreground=False)
    ) as child:
        lock.release()
        state = local.wait_until_ready(paths, child, console)
        assert [service.state for service in state.services] == ["ready", "ready"]
        assert local.report(paths).state == "ready"
        assert not RunLock(paths.run).acquire()  # the supervisor holds it now
        assert local.stop(paths, console)
        assert child.wait() == 0
    assert all(gone(pid_in(tmp_path / name / "started")) for name in ("one", "two"))
    assert local.report(paths).state == "stopped"
    assert not local.stop(paths, console)
    after = RunLock(paths.run)
    assert after.acquire()
    after.release()


def test_a_service_that_fails_is_told_with_its_log(
    paths: Paths, tmp_path: Path, lock: RunLock, console: Console
) -> None:
    service = make_service(tmp_path / "tiny", "fails")
    with ending(
        local.start_supervisor(paths, run_spec(service), lock, os.environ, foreground=False)
    ) as child:
        with pytest.raises(EngineFailed, match="tiny ended with exit code 1: ValueError: no such") as caught:
            local.wait_until_ready(paths, child, console)
        assert caught.value.hint == f"the whole log: {service.log}"
        assert local.stop(paths, console)


FOREGROUND = """
import os, sys, time
from pathlib import Path
import msgspec
from sovereign_ai.config import Paths
from sovereign_ai.deploy import local
from sovereign_ai.deploy.state import RunLock, RunSpec
home = Path(sys.argv[1])
paths = Paths(home=home, storage=home)
lock = RunLock(paths.run)
assert lock.acquire()
spec = msgspec.json.decode(sys.argv[2], type=RunSpec)
child = local.start_supervisor(paths, spec, lock, dict(os.environ), foreground=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_in_the_foreground_a_stack_ends_with_its_command(paths: Paths, tmp_path: Path) -> None:
    service = make_service(tmp_path / "tiny")
    spec = msgspec.json.encode(run_spec(service)).decode()
    with spawned([sys.executable, "-c", FOREGROUND, str(paths.home), spec]) as command:
        supervisor = int(read_line(command))
        started = pid_in(tmp_path / "tiny" / "started")
        wait_for(lambda: local.report(paths).state == "ready", "readiness")
        command.kill()
    wait_for(lambda: gone(supervisor), "the supervisor's end")
    assert gone(started)
    assert local.report(paths).state == "stopped"


def test_a_supervisor_that_ends_says_why(paths: Paths, console: Console) -> None:
    (paths.logs / "supervisor.log").write_text("ValueError: a broken order\n")
    with spawned(["/bin/true"]) as child:
        child.wait()
        with pytest.raises(EngineFailed, match="the supervisor ended: ValueError: a broken order"):
            local.wait_until_ready(paths, child, console)
        (paths.logs / "supervisor.log").unlink()
        with pytest.raises(EngineFailed, match="no log was written"):
            local.wait_until_ready(paths, child, console)


def test_what_the_logs_say_last_is_shown_while_loading(paths: Paths) -> None:
    log = paths.logs / "triton-cpu.log"
    waiting = ServiceStatus(name="triton-cpu", state="starting", log=str(log))
    state = RunState(run_id="1", supervisor=OWN, gateway_url="", started_at=0, services=[waiting])
    assert local._loading_note(None) == ""
    assert local._loading_note(state) == "triton-cpu"
    log.write_text('I1 "loading: smol:1"\nLoading weights took 1.5 seconds\nnothing to tell\n')
    assert local._loading_note(state) == "vLLM: weights read"


def test_a_supervisor_that_does_not_hear_is_killed(
    paths: Paths, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STOP_BUDGET_S", 0.1)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with spawned([sys.executable, "-S", "-c", deaf]) as child:
        read_line(child)
        write_state(paths, supervisor=identify(child.pid))
        assert local.stop(paths, console)
        assert child.wait() == -signal.SIGKILL
    assert read_state(paths.run) is None


PREPARES = """
import sys, time
from pathlib import Path
from sovereign_ai.deploy.state import RunLock
lock = RunLock(Path(sys.argv[1]))
assert lock.acquire()
print(flush=True)
time.sleep(600)
"""


def test_an_up_that_only_prepares_is_interrupted(paths: Paths, console: Console) -> None:
    with spawned([sys.executable, "-c", PREPARES, str(paths.run)]) as child:
        read_line(child)
        assert local.stop(paths, console)
        assert child.wait() == -signal.SIGINT


def test_a_holder_that_handed_the_lock_on_is_not_signalled(
    paths: Paths, lock: RunLock, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock names the `up` that took it; once that has ended, its number may be anybody's."""
    holder = {"process": {"pid": os.getpid(), "started": 1}, "since": 1.0}
    (paths.run / "lock").write_text(json.dumps(holder))
    monkeypatch.setattr(processes, "send", lambda pids, number: [pytest.fail("sent") for _ in pids])
    assert not local.stop(paths, console)


def test_a_home_that_never_ran_stays_untouched(tmp_path: Path, console: Console) -> None:
    empty = Paths(home=tmp_path / "none", storage=tmp_path)
    assert not local.stop(empty, console)
    assert not empty.home.exists()


def test_clean_up_finds_what_carries_the_mark(paths: Paths, prefix: str) -> None:
    segment = SHM / "sovereign-1-tiny-region"
    segment.touch()
    environment = {**os.environ, **local.mark(paths.home)}
    with spawned(["/bin/sleep", "600"], env=environment) as child:
        wait_for(lambda: processes.marked(paths.home), "the mark")
        write_state(paths, status("ready", NOBODY), supervisor=NOBODY)
        assert local.clean_up(paths) == 1
        assert child.wait() == -signal.SIGKILL
    assert not segment.exists()


def test_the_holder_itself_is_not_interrupted_when_it_cleans_up(
    paths: Paths, lock: RunLock, console: Console
) -> None:
    """An `up` whose supervisor was killed holds the lock while it ends what is left."""
    environment = {**os.environ, **local.mark(paths.home)}
    with spawned(["/bin/sleep", "600"], env=environment) as child:
        wait_for(lambda: processes.marked(paths.home), "the mark")
        write_state(paths, status("ready", NOBODY), supervisor=NOBODY)
        assert local.stop(paths, console)
        assert child.wait() == -signal.SIGKILL
