from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sovereign_ai import cli
from sovereign_ai.config import Paths


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON document of standard output."""
        return json.loads(self.out)


class Sovereign:
    """The command line with a home folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "SOVEREIGN_HOME": str(home), "COLUMNS": "200"}

    @property
    def paths(self) -> Paths:
        return Paths(home=self.home, storage=self.home / "storage")

    def __call__(self, *arguments: str) -> Done:
        """Run `sovereign ARGUMENTS` as a program."""
        command = [sys.executable, "-m", "sovereign_ai", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def sovereign(tmp_path: Path) -> Sovereign:
    return Sovereign(tmp_path / "home")


class Here(Sovereign):
    """The command line within this process: the same entry, without the start of a Python."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        super().__init__(home)
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("SOVEREIGN_HOME", str(home))
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["sovereign", *arguments])
        self._capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = self._capsys.readouterr()
        return Done(code, out, err)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield Here(tmp_path / "home", monkeypatch, capsys)
    for number, action in zip(numbers, before, strict=True):
        signal.signal(number, action)
