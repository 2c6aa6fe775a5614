from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.reloading import read_routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import routes_to


def test_routes_are_read(tmp_path: Path) -> None:
    routes = routes_to(FakeTriton())
    (tmp_path / "routes.json").write_bytes(msgspec.json.encode(routes))
    assert read_routes(tmp_path / "routes.json") == routes


@pytest.mark.parametrize("text", [b"{}", b"\xff", b""])
def test_what_holds_no_routes(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "routes.json").write_bytes(text)
    with pytest.raises(UsageError, match="does not hold routes"):
        read_routes(tmp_path / "routes.json")
