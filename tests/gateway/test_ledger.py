from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.errors import NoPermission, UsageError
from sovereign_ai.gateway.admission import Limits, digest
from sovereign_ai.gateway.ledger import Grants, Ledger, grants_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(tmp_path / "deep" / "ledger.sqlite", clock=clock) as opened:
        yield opened


def test_a_new_key(ledger: Ledger) -> None:
    record, secret = ledger.create_key("laptop", expires_s=60)
    assert secret.startswith("sk-")
    assert len(bytes.fromhex(secret[3:])) == 32
    assert record.prefix == f"sk-…{secret[-4:]}"
    assert (record.name, record.created, record.expires, record.revoked) == ("laptop", 1000.0, 1060.0, None)
    assert ledger.lookup(digest(secret)) == record
    assert ledger.lookup(digest("sk-other")) is None


def test_the_secret_is_nowhere_on_disk(ledger: Ledger) -> None:
    _, secret = ledger.create_key("laptop")
    assert all(secret.encode() not in path.read_bytes() for path in ledger.path.parent.iterdir())


def test_only_the_owner_can_read_it(ledger: Ledger) -> None:
    ledger.create_key("laptop")
    files = list(ledger.path.parent.iterdir())
    assert len(files) > 1, "the write-ahead log lies beside it"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_keys_survive(ledger: Ledger, clock: Clock) -> None:
    first, _ = ledger.create_key("a")
    clock.now = 1001.0
    second, _ = ledger.create_key("b")
    with Ledger(ledger.path) as again:
        assert again.list_keys() == [first, second]


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb"])
def test_names_that_cannot_be(ledger: Ledger, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        ledger.create_key(name)


@pytest.mark.parametrize("expires_s", [0, -1, float("nan")])
def test_expiry_that_cannot_be(ledger: Ledger, expires_s: float) -> None:
    with pytest.raises(UsageError, match="expire"):
        ledger.create_key("a", expires_s=expires_s)


def test_a_key_can_be_meant_in_many_ways(ledger: Ledger, clock: Clock) -> None:
    for index in range(5):
        record, secret = ledger.create_key("laptop")
        reference = [record.id, "laptop", record.prefix, secret[-4:], secret][index]
        clock.now += 1
        assert ledger.revoke_key(reference).id == record.id
        found = ledger.lookup(record.digest)
        assert found is not None
        assert found.revoked == clock.now


def test_revoking_twice_changes_nothing(ledger: Ledger, clock: Clock) -> None:
    record, _ = ledger.create_key("a")
    revoked = ledger.revoke_key(record.id)
    clock.now += 5
    assert ledger.revoke_key(record.id) == revoked


def test_unknown_and_ambiguous_references(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no key `nobody`"):
        ledger.revoke_key("nobody")
    first, _ = ledger.create_key("twin")
    ledger.create_key("twin")
    with pytest.raises(UsageError, match=f"2 keys: .*{first.id}"):
        ledger.revoke_key("twin")


def test_delete(ledger: Ledger) -> None:
    record, _ = ledger.create_key("a")
    assert ledger.delete_key("a") == record
    assert ledger.list_keys() == []
    with pytest.raises(UsageError):
        ledger.delete_key(record.id)


def test_a_reader_sees_at_once_what_another_process_writes(ledger: Ledger) -> None:
    record, secret = ledger.create_key("a")
    script = (
        "import sys; from pathlib import Path; from sovereign_ai.gateway.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])) as ledger: ledger.revoke_key('a'); ledger.create_key('b')"
    )
    assert ledger.lookup(digest(secret)) == record
    subprocess.run([sys.executable, "-c", script, str(ledger.path)], check=True)
    found = ledger.lookup(digest(secret))
    assert found is not None
    assert found.revoked is not None
    assert [key.name for key in ledger.list_keys()] == ["a", "b"]


def test_what_nobody_changed_is_not_read_again(ledger: Ledger) -> None:
    _, secret = ledger.create_key("a")
    assert ledger.lookup(digest(secret)) is ledger.lookup(digest(secret))


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(UsageError, match="cannot be used"):
        Ledger(path)


def test_a_ledger_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="newer"):
        Ledger(path)


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises((NoPermission, OSError)):
        Ledger(Path("/proc/sovereign/ledger.sqlite"))


VERSION_1 = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
    created REAL NOT NULL, expires REAL, revoked REAL
) STRICT;
INSERT INTO keys VALUES ('key-1', 'old', 'sk-…abcd', 'd1', 1.0, NULL, NULL);
PRAGMA user_version = 1;
"""


def test_a_ledger_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.close()
    with Ledger(path) as ledger:
        (record,) = ledger.list_keys()
        assert (record.id, record.scopes, record.models, record.limits) == (
            "key-1",
            ("inference",),
            (),
            Limits(),
        )
        ledger.set_key("old", lambda grants: msgspec.structs.replace(grants, models=("smol",)))
    with Ledger(path) as again:
        found = again.lookup("d1")
        assert found is not None
        assert found.models == ("smol",)


def test_two_that_migrate_at_once_do_it_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.close()
    script = (
        "import sys; from pathlib import Path; from sovereign_ai.gateway.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])) as ledger: print(len(ledger.list_keys()))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [b"1\n", b"1\n"]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1 + "CREATE TABLE usage (x INTEGER);")
    with pytest.raises(UsageError, match="cannot be used"):
        Ledger(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert len(db.execute("SELECT * FROM keys").fetchone()) == 7
    db.close()


GRANTS = Grants(
    scopes=("inference", "metrics"), models=("smol",), priority="batch", limits=Limits(tokens_per_day=5)
)


def test_what_a_key_may_do_is_kept(ledger: Ledger) -> None:
    record, _ = ledger.create_key("a", grants=GRANTS)
    assert grants_of(record) == GRANTS
    with Ledger(ledger.path) as again:
        assert again.list_keys() == [record]


def test_a_reader_sees_new_limits_at_once(ledger: Ledger, clock: Clock) -> None:
    record, secret = ledger.create_key("a")
    with Ledger(ledger.path, clock=clock) as other:
        changed = other.set_key("a", lambda _: GRANTS, expires_s=5)
    assert changed.expires == 1005.0
    assert ledger.lookup(digest(secret)) == changed
    assert grants_of(changed) == GRANTS
    assert changed.digest == record.digest


def test_rotation(ledger: Ledger, clock: Clock) -> None:
    record, old = ledger.create_key("a", expires_s=500)
    changed, new = ledger.rotate_key("a", grace_s=60)
    assert (changed.id, changed.expires, changed.previous_until) == (record.id, record.expires, 1060.0)
    assert ledger.lookup(digest(new)) == ledger.lookup(digest(old)) == changed
    assert changed.prefix == f"sk-…{new[-4:]}"
    _, newest = ledger.rotate_key("a")
    assert ledger.lookup(digest(old)) is None, "only one secret back"
    assert ledger.lookup(digest(new)) == ledger.lookup(digest(newest))


def test_rotations_that_cannot_be(ledger: Ledger) -> None:
    ledger.create_key("a")
    with pytest.raises(UsageError, match="grace"):
        ledger.rotate_key("a", grace_s=-1)
    ledger.revoke_key("a")
    with pytest.raises(UsageError, match="revoked"):
        ledger.rotate_key("a")


def test_other_writes_do_not_make_the_keys_be_read_again(ledger: Ledger) -> None:
    _, secret = ledger.create_key("a")
    before = ledger.lookup(digest(secret))
    db = sqlite3.connect(ledger.path)
    db.execute("INSERT INTO usage_days VALUES ('2026-01-01', 'k', 'm', 1, 1, 1, 0)")
    db.commit()
    db.close()
    assert ledger.lookup(digest(secret)) is before


def test_two_connections_of_a_process_keep_their_locks(tmp_path: Path) -> None:
    """Another process that opens the ledger and leaves must not take itself for the last one: it would delete
    the log of changes under the gateway, which would never see a new key again."""
    path = tmp_path / "ledger.sqlite"
    make = "import sys, pathlib; from sovereign_ai.gateway.ledger import Ledger\n"
    make += "with Ledger(pathlib.Path(sys.argv[1])) as ledger: print(ledger.create_key('x')[1])"
    with Ledger(path) as one, Ledger(path):
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", make, str(path)], capture_output=True, text=True, check=True
            )
            assert one.lookup(digest(done.stdout.strip())) is not None
