"""pip as a child process: the one way by which packages come in.

pip is run, not imported, so the person's own configuration (index, proxy, certificates, links) holds, and a
child can be ended at any moment.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sovereign_ai.config import environment
from sovereign_ai.errors import NoSpace, SovereignError

KEPT_LINES = 40
"""Lines of pip's output that are kept to explain a failure."""

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)\s*")  # pip's --progress-bar raw


class PipFailed(SovereignError):
    """pip gave up; `lines` are its last words."""

    exit_code = 69

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        self.said = (errors or [line for line in lines if line] or [f"exit status {status}"])[-1]
        self.unreachable = any("Retrying (" in line for line in lines)
        super().__init__(f"pip: {self.said}", self.advice)

    @property
    def advice(self) -> str:
        if self.unreachable:
            return "the package index cannot be reached: check the network, the proxy and pip's settings"
        return "check the index that pip is set up to use"


def run_pip(
    arguments: Sequence[str],
    folder: Path,
    *,
    on_bytes: Callable[[int, int], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    python: Path | None = None,
) -> None:
    """Run `pip ARGUMENTS` to the end; `python` is the interpreter of another environment to work on.

    `on_bytes` gets (done, total) of the file that is being downloaded, `on_line` every other line. `folder`
    takes pip's temporary files. Raises PipFailed or NoSpace; the child ends with the call, however it ends.
    """
    command = [sys.executable, "-P", "-m", "pip", *(["--python", str(python)] if python else [])]
    command += [*arguments, "--no-input", "--disable-pip-version-check"]
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    with _running(command, folder) as child:
        for line in child.stdout or ():
            if found := _PROGRESS.fullmatch(line):
                if on_bytes:
                    on_bytes(int(found[1]), int(found[2]))
                continue
            lines.append(line.strip())
            if on_line:
                on_line(line.strip())
        status = child.wait()
    if status != 0:
        raise _failure(status, list(lines), folder)


def _failure(status: int, lines: list[str], folder: Path) -> PipFailed | NoSpace:
    failed = PipFailed(status, lines)
    if "[Errno 28]" in failed.said:  # ENOSPC, in pip's words
        return NoSpace(
            f"no space left: {failed.said} ({folder})", "free some space; what was complete is kept"
        )
    return failed


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A child in a session of its own: Ctrl-C reaches this process alone, which then ends the child."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(), "TMPDIR": str(folder)},
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()
