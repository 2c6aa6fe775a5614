from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.engines.lock import Lock
from tests.engines.wheelhouse import write_wheelhouse


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(home=tmp_path / "home", storage=tmp_path / "storage")


@pytest.fixture
def console() -> Console:
    return Console(json=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Folder of the wheels, which pip is told to look at and at nothing else."""
    return tmp_path / "wheelhouse"


@pytest.fixture
def lock(house: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    return write_wheelhouse(house)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
