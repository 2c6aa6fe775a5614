"""A plan on this machine without Kubernetes: what to run, and starting, watching and stopping it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sovereign_ai.config import GatewaySettings, Paths, encode_gateway
from sovereign_ai.console import Console
from sovereign_ai.deploy import processes, sharedmemory
from sovereign_ai.deploy.processes import HOME_MARK, ProcessId
from sovereign_ai.deploy.state import (
    RunLock,
    RunSpec,
    RunState,
    Service,
    ServiceStatus,
    last_load_seconds,
    read_state,
    write_json,
)
from sovereign_ai.engines import triton
from sovereign_ai.engines.environment import EngineEnvironment
from sovereign_ai.errors import DeployError, EngineFailed, PortTaken, disk_errors
from sovereign_ai.render import TritonProcess

GATEWAY_GRACE_S = 3.0
TRITON_GRACE_S = 3.5
STOP_BUDGET_S = 9.0
"""Together below ten seconds, which is what a person at Ctrl-C is promised."""

WATCH_INTERVAL_S = 0.2


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def check_port(host: str, port: int) -> None:
    """Raise PortTaken, naming who listens, or DeployError where the address is not ours to listen on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, port))
        except PermissionError as error:
            raise PortTaken(
                f"no permission to listen on {host}:{port}", "choose a port of 1024 or more"
            ) from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise DeployError(
                    f"cannot listen on {host}:{port}: {error}", "choose another host"
                ) from error
            raise PortTaken(
                f"port {port} of {host} is taken by {processes.listener(port) or 'another program'}",
                "stop it, or choose another port with --port",
            ) from error


def write_repository(run: Path, process: TritonProcess) -> Path:
    """Write a Triton model repository anew under run/repositories."""
    root = run / "repositories" / process.name
    shutil.rmtree(root, ignore_errors=True)
    with disk_errors("writing the model repository", root):
        for name, content in process.files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return root


def triton_service(
    process: TritonProcess,
    environment: EngineEnvironment,
    paths: Paths,
    *,
    ports: tuple[int, int],
    run_id: str,
    variables: Mapping[str, str],
) -> Service:
    """The service that runs one rendered Triton process. `ports` are HTTP and metrics."""
    http_port, metrics_port = ports
    prefix = f"sovereign-{run_id}-{process.name}-"
    backends = environment.make_backends(paths.run / "backends")
    extra = {
        **triton.cpu_variables(sorted(os.sched_getaffinity(0)), str(environment.venv)),
        **mark(paths.home),
    }
    return Service(
        name=process.name,
        command=tuple(
            triton.command(
                str(environment.tritonserver),
                repository=str(write_repository(paths.run, process)),
                backends=str(backends),
                http_port=http_port,
                metrics_port=metrics_port,
                shm_prefix=prefix,
            )
        ),
        environment=triton.merged_environment(variables, extra, environment.library_path),
        folder=str(environment.stub_folder),
        log=str(paths.logs / f"{process.name}.log"),
        ready_urls=tuple(
            f"http://127.0.0.1:{http_port}{triton.readiness_path(model)}" for model in process.models
        ),
        grace_s=TRITON_GRACE_S,
        watch_descendants=True,
        shm_prefix=prefix,
    )


def gateway_service(paths: Paths, settings: GatewaySettings, variables: Mapping[str, str]) -> Service:
    """The service that runs the gateway on run/routes.json."""
    command = [sys.executable, "-m", "sovereign_ai", "gateway"]
    command += ["--routes", str(paths.run / "routes.json"), "--ledger", str(paths.ledger)]
    command += ["--settings", encode_gateway(settings)]
    return Service(
        name="gateway",
        command=tuple(command),
        environment={**variables, **mark(paths.home)},
        folder=str(paths.home),
        log=str(paths.logs / "gateway.log"),
        ready_urls=(f"{gateway_url(settings)}/readyz",),
        grace_s=GATEWAY_GRACE_S,
    )


def gateway_url(settings: GatewaySettings) -> str:
    """Where a client on this machine reaches the gateway."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    host = loopback.get(settings.host, settings.host)
    scheme = "https" if settings.tls else "http"
    return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"


def mark(home: Path) -> dict[str, str]:
    """The mark by which a stack's processes are found again."""
    return {HOME_MARK: str(home)}


def rotate_logs(logs: Path, names: Sequence[str]) -> None:
    """Begin new logs; the last run's are kept as NAME.log.1."""
    with disk_errors("preparing the logs", logs):
        logs.mkdir(parents=True, exist_ok=True)
        for name in names:
            current = logs / f"{name}.log"
            if current.exists():
                current.replace(logs / f"{name}.log.1")
            current.touch()


def start_supervisor(
    paths: Paths, spec: RunSpec, lock: RunLock, variables: Mapping[str, str], *, foreground: bool
) -> subprocess.Popen[bytes]:
    """Start the supervisor, which takes over the lock. In the foreground it ends with this process."""
    write_json(paths.run / "spec.json", spec)
    assert lock.descriptor is not None  # noqa: S101  the caller holds the lock, or nothing may be started
    command = [sys.executable, "-m", "sovereign_ai", "supervise", str(paths.run)]
    with (paths.logs / "supervisor.log").open("ab") as output:
        return subprocess.Popen(
            [*command, "--die-with-parent"] if foreground else command,
            cwd=paths.home,
            env={**variables, **mark(paths.home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.descriptor,),
        )


def wait_until_ready(paths: Paths, supervisor: subprocess.Popen[bytes], console: Console) -> RunState:
    """Show how far loading is until every service is ready.

    Raises EngineFailed with the line of the log that says why, and the log's path.
    """
    usual = last_load_seconds(paths.run / "loads.json")
    expected = int(max(usual.values(), default=0))
    started = time.monotonic()
    with console.progress(
        "starting the engines", total=expected or None, unit="s of the usual load"
    ) as progress:
        while True:
            state = read_state(paths.run)
            if state is not None:
                _raise_failed(state)
                if state.services and all(service.state == "ready" for service in state.services):
                    return state
            if supervisor.poll() is not None:
                log = paths.logs / "supervisor.log"
                raise EngineFailed(f"the supervisor ended: {_last_line(log)}", f"see {log}")
            seconds = int(time.monotonic() - started)
            progress.update(min(seconds, expected) if expected else seconds, note=_loading_note(state))
            time.sleep(WATCH_INTERVAL_S)


def _raise_failed(state: RunState) -> None:
    for service in state.services:
        if service.state == "failed":
            raise EngineFailed(f"{service.name} {service.error}", f"the whole log: {service.log}")


def _loading_note(state: RunState | None) -> str:
    if state is None:
        return ""
    waiting = [service for service in state.services if service.state != "ready"]
    notes = [note for service in waiting if (note := _latest_progress(Path(service.log)))]
    return "; ".join(notes) or ", ".join(service.name for service in waiting)


def _latest_progress(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    notes = (triton.progress_line(line) for line in reversed(lines))
    return next((note for note in notes if note), "")


def _last_line(log: Path) -> str:
    try:
        return triton.failure_line(log.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return "no log was written"


def running(paths: Paths) -> RunState | None:
    """The state of a stack whose supervisor lives; None otherwise."""
    state = read_state(paths.run)
    return state if state and processes.is_alive(state.supervisor) else None


def stop(paths: Paths, console: Console) -> bool:
    """Stop whatever runs for this home folder, supervised or not. True where something was stopped."""
    state = read_state(paths.run)
    stopped = False
    if state is not None and processes.is_alive(state.supervisor):
        stopped = True
        _stop_supervisor(state.supervisor, console)
    elif interrupted := _interrupt_preparation(paths):
        stopped = interrupted
    return bool(clean_up(paths)) or stopped


def _stop_supervisor(supervisor: ProcessId, console: Console) -> None:
    processes.send([supervisor.pid], signal.SIGTERM)
    deadline = time.monotonic() + STOP_BUDGET_S
    with console.progress("stopping", total=None, unit="s") as progress:
        while processes.is_alive(supervisor) and time.monotonic() < deadline:
            progress.update(0)
            time.sleep(WATCH_INTERVAL_S / 2)
    if processes.is_alive(supervisor):
        processes.send([supervisor.pid], signal.SIGKILL)
        processes.wait_gone([supervisor.pid], 1.0)


def _interrupt_preparation(paths: Paths) -> bool:
    """Interrupt an `up` that has not started anything yet, as Ctrl-C at its terminal would."""
    holder = RunLock(paths.run).holder() if paths.run.is_dir() else None
    if holder is None or holder.process.pid == os.getpid() or not processes.is_alive(holder.process):
        return False
    processes.send([holder.process.pid], signal.SIGINT)
    processes.wait_gone([holder.process.pid], STOP_BUDGET_S)
    return True


def clean_up(paths: Paths) -> int:
    """End what a crashed run left behind: processes, shared memory, state. Returns how many processes."""
    state = read_state(paths.run)
    services: list[ServiceStatus] = state.services if state else []
    leaders = [session for service in services for session in service.sessions]
    left = (processes.marked(paths.home) | processes.in_sessions(leaders)) - {os.getpid()}
    segments = {name for service in services for name in service.segments} | sharedmemory.mapped_by(left)
    processes.send(left, signal.SIGKILL)
    processes.wait_gone(left, STOP_BUDGET_S)
    if state is not None:
        prefixes = [f"sovereign-{state.run_id}-"]
        dead = left | {session.pid for session in leaders}
        sharedmemory.remove_left_over(segments, prefixes, dead)
        (paths.run / "state.json").unlink(missing_ok=True)
    return len(left)


class ServiceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One service as `status` shows it: what the process table says now, not what was written last."""

    name: str
    state: str
    pid: int | None
    restarts: int
    since: float
    error: str
    log: str


class StackReport(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: stopped, starting, ready, degraded or crashed (the supervisor is gone)."""

    state: str
    gateway_url: str | None = None
    supervisor_pid: int | None = None
    started_at: float | None = None
    services: tuple[ServiceReport, ...] = ()


def report(paths: Paths) -> StackReport:
    """What runs for this home folder, checked against the process table."""
    state = read_state(paths.run)
    if state is None:
        return StackReport(state="stopped")
    supervised = processes.is_alive(state.supervisor)
    services = tuple(_report_service(service, supervised=supervised) for service in state.services)
    return StackReport(
        state=_overall([service.state for service in services], supervised=supervised),
        gateway_url=state.gateway_url,
        supervisor_pid=state.supervisor.pid if supervised else None,
        started_at=state.started_at,
        services=services,
    )


def _overall(states: Sequence[str], *, supervised: bool) -> str:
    if not supervised:
        return "crashed"
    if all(state == "ready" for state in states):
        return "ready"
    return "starting" if set(states) <= {"starting", "ready"} else "degraded"


def _report_service(service: ServiceStatus, *, supervised: bool) -> ServiceReport:
    alive = service.process is not None and processes.is_alive(service.process)
    state: str = service.state
    if not alive and state in ("ready", "starting", "unhealthy"):
        state = "dead, restarting" if supervised else "dead"
    elif alive and not supervised:
        state = f"{state}, unsupervised"
    return ServiceReport(
        name=service.name,
        state=state,
        pid=service.process.pid if alive and service.process else None,
        restarts=service.restarts,
        since=service.since,
        error=service.error,
        log=service.log,
    )
