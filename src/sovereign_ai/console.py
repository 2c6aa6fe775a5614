"""The one place that prints.

Results go to standard output, everything else (progress, notes, errors) to standard error, so that
`--json` output and pipes stay clean. Off a terminal, progress becomes one plain line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TextIO

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from sovereign_ai.errors import SovereignError, UsageError

PLAIN_INTERVAL_S = 5.0
"""Off a terminal a progress line is printed at most this often: often enough to see life in a CI log."""

OFF_TTY_WIDTH = 100_000
"""Characters. Off a terminal nothing is folded: a row of a table is one line, for grep and for logs."""

BAR_WIDTH, BAR_WIDTH_LEAST = 48, 16
"""Characters of a bar: at most, and where the terminal is narrow. Off a terminal: at most."""


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


def as_json(value: Any) -> bytes:
    """One JSON document as a person reads it, two spaces an indent."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


class Bar(NamedTuple):
    """A stacked bar: `shares` of the whole, one for each kind of content; the rest is free."""

    label: str
    shares: tuple[float, ...]
    note: str = ""


def _cells(bar: Bar, kinds: Sequence[tuple[str, str, str]], width: int) -> Text:
    """Letters, on their color where there are colors. Never longer than `width`; the ends of the parts are
    rounded, not their lengths, so that errors do not add up."""
    cells, done = Text(), 0.0
    for (letter, color, _), share in zip(kinds, bar.shares, strict=True):
        start, done = round(done * width), min(1.0, done + max(0.0, share))
        cells.append(letter * (round(done * width) - start), style=f"black on {color}")
    return cells.append("·" * (width - len(cells)))


class _Plain:
    """Progress off a terminal: a line at the start, one now and then, and one at the end."""

    def __init__(
        self, out: RichConsole, label: str, total: int | None, unit: str, *, even: bool = True
    ) -> None:
        self._out, self._label, self._total, self._unit, self._even = out, label, total, unit, even
        self._done, self._note = 0, ""
        self._started = self._printed = time.monotonic()
        self._line()

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self._done = done
        self._total = self._total if total is None else total
        self._note = self._note if note is None else note
        if time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._line()

    def finish(self) -> None:
        self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        parts = [self._label, self._amount(self._printed - self._started), self._note]
        self._out.print("  ".join(part for part in parts if part), soft_wrap=True, markup=False)

    def _amount(self, elapsed: float) -> str:
        if not self._total:
            return f"{elapsed:.0f} s"
        left = ""
        if self._even and 0 < self._done < self._total:
            left = f", {human_seconds(elapsed * (self._total - self._done) / self._done)} left"
        if self._unit == "bytes":
            return f"{human_bytes(self._done)} of {human_bytes(self._total)}{left}"
        return f"{self._done} of {self._total} {self._unit}{left}"


class _Bar:
    """Progress on a terminal."""

    def __init__(self, progress: RichProgress, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        fields: dict[str, Any] = {} if note is None else {"note": note}
        if total is not None:
            fields["total"] = total
        self._progress.update(self._task, completed=done, **fields)


class _SpeedColumn(ProgressColumn):
    """Bytes a second in the binary units of everything else (rich's own column counts in thousands)."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{human_bytes(speed)}/s" if speed else "", style="progress.data.speed")


def _columns(unit: str, total: int | None, *, even: bool) -> list[ProgressColumn]:
    note = TextColumn("{task.fields[note]}", style="dim", markup=False)
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    if total is None:
        return [*columns, TimeElapsedColumn(), note]
    columns.append(BarColumn(24))
    if unit == "bytes":
        columns += [DownloadColumn(binary_units=True), _SpeedColumn()]
    else:
        columns += [MofNCompleteColumn(), TextColumn(unit, markup=False)]
    return [*columns, TimeRemainingColumn() if even else TimeElapsedColumn(), note]


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else OFF_TTY_WIDTH


class Console:
    """Tables, progress, errors. With `json=True` nothing but `data()` reaches standard output."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._out = RichConsole(highlight=False, emoji=False, width=_width(sys.stdout))
        self._err = RichConsole(stderr=True, highlight=False, emoji=False, width=_width(sys.stderr))

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line of the result (standard output; silent with --json). The terminal may wrap it, we do not:
        a line that is meant to be pasted must stay one line."""
        if not self.json:
            self._out.print(text, style=style or None, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line beside the result (standard error)."""
        self._err.print(text, style="dim" if self._err.is_terminal else None, markup=False)

    def raw(self, text: str) -> None:
        """Text as it comes, without a newline: streamed answers and followed logs (silent with --json)."""
        if not self.json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def data(self, value: Any) -> None:
        """One JSON document on standard output."""
        sys.stdout.write(as_json(value).decode())
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result. Cells are plain text."""
        if self.json:
            return
        self._out.print(Text(title, style="bold"))
        if not sys.stdout.isatty():
            self._plain_rows([columns, *rows])
            return
        table = Table(header_style="bold")
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table)

    def _plain_rows(self, rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
        for row in rows:
            cells = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
            self.say("  ".join(cells).rstrip())

    def bars(self, title: str, bars: Sequence[Bar], kinds: Sequence[tuple[str, str, str]]) -> None:
        """Stacked bars of the result, one a row, and what their letters mean.

        `kinds` are (letter, color, words), in the order of each bar's shares. What no bar has is not
        explained.
        """
        if self.json or not bars:
            return
        self._out.print(Text(title, style="bold"))
        beside = max(cell_len(bar.label) + cell_len(bar.note) for bar in bars) + 3
        width = min(BAR_WIDTH, max(BAR_WIDTH_LEAST, self._out.width - beside))
        label = max(cell_len(bar.label) for bar in bars)
        for bar in bars:
            row = Text.assemble(
                set_cell_size(bar.label, label), " ", _cells(bar, kinds, width), "  ", bar.note
            )
            self._out.print(row, soft_wrap=True)
        seen = [kind for at, kind in enumerate(kinds) if any(bar.shares[at] > 0 for bar in bars)]
        legend = [Text.assemble((letter, f"black on {color}"), f" {words}") for letter, color, words in seen]
        self._out.print(Text("   ").join([*legend, Text("· free")]))

    def confirm(self, question: str) -> bool:
        """Whether a person says yes. Raises UsageError where there is none to ask."""
        if not sys.stdin.isatty():
            raise UsageError(f"nobody is there to be asked: {question}", "--yes answers yes")
        self._err.print(f"{question} [y/N] ", end="", markup=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def error(self, error: SovereignError) -> None:
        """What was wrong, and what to do."""
        self._err.print(Text.assemble(("error: ", "bold red"), error.message))
        if error.hint:
            self._err.print(Text("  → " + error.hint))

    @contextmanager
    def progress(
        self, label: str, *, total: int | None = None, unit: str = "bytes", even: bool = True
    ) -> Iterator[Progress]:
        """Progress of work that takes a while; `total` None where it is not known. `even`: whether its steps
        take alike, so that the time left can be told from those that are done."""
        # Asked of the stream: rich's own answer is yes wherever FORCE_COLOR is set, as in many CI logs.
        if not sys.stderr.isatty() or self._err.is_dumb_terminal:
            plain = _Plain(self._err, label, total, unit, even=even)
            yield plain
            plain.finish()
            return
        with RichProgress(*_columns(unit, total, even=even), console=self._err, transient=True) as progress:
            yield _Bar(progress, progress.add_task(label, total=total, note=""))
