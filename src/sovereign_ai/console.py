"""The one place that prints.

Results go to standard output, everything else (progress, notes, errors) to standard error, so that
`--json` output and pipes stay clean. Off a terminal, progress becomes one plain line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from sovereign_ai.errors import SovereignError

PLAIN_INTERVAL_S = 5.0
"""Off a terminal a progress line is printed at most this often: often enough to see life in a CI log."""


class Progress(Protocol):
    """What long work reports to. `done` and `total` in the unit the work was started with."""

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        pass


def human_bytes(count: float) -> str:
    """1536 → '1.5 KiB'. Binary units, one decimal above KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """75 → '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


class _Plain:
    """Progress off a terminal: a line now and then, and one at the end."""

    def __init__(self, out: RichConsole, label: str, total: int | None, unit: str) -> None:
        self._out, self._label, self._total, self._unit = out, label, total, unit
        self._started = self._printed = time.monotonic()
        self._line(0, "")

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self._total = total if total is not None else self._total
        now = time.monotonic()
        if now - self._printed >= PLAIN_INTERVAL_S:
            self._printed = now
            self._line(done, note or "")

    def _line(self, done: int, note: str) -> None:
        elapsed = time.monotonic() - self._started
        left = ""
        if self._total and 0 < done < self._total:
            left = f", {human_seconds(elapsed * (self._total - done) / done)} left"
        parts = [self._label, self._amount(done) + left if self._total else f"{elapsed:.0f} s", note]
        self._out.print("  ".join(part for part in parts if part), highlight=False, soft_wrap=True, markup=False)

    def _amount(self, done: int) -> str:
        if self._unit == "bytes":
            return f"{human_bytes(done)} of {human_bytes(self._total or 0)}"
        return f"{done} of {self._total} {self._unit}"


class _Bar:
    """Progress on a terminal."""

    def __init__(self, progress: RichProgress, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        fields: dict[str, Any] = {} if note is None else {"note": note}
        if total is not None:
            fields["total"] = total
        self._progress.update(self._task, completed=done, **fields)


def _columns(unit: str, total: int | None) -> list[ProgressColumn]:
    head: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
    note = TextColumn("[dim]{task.fields[note]}")
    if total is None:
        return [*head, TimeElapsedColumn(), note]
    if unit == "bytes":
        return [*head, BarColumn(24), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(), note]
    return [*head, BarColumn(24), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(), note]


class Console:
    """Tables, progress, errors. With `json=True` nothing but `data()` reaches standard output."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._out = RichConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line of the result (standard output; silent with --json)."""
        if not self.json:
            self._out.print(text, style=style or None, markup=False)

    def note(self, text: str) -> None:
        """A line beside the result (standard error)."""
        self._err.print(text, style="dim" if self._err.is_terminal else None, markup=False)

    def raw(self, text: str) -> None:
        """Text as it comes, without a newline: streamed answers and followed logs."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def data(self, value: Any) -> None:
        """One JSON document on standard output."""
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result. Cells are plain text."""
        if self.json:
            return
        table = Table(title=Text(title, style="bold"), title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        width = None if self._out.is_terminal else 140
        self._out.print(table, width=width)

    def error(self, error: SovereignError) -> None:
        """What was wrong, and what to do."""
        self._err.print(Text("error: ", style="bold red") + Text(error.message))
        if error.hint:
            self._err.print(Text("  → " + error.hint))

    @contextmanager
    def progress(self, label: str, *, total: int | None = None, unit: str = "bytes") -> Iterator[Progress]:
        """Progress of work that takes a while; `total` None where it is not known."""
        if not self._err.is_terminal:
            yield _Plain(self._err, label, total, unit)
            return
        with RichProgress(*_columns(unit, total), console=self._err, transient=True) as progress:
            yield _Bar(progress, progress.add_task(label, total=total, note=""))
