"""Runs the scripts of this folder, which use the official JavaScript clients unchanged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
MODULES = FOLDER / "node_modules"
LEAST_NODE = 20
INSTALL_TIMEOUT_S = 300
CASE_TIMEOUT_S = 120


class NoNode(Exception):
    """The scripts cannot run on this machine; the message says why."""


class Scripts(NamedTuple):
    """An installed set of clients."""

    node: str

    def run(self, script: str, case: str, **given: Any) -> Any:
        """What the case found. Raises AssertionError with what it said where it fails."""
        done = subprocess.run(
            [self.node, str(FOLDER / script), case],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=CASE_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def installed() -> Scripts:
    """The clients as package-lock.json has them, installed once for each state of it. Raises NoNode."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NoNode("node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < LEAST_NODE:
        raise NoNode(f"node {LEAST_NODE} or newer is needed, this is {version}")
    # several test processes come here at once
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(npm)
    return Scripts(node)


def _install(npm: str) -> None:
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = MODULES / ".installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stamp.write_text(wanted)
