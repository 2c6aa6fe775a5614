"""Runs a stack's services and keeps them running: one small process, no threads, nothing to install.

Each service leads a session of its own. When one ends, whatever it started is ended too, its shared memory is
removed, and it is started again after a pause that doubles. A service that ends before it was ever ready is
`failed` and stays down: starting it again would fail again, and a person should see why.
"""

from __future__ import annotations

import http.client
import logging
import os
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from sovereign_ai.deploy import processes, sharedmemory
from sovereign_ai.deploy.processes import ProcessId
from sovereign_ai.deploy.state import (
    RunSpec,
    RunState,
    Service,
    ServiceState,
    ServiceStatus,
    remember_loads,
    write_json,
)
from sovereign_ai.engines import triton
from sovereign_ai.errors import SovereignError

TICK_S = 0.1
"""How often children are looked at: a killed service is seen within this."""

PROBE_INTERVAL_S = 0.25
"""How often a service that is not ready yet is asked."""

READY_PROBE_INTERVAL_S = 5.0
"""How often a ready one is: its end is seen without asking, only a hang is not; and every millisecond spent
here is missing in an engine that computes on the same cores."""

PROBE_TIMEOUT_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pause before a restart: at once for a single crash, never a busy loop for a service that keeps dying."""

STABLE_S = 60.0
"""A service that was ready this long starts again with the first pause."""

SEGMENTS_INTERVAL_S = 60.0
"""How often shared memory is noted again: it is made while loading, and a look takes tens of milliseconds."""

LOG_TAIL_BYTES = 64 * 1024
STRAYS_S = 1.0
"""How long processes that left their service's session are given to go after SIGKILL, at the end."""

log = logging.getLogger(__name__)


class Supervised:
    """One service and what is known of its running copy."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.status = ServiceStatus(name=service.name, state="stopped", log=service.log)
        self.child: subprocess.Popen[bytes] | None = None
        self.was_ready = False
        self.start_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._next_probe = self._next_note = 0.0
        self._log_from = 0
        self._family: set[ProcessId] = set()

    def start(self) -> None:
        self._turn("starting" if not self.was_ready else "restarting")
        try:
            self._launch()
        except OSError as error:
            self._ended(f"cannot be started: {error}", time.monotonic())

    def _launch(self) -> None:
        with Path(self.service.log).open("ab") as output:
            self._log_from = output.tell()
            self.child = subprocess.Popen(
                self.service.command,
                cwd=self.service.folder,
                env=self.service.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.status.process = processes.identify(self.child.pid)
        self.status.sessions = [*self.status.sessions[-3:], self.status.process]

    def look(self, now: float) -> bool:
        """Take note of what happened since the last look; True where something did."""
        if self.child is None:
            return self._start_when_due(now)
        code = self.child.poll()
        if code is not None:
            self._ended(self._describe_end(code), now)
            return True
        if broken := self._broken_family():
            self._ended(broken, now)
            return True
        return self._probe(now)

    def _start_when_due(self, now: float) -> bool:
        if self.status.state != "restarting" or now < self.start_at:
            return False
        self.status.restarts += 1
        self.start()
        return True

    def _broken_family(self) -> str:
        if not self.service.watch_descendants or self.status.state == "starting":
            return ""
        lost = [member.pid for member in self._family if not processes.is_alive(member)]
        return f"lost its worker process {lost[0]}" if lost else ""

    def _probe(self, now: float) -> bool:
        if now < self._next_probe or self.child is None:
            return False
        ready = self.status.state == "ready"
        self._next_probe = now + (READY_PROBE_INTERVAL_S if ready else PROBE_INTERVAL_S)
        answers = all(answers_ok(url) for url in self.service.ready_urls)
        if answers and not ready:
            self._became_ready()
            return True
        if ready and not answers:
            self._turn("unhealthy")
            return True
        if now < self._next_note:
            return False
        self._next_note = now + SEGMENTS_INTERVAL_S
        return self._note_segments()

    def _became_ready(self) -> None:
        if self.status.state != "unhealthy":
            self.status.load_s = time.time() - self.status.since
        self.was_ready = True
        self.status.error = ""
        self._turn("ready")
        if self.child is not None:
            self._family = processes.descendants(self.child.pid)
        self._note_segments()

    def _note_segments(self) -> bool:
        if self.child is None:
            return False
        mapped = sharedmemory.mapped_by({self.child.pid, *self.members()})
        segments = sorted(mapped | set(self.status.segments))
        changed = segments != self.status.segments
        self.status.segments = segments
        return changed

    def _ended(self, why: str, now: float) -> None:
        self.status.error = why
        stable = self.status.state == "ready" and time.time() - self.status.since > STABLE_S
        self.clean_up()
        if not self.was_ready:
            self._turn("failed")
            return
        self._pause_s = FIRST_PAUSE_S if stable else self._pause_s
        self.start_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._turn("restarting")

    def _describe_end(self, code: int) -> str:
        if code < 0:
            return f"ended by {_signal_name(-code)}"
        return f"ended with exit code {code}: {triton.failure_line(self._last_words())}"

    def _last_words(self) -> list[str]:
        try:
            with Path(self.service.log).open("rb") as output:
                output.seek(max(self._log_from, output.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return output.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def members(self) -> set[int]:
        """Living processes of this service, its orphans included."""
        family = {member.pid for member in self._family if processes.is_alive(member)}
        below = {p.pid for p in processes.descendants(self.child.pid)} if self.child else set()
        return family | below | processes.in_sessions(self.status.sessions)

    def ask_to_stop(self) -> None:
        """SIGTERM where it can be heard: a Triton that still loads has no handler for it yet."""
        if self.child is not None and self.child.poll() is None:
            heard = self.status.state in ("ready", "unhealthy")
            processes.send([self.child.pid], signal.SIGTERM if heard else signal.SIGKILL)

    def clean_up(self) -> None:
        """End every process of this service and remove its shared memory."""
        self._note_segments()
        members = self.members()
        processes.send(members, signal.SIGKILL)
        processes.wait_gone(members, self.service.grace_s)
        if self.child is not None:
            self.child.wait()
            members.add(self.child.pid)
        processes.reap(members)
        prefixes = [self.service.shm_prefix] if self.service.shm_prefix else []
        sharedmemory.remove_left_over(self.status.segments, prefixes, members)
        self.status.segments, self.status.process = [], None
        self.child, self._family = None, set()

    def _turn(self, state: ServiceState) -> None:
        self.status.state, self.status.since = state, time.time()
        log.info("%s: %s %s", self.service.name, state, self.status.error)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Supervisor:
    """The loop around the services."""

    def __init__(self, spec: RunSpec, run: Path) -> None:
        self._spec, self._run = spec, run
        self._services = [Supervised(service) for service in spec.services]
        self._stop = False
        self._state = RunState(
            run_id=spec.run_id,
            supervisor=processes.identify(os.getpid()),
            gateway_url=spec.gateway_url,
            started_at=time.time(),
            services=[supervised.status for supervised in self._services],
        )

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then stop everything in order."""
        processes.become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        write_json(self._run / "state.json", self._state)
        for supervised in self._services:
            supervised.start()
        self._save()
        while not self._stop:
            self._turn_once()
            time.sleep(TICK_S)
        self._shut_down()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _turn_once(self) -> None:
        before = {s.service.name: s.status.state for s in self._services}
        looks = [supervised.look(time.monotonic()) for supervised in self._services]
        processes.reap_orphans({s.child.pid for s in self._services if s.child})
        if not any(looks):
            return
        for supervised in self._services:
            status = supervised.status
            if status.state == "ready" and before[status.name] != "ready" and status.load_s:
                with _surviving_a_full_disk():
                    remember_loads(self._run / "loads.json", {status.name: status.load_s})
        self._save()

    def _shut_down(self) -> None:
        self._state.stopping = True
        self._save()
        for supervised in self._services:
            supervised.ask_to_stop()
            self._wait_for(supervised)
            supervised.clean_up()
            supervised.status.state = "stopped"
            self._save()
        strays = {stray.pid for stray in processes.descendants(os.getpid())}
        processes.send(strays, signal.SIGKILL)
        processes.wait_gone(strays, STRAYS_S)
        (self._run / "state.json").unlink(missing_ok=True)

    def _wait_for(self, supervised: Supervised) -> None:
        if supervised.child is None:
            return
        try:
            supervised.child.wait(supervised.service.grace_s)
        except subprocess.TimeoutExpired:
            return

    def _save(self) -> None:
        with _surviving_a_full_disk():
            write_json(self._run / "state.json", self._state)


@contextmanager
def _surviving_a_full_disk() -> Iterator[None]:
    """What is written down serves people; the services run on without it."""
    try:
        yield
    except (SovereignError, OSError) as error:
        log.warning("the run state is not written: %s", error)


_DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    # Only ever this machine is asked, under a name that its certificate need not have.
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),  # noqa: S323
)
"""Never through the proxy that the environment may name: the services are on this machine."""


def answers_ok(url: str) -> bool:
    """True where a GET of the URL is answered with 200."""
    try:
        with _DIRECT.open(url, timeout=PROBE_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def supervise(run: Path, *, die_with_parent: bool) -> None:
    """Entry of the supervisor process: run/spec.json says what to run."""
    if die_with_parent:
        processes.die_with_parent(signal.SIGTERM)
    spec = msgspec.json.decode((run / "spec.json").read_bytes(), type=RunSpec)
    Supervisor(spec, run).run()
