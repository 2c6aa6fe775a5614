from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.errors import UsageError
from sovereign_ai.gateway import usage
from sovereign_ai.gateway.database import open_database
from sovereign_ai.gateway.door import Spent
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.usage import Usage, UsageWriter, prune, report, spent_this_month

NOON = datetime(2026, 2, 2, 12, tzinfo=UTC).timestamp()
DAY = 86400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def record(**fields: Any) -> RequestRecord:
    known = {"key": "k1", "model": "m1", "status": 200, "prompt_tokens": 3, "completion_tokens": 4}
    return RequestRecord(method="POST", path="/", started=0.0, answered=True, **{**known, **fields})


def write(path: Path, *rows: tuple[float, RequestRecord]) -> None:
    """Each with the unix time of its arrival."""
    times = [at for at, _ in rows]
    writer = UsageWriter(path, keep_days=10**6, clock=lambda: times.pop(0) if times else NOON)
    for _, one in rows:
        writer.add(one, 0.0)
    writer.start()
    writer.close()


def test_a_row_has_everything(path: Path) -> None:
    full = record(
        endpoint="up", first_token=0.25, queue_s=0.5, retries=1, continuations=2, status=499, asked="m0"
    )
    writer = UsageWriter(path, keep_days=10**6, clock=lambda: NOON)
    writer.add(full, 2.0)
    writer.start()
    writer.close()
    with closing(sqlite3.connect(path)) as db:
        (row,) = db.execute("SELECT * FROM usage")
    assert row == (NOON - 2, "k1", "m1", "up", 499, 3, 4, 0.25, 2.0, 0.5, 1, 2, "m0")


def test_sums(path: Path) -> None:
    write(
        path,
        (NOON - DAY, record()),
        (NOON, record(model="m2", completion_tokens=10)),
        (NOON, record(key="k2", status=502)),
    )
    assert report(path, "key") == [Usage("k1", 2, 6, 14, 0), Usage("k2", 1, 3, 4, 1)]
    assert report(path, "model") == [Usage("m1", 2, 6, 8, 1), Usage("m2", 1, 3, 10, 0)]
    assert report(path, "day") == [Usage("2026-02-01", 1, 3, 4, 0), Usage("2026-02-02", 2, 6, 14, 1)]
    assert report(path, "key", "2026-02-02") == [Usage("k1", 1, 3, 10, 0), Usage("k2", 1, 3, 4, 1)]
    assert report(path, "key")[0].total_tokens == 20


def test_pruning_changes_no_sum(path: Path) -> None:
    write(path, *((NOON - day * DAY, record(key=f"k{day % 2}")) for day in range(6)))
    before = {by: report(path, by) for by in ("key", "model", "day")}
    spent = spent_this_month(path, NOON)
    with closing(open_database(path)) as db:
        for days in (4, 2, 2):
            prune(db, NOON - days * DAY)
            assert {by: report(path, by) for by in ("key", "model", "day")} == before
        assert db.execute("SELECT count(*) FROM usage").fetchone() == (3,)
        assert db.execute("SELECT count(*) FROM usage_days").fetchone() == (3,)
        # a late row of a day that was summed up already
        write(path, (NOON - 5 * DAY, record(key="k1")))
        prune(db, NOON - 2 * DAY)
    assert report(path, "day")[0] == Usage("2026-01-28", 2, 6, 8, 0)
    assert spent_this_month(path, NOON) == spent


def test_the_writer_prunes(path: Path) -> None:
    write(path, (NOON - 9 * DAY, record()), (NOON, record()))
    writer = UsageWriter(path, keep_days=5, clock=lambda: NOON)
    writer.start()
    writer.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM usage").fetchone() == (1,)
    assert [row.requests for row in report(path, "day")] == [1, 1]


def test_budgets_begin_with_what_was_spent(path: Path) -> None:
    assert spent_this_month(path, NOON) == {}
    write(
        path,
        (NOON - 2 * DAY, record()),
        (NOON - DAY, record()),
        (NOON, record()),
        (NOON, record(key="k2", prompt_tokens=0)),
    )
    assert spent_this_month(path, NOON) == {
        "k1": Spent({"2026-02-01": 7, "2026-02-02": 7}, {"2026-02": 14}),
        "k2": Spent({"2026-02-02": 4}, {"2026-02": 4}),
    }


def test_a_file_that_is_broken(path: Path) -> None:
    open_database(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE usage_days")
    for read in (lambda: report(path, "key"), lambda: spent_this_month(path, NOON)):
        with pytest.raises(UsageError, match="cannot be used"):
            read()


def test_what_cannot_be_written_waits_and_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the file; once it lets go nothing is missing."""
    monkeypatch.setattr(usage, "INTERVAL_S", 0.01)
    monkeypatch.setattr("sovereign_ai.gateway.database.BUSY_TIMEOUT_S", 0.01)
    open_database(path).close()
    failed, written = threading.Event(), threading.Event()
    writer = UsageWriter(
        path, keep_days=1, failed=lambda reason: failed.set(), written=lambda count: written.set()
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.add(record(), 0.0)
        writer.start()
        assert failed.wait(10)
        assert not written.is_set()
        other.execute("ROLLBACK")
    assert written.wait(10)
    writer.close()
    assert [row.requests for row in report(path, "key")] == [1]


def test_what_can_never_be_written_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "INTERVAL_S", 0.01)
    monkeypatch.setattr(usage, "MAX_PENDING", 3)
    (tmp_path / "ledger.sqlite").write_text("not a database " * 100)
    lost: list[int] = []
    writer = UsageWriter(tmp_path / "ledger.sqlite", keep_days=1, lost=lost.append)
    for _ in range(5):
        writer.add(record(), 0.0)
    writer.start()
    writer.close()
    assert sum(lost) >= 2


WRITING = """
import sys, time
from pathlib import Path
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.usage import UsageWriter

done = 0
def written(count):
    global done
    done += count
    print(done, flush=True)

writer = UsageWriter(Path(sys.argv[1]), keep_days=90, written=written)
writer.start()
while True:
    one = RequestRecord(method="POST", path="/", started=0.0, key="k", answered=True, prompt_tokens=1)
    for _ in range(20):
        writer.add(one, 0.0)
    time.sleep(0.001)
"""


def test_killed_in_the_middle(path: Path) -> None:
    """Whatever was written is there, the file is whole, and rows are written every second."""
    assert usage.INTERVAL_S == 1.0
    command = [sys.executable, "-c", WRITING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(2)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        told += [int(line) for line in process.stdout.read().split()]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (rows,) = db.execute("SELECT count(*) FROM usage").fetchone()
    assert rows >= told[-1] > 0


def test_reading_keys_is_not_disturbed(path: Path) -> None:
    """The gateway's own usage does not make it read all keys again."""
    with Ledger(path) as keys:
        created, _ = keys.create_key("a")
        before = keys.lookup(created.digest)
        write(path, (NOON, record()))
        assert keys.lookup(created.digest) is before
