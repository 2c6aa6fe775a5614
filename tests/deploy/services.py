"""Tiny real services: a child of this Python that answers readiness, and what goes wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sovereign_ai.deploy import local, processes
from sovereign_ai.deploy.state import Service

DEADLINE_S = 30.0
"""How long a test waits for what must come; far beyond what it takes."""

SERVER = """
import os, signal, socket, subprocess, sys, time
port, mode, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def note(name, pid):
    with open(os.path.join(folder, "." + name), "w") as file:
        file.write(str(pid))
    os.rename(os.path.join(folder, "." + name), os.path.join(folder, name))

def grandchild(name, code, **options):
    note(name, subprocess.Popen([sys.executable, "-S", "-c", code], **options).pid)

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
if "grandchild" in mode:
    grandchild("grandchild", STUBBORN)
if "daemon" in mode:
    grandchild("daemon", STUBBORN, start_new_session=True)
if "brief" in mode:
    # a helper whose parent is gone already when it ends
    subprocess.run(["/bin/sh", "-c", "sleep 0.3 & echo $! > " + os.path.join(folder, "brief")])
if "segment" in mode:
    open("/dev/shm/" + sys.argv[4] + "region", "w").write("x")
if "fails" in mode:
    print("ValueError: no such model: tiny", flush=True)
    sys.exit(1)
if "once" in mode and os.path.exists(os.path.join(folder, "started")):
    print("OSError: gone for good", flush=True)
    sys.exit(3)
note("started", os.getpid())
listener = socket.create_server(("127.0.0.1", port))
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    status = b"503 No" if os.path.exists(os.path.join(folder, "sick")) else b"200 OK"
    answer = b"HELLO\\r\\n" if "babble" in mode else b"HTTP/1.0 " + status + b"\\r\\n\\r\\n"
    connection.sendall(answer)
    connection.close()
"""


def make_service(
    folder: Path, mode: str = "", *, name: str = "tiny", watch: bool = False, prefix: str = ""
) -> Service:
    """A service of the given mode; it leaves the numbers of its processes in `folder`."""
    (port,) = local.free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-S", "-c", SERVER, str(port), mode, str(folder), prefix)
    return Service(
        name=name,
        command=command,
        environment={**os.environ, **local.mark(folder)},
        folder=str(folder),
        log=str(folder / f"{name}.log"),
        ready_urls=(f"http://127.0.0.1:{port}/ready",),
        grace_s=2.0,
        watch_descendants=watch,
        shm_prefix=prefix,
    )


@contextmanager
def ending(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process has ended when the block has, however that ends."""
    with child:
        try:
            yield child
        finally:
            child.kill()


def spawned(command: Sequence[str], **options: Any) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A process that ends with the block; its output can be read."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    return ending(child)


def read_line(child: subprocess.Popen[bytes]) -> bytes:
    """The next line that the process writes."""
    assert child.stdout
    return bytes(child.stdout.readline())


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def pid_in(file: Path) -> int:
    """The number that a process left in a file."""
    wait_for(lambda: file.exists() and file.read_text().strip(), str(file))
    return int(file.read_text())


def gone(pid: int) -> bool:
    """True once the process has ended; its parent may still have to collect it."""
    entry = processes.read_entry(pid)
    return entry is None or not entry.alive
