from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.deploy import sharedmemory
from sovereign_ai.deploy.sharedmemory import SHM
from tests.deploy.services import read_line, spawned

MAKES = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(name=sys.argv[1], create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
print("made", flush=True)
time.sleep(600)
"""


@pytest.fixture
def maker(prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that maps the segment `<prefix>a`, as an engine does."""
    with spawned([sys.executable, "-c", MAKES, f"{prefix}a"]) as child:
        assert read_line(child) == b"made\n"
        yield child


def test_a_segment_is_known_by_who_maps_it(maker: subprocess.Popen[bytes], prefix: str) -> None:
    assert f"{prefix}a" in sharedmemory.mapped_by([maker.pid])
    assert f"{prefix}a" not in sharedmemory.mapped_by([os.getpid()])
    maker.kill()
    maker.wait()
    assert sharedmemory.mapped_by([maker.pid]) == set()
    assert sharedmemory.remove_left_over([f"{prefix}a"], [], []) == [f"{prefix}a"]


def test_what_a_living_process_maps_is_kept(maker: subprocess.Popen[bytes], prefix: str) -> None:
    assert sharedmemory.remove_left_over([f"{prefix}a"], [prefix], [maker.pid]) == []
    assert (SHM / f"{prefix}a").exists()
    maker.kill()
    maker.wait()
    assert sharedmemory.remove_left_over([], [prefix], []) == [f"{prefix}a"]
    assert not (SHM / f"{prefix}a").exists()


def test_others_segments_are_left_alone(prefix: str) -> None:
    other = SHM / f"{prefix}other"
    other.touch()
    assert sharedmemory.remove_left_over([], [f"{prefix}mine"], []) == []
    assert sharedmemory.remove_left_over([], [], []) == []
    assert other.exists()
    other.unlink()


def test_openmps_segment_goes_with_its_process() -> None:
    with spawned(["/bin/true"]) as child:
        child.wait()
    mine, living = SHM / f"__KMP_REGISTERED_LIB_{child.pid}_0", SHM / f"__KMP_REGISTERED_LIB_{os.getpid()}_0"
    mine.touch()
    living.touch()
    try:
        assert sharedmemory.remove_left_over([], [], [child.pid]) == [mine.name]
        assert living.exists()
    finally:
        living.unlink()


def test_a_segment_that_vanishes_meanwhile(prefix: str) -> None:
    assert sharedmemory._inode(f"{prefix}none") is None
    assert sharedmemory.remove_left_over([f"{prefix}none"], [], []) == []


def test_a_system_without_shared_memory_has_none_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedmemory, "SHM", tmp_path / "none")
    assert sharedmemory.remove_left_over(["a"], ["b"], [1]) == []


def test_an_openmp_registration_belongs_to_its_process() -> None:
    """libiomp5 leaves it behind when its process is killed, and does not keep it mapped."""
    with subprocess.Popen(["sleep", "60"]) as child:
        name = f"__KMP_REGISTERED_LIB_{child.pid}_0"
        try:
            (SHM / name).write_bytes(b"registered")
            assert name in sharedmemory.mapped_by([child.pid])
            assert sharedmemory.remove_left_over([name], [], []) == [], "its process lives"
            child.kill()
            child.wait()
            assert sharedmemory.remove_left_over([name], [], []) == [name]
        finally:
            (SHM / name).unlink(missing_ok=True)
