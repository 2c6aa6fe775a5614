"""The console on a real pseudo-terminal and off one. What a terminal draws from the bytes is not checked."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.console import Bar, Console, Silent, _cells, as_json, human_bytes, human_seconds
from sovereign_ai.errors import ConfigError

SCRIPT = """\
import sys
from sovereign_ai.console import Bar, Console
from sovereign_ai.errors import ConfigError

console = Console(json="--json" in sys.argv)
kinds = [("W", "blue", "weights [x]"), ("K", "green", "cache"), ("N", "red", "never seen")]
rows = [Bar("card 1 [x]", (0.25, 0.5, 0.0), "9 of 12 GiB"), Bar("card 12", (0.0, 0.0, 0.0), "unused")]
console.table("Plan [x]", ["model[a]", "why :smile:"], [["smol [b]", "long " * 40], ["b", "short"]])
console.bars("Memory [x]", rows, kinds)
work = [("fetching [red]x", 3 << 20, "bytes"), ("loading", 4, "files"), ("waiting", None, "")]
for label, total, unit in work:
    with console.progress(label, total=total, unit=unit) as progress:
        progress.update(1, note="[dim]note")
        progress.update(total or 2, total=total)
console.say("said [x] :smile:")
console.raw("raw")
console.note("noted")
console.data({"plan": [1]})
console.error(ConfigError("f.yaml:7: unknown `x` [y]", "did you mean `z`?"))
"""


def environ(**changes: str) -> dict[str, str]:
    quiet = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR")}
    return quiet | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | changes


def off_terminal(*arguments: str, **changes: str) -> tuple[str, str]:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, env=environ(**changes), capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def drain(leader: int) -> str:
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux answers EIO once the last holder of the other side is gone
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()


def on_terminal(*arguments: str, **changes: str) -> str:
    """Everything that the script writes to a terminal, standard output and error together."""
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        child = subprocess.Popen(command, env=environ(**changes), stdout=follower, stderr=follower)
        os.close(follower)
        text = drain(leader)
        assert child.wait() == 0
    finally:
        os.close(leader)
    return text


def test_off_a_terminal_lines_are_plain() -> None:
    out, err = off_terminal()
    row = "smol [b]  " + "long " * 40
    assert out.splitlines()[:9] == [
        "Plan [x]",
        "model[a]  why :smile:",
        row.rstrip(),
        "b         short",
        "Memory [x]",
        f"card 1 [x] {12 * 'W'}{24 * 'K'}{12 * '·'}  9 of 12 GiB",
        f"card 12    {48 * '·'}  unused",
        "W weights [x]   K cache   · free",
        "said [x] :smile:",
    ]
    assert err.splitlines() == [
        "fetching [red]x  0 B of 3.0 MiB",
        "fetching [red]x  3.0 MiB of 3.0 MiB  [dim]note",
        "loading  0 of 4 files",
        "loading  4 of 4 files  [dim]note",
        "waiting  0 s",
        "waiting  0 s  [dim]note",
        "noted",
        "error: f.yaml:7: unknown `x` [y]",
        "  → did you mean `z`?",
    ]


def test_off_a_terminal_no_control_codes_even_where_a_log_wants_colour() -> None:
    """FORCE_COLOR may bring colours; it must not bring a moving cursor."""
    _, err = off_terminal(FORCE_COLOR="1")
    assert "fetching [red]x  0 B of 3.0 MiB" in err
    assert not re.search(r"\x1b\[[0-9;?]*[A-Zhl]|\r", err)


def test_json_leaves_standard_output_to_json() -> None:
    out, err = off_terminal("--json")
    assert json.loads(out) == {"plan": [1]}
    assert "noted" in err


def test_on_a_terminal() -> None:
    text = on_terminal()
    assert "┃" in text
    assert "fetching [red]x" in text
    assert "3.0/3.0 MiB" in text
    assert "4/4" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 3  # the cursor comes back each time
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "said [x] :smile:" in plain
    assert "error: f.yaml:7: unknown `x` [y]" in plain
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 80


def bars_on_terminal(width: int, **changes: str) -> list[str]:
    """The two bars of the script, without their colors."""
    text = on_terminal(COLUMNS=str(width), **changes)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.startswith("card ")]


@pytest.mark.parametrize(("width", "cells"), [(120, 48), (72, 48), (60, 36), (30, 16)])
def test_bars_fit_the_terminal(width: int, cells: int) -> None:
    """All of one length, so that they can be compared, and never too short to tell anything."""
    full, empty = bars_on_terminal(width)
    label, bar, note = full[:10], full[11 : 11 + cells], full[11 + cells :]
    assert (label, note) == ("card 1 [x]", "  9 of 12 GiB")
    assert bar == "W" * (cells // 4) + "K" * (cells // 2) + "·" * (cells // 4)
    assert empty == f"card 12    {cells * '·'}  unused"


def test_bars_have_colors_where_there_are_any() -> None:
    assert re.search(r"\x1b\[30;44mW+\x1b\[0m\x1b\[30;42mK+\x1b\[0m·+", on_terminal())
    assert re.search(
        r"\x1b\[30;44mW\x1b\[0m weights \[x\]   \x1b\[30;42mK\x1b\[0m cache   · free", on_terminal()
    )
    assert "\x1b[30;44m" not in on_terminal(NO_COLOR="1")
    assert bars_on_terminal(80, NO_COLOR="1") == bars_on_terminal(80)


@pytest.mark.parametrize(
    ("shares", "cells"),
    [
        ((0.0, 0.0), "·" * 48),
        ((1.0, 0.0), "W" * 48),
        ((0.7, 0.7), "W" * 34 + "K" * 14),  # more than there is: the bar ends where the card does
        ((2.0, 1.0), "W" * 48),
        ((-0.5, 0.5), "K" * 24 + "·" * 24),
        ((0.005, 0.005), "·" * 48),
    ],
)
def test_a_bar_ends_where_the_whole_does(shares: tuple[float, float], cells: str) -> None:
    assert _cells(Bar("a", shares), [("W", "blue", "w"), ("K", "green", "k")], 48).plain == cells


@given(st.lists(st.floats(0, 0.2), min_size=5, max_size=5))
def test_rounding_errors_do_not_add_up(shares: list[float]) -> None:
    cells = _cells(Bar("a", tuple(shares)), [(letter, "blue", "") for letter in "ABCDE"], 48).plain
    assert len(cells) == 48
    assert abs(48 * sum(shares) - (48 - cells.count("·"))) <= 0.5 + 1e-9
    for letter, share in zip("ABCDE", shares, strict=True):
        assert abs(48 * share - cells.count(letter)) <= 1 + 1e-9


def test_no_bars_are_no_legend(capsys: pytest.CaptureFixture[str]) -> None:
    Console().bars("Memory", [], [("W", "blue", "weights")])
    Console(json=True).bars("Memory", [Bar("a", (0.5,))], [("W", "blue", "weights")])
    assert capsys.readouterr().out == ""


def test_a_finished_bar_is_wiped() -> None:
    """After each bar the cursor goes up and the line is erased, so that only results stay on screen."""
    text = on_terminal()
    assert text.count("\x1b[1A\x1b[2K") == 3
    assert text.rindex("\x1b[1A\x1b[2K") < text.index("said [x]")


def test_a_dumb_terminal_gets_plain_progress() -> None:
    text = on_terminal(TERM="dumb")
    assert "loading  4 of 4 files" in text
    assert "\x1b[?25l" not in text


def test_plain_progress_between_start_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 4.0, 6.0, 6.0, 10.0])
    monkeypatch.setattr("sovereign_ai.console.time.monotonic", lambda: next(clock))
    with Console().progress("fetching", total=200, unit="tensors") as progress:
        progress.update(50)  # too early for a line
        progress.update(100, note="layer 3")
    assert capsys.readouterr().err.splitlines() == [
        "fetching  0 of 200 tensors",
        "fetching  100 of 200 tensors, 6.0 s left  layer 3",
        "fetching  100 of 200 tensors, 10 s left  layer 3",
    ]


def test_error_without_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(ConfigError("wrong"))
    assert capsys.readouterr().err == "error: wrong\n"


def test_data_takes_structs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Console(json=True).data({"path": str(tmp_path), "n": (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path), "n": [1, 2]}


def test_json_is_indented_and_ends_a_line() -> None:
    assert as_json({"a": (1,)}) == b'{\n  "a": [\n    1\n  ]\n}\n'


def test_silent_progress_takes_everything() -> None:
    Silent().update(3, total=4, note="x")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(1.25, "1.2 s"), (59.4, "59 s"), (75, "1 min 15 s")])
def test_human_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
