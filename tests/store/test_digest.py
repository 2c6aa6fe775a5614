from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sovereign_ai.console import Silent
from sovereign_ai.store.digest import _Meter, _Stopped, sha256_files


class Recorded:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self.seen.append(done)


def test_digests_in_order_and_progress_to_the_last_byte(tmp_path: Path) -> None:
    contents = [bytes([number]) * (100_000 * number) for number in range(6)]
    paths = [tmp_path / str(number) for number in range(6)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    progress = Recorded()
    assert sha256_files(paths, progress) == tuple(hashlib.sha256(content).hexdigest() for content in contents)
    assert progress.seen == sorted(progress.seen)
    assert progress.seen[-1] == sum(map(len, contents))


def test_no_files() -> None:
    assert sha256_files([], Silent()) == ()


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x" * 1_000_000)
    with pytest.raises(FileNotFoundError):
        sha256_files([tmp_path / "gone", *[tmp_path / "there"] * 50], Silent())


def test_a_stopped_meter_ends_the_thread_that_reads(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    meter = _Meter(Silent())
    meter.stopped = True
    with pytest.raises(_Stopped):
        meter.sha256(tmp_path / "a")


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    class Pressed(Recorded):
        def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
            super().update(done)
            raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    progress = Pressed()
    with pytest.raises(KeyboardInterrupt):
        sha256_files([tmp_path / "a"] * 20, progress)
    assert len(progress.seen) < 20
