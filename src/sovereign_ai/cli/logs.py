"""Shows and follows the log files of a stack."""

from __future__ import annotations

import difflib
import time
from collections import deque
from pathlib import Path

from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError

FOLLOW_INTERVAL_S = 0.2


def show(folder: Path, console: Console, name: str | None, *, lines: int, follow: bool) -> None:
    """The last `lines` of one log or of all; with `follow` until Ctrl-C.

    Raises UsageError for a name that has no log.
    """
    files = _chosen(folder, name)
    label = len(files) > 1
    positions = {file: _show_tail(file, console, lines, label=label) for file in files}
    while follow:
        time.sleep(FOLLOW_INTERVAL_S)
        for file in files:
            positions[file] = _show_added(file, console, positions[file], label=label)


def _chosen(folder: Path, name: str | None) -> list[Path]:
    files = sorted(folder.glob("*.log"))
    if name is None:
        if not files:
            raise UsageError("there are no logs yet", "start the stack: sovereign up")
        return files
    known = {file.stem: file for file in files}
    if name in known:
        return [known[name]]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"logs: {', '.join(known) or 'none yet'}"
    raise UsageError(f"there is no log `{name}`", hint)


def _show_tail(file: Path, console: Console, lines: int, *, label: bool) -> int:
    with file.open(encoding="utf-8", errors="replace") as opened:
        for line in deque(opened, maxlen=max(lines, 0)):
            _show_line(file, console, line, label=label)
        return opened.tell()


def _show_added(file: Path, console: Console, position: int, *, label: bool) -> int:
    """What came since `position`; from the start where the log was begun anew."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return 0
    with file.open(encoding="utf-8", errors="replace") as opened:
        opened.seek(position if size >= position else 0)
        while line := opened.readline():
            _show_line(file, console, line, label=label)
        return opened.tell()


def _show_line(file: Path, console: Console, line: str, *, label: bool) -> None:
    text = line if line.endswith("\n") else line + "\n"
    console.raw(f"{file.stem:<12} {text}" if label else text)
