from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.admission import KeyRecord, digest
from sovereign_ai.gateway.keyfile import LOOK_INTERVAL_S, KeyFile, encode_keys
from tests.gateway.running import key_table


class Scene:
    def __init__(self, path: Path) -> None:
        self.now, self.told = 0.0, list[tuple[str, dict[str, Any]]]()
        self.keys = KeyFile(
            path, lambda event, **fields: self.told.append((event, fields)), monotonic=lambda: self.now
        )


def record(secret: str, **fields: Any) -> KeyRecord:
    return replace(next(iter(key_table(secret).records.values())), **fields)


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(encode_keys([record("sk-a", previous_digest=digest("sk-old"))]))
    scene = Scene(path)
    assert scene.keys.lookup(digest("sk-a")) == scene.keys.lookup(digest("sk-old")) != None  # noqa: E711
    path.write_text(encode_keys([record("sk-a"), record("sk-b")]))
    assert scene.keys.lookup(digest("sk-b")) is None, "looked at once a second"
    scene.now += LOOK_INTERVAL_S
    assert scene.keys.lookup(digest("sk-b")) is not None
    scene.now += LOOK_INTERVAL_S
    assert scene.keys.lookup(digest("sk-old")) is None
    assert scene.told == [("keys_loaded", {"count": 2})]


def test_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(encode_keys([record("sk-a")]))
    scene = Scene(path)
    path.write_text("{")
    scene.now += LOOK_INTERVAL_S
    assert scene.keys.lookup(digest("sk-a")) is not None
    path.unlink()
    scene.now += LOOK_INTERVAL_S
    assert scene.keys.lookup(digest("sk-a")) is not None
    assert [event for event, _ in scene.told] == ["keys_broken", "keys_broken"]


def test_without_keys_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Scene(tmp_path / "none")
    (tmp_path / "keys.json").write_text('[{"id": 1}]')
    with pytest.raises(UsageError, match="does not hold keys"):
        Scene(tmp_path / "keys.json")
