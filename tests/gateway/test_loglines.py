from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sovereign_ai.gateway.loglines import LogLines

WRITER = """
import sys
from sovereign_ai.gateway.loglines import LogLines
lines = LogLines(1, int(sys.argv[1]))
for _ in range(20):
    lines.write(sys.argv[2].encode() * 30_000 + b"\\n")
"""


def test_lines_of_several_processes_stay_whole_in_a_pipe() -> None:
    lock = os.memfd_create("log")
    reading, writing = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(lock), letter], stdout=writing, pass_fds=(lock,))
        for letter in "abc"
    ]
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        lines = output.read().splitlines()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    os.close(lock)
    assert sorted(lines) == sorted(letter * 30_000 for letter in (b"a", b"b", b"c") for _ in range(20))


def test_one_process(tmp_path: Path) -> None:
    lock = os.memfd_create("log")
    with (tmp_path / "log").open("wb") as output:
        LogLines(output.fileno(), lock).write(b"one\n")
    os.close(lock)
    assert (tmp_path / "log").read_bytes() == b"one\n"
