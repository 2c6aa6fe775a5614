from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai import errors
from sovereign_ai.errors import (
    ApiError,
    ConfigError,
    InvalidRequest,
    NoPermission,
    NoSpace,
    SovereignError,
    disk_errors,
)


def tree(root: type[SovereignError] = SovereignError) -> Iterator[type[SovereignError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def number(kind: type[SovereignError]) -> str:
    if kind is ApiError:
        return "HTTP"
    return str(kind.http_status if issubclass(kind, ApiError) else kind.exit_code)


def drawn() -> dict[str, str]:
    """Name → exit code or HTTP status, as the drawing at the top of the file has them."""
    lines = re.findall(r"^[\s│├└─]*(\w+)\s+(?:exit )?(\d+|HTTP)\b", str(errors.__doc__), re.MULTILINE)
    return dict(lines)


def test_the_drawing_is_the_tree() -> None:
    ours = [kind for kind in tree() if kind.__module__ == errors.__name__]
    assert drawn() == {kind.__name__: number(kind) for kind in ours}


def test_message_and_hint() -> None:
    error = ConfigError("factory.yaml:7: unknown key", "did you mean `context`?")
    assert (str(error), error.message, error.hint) == (
        "factory.yaml:7: unknown key",
        "factory.yaml:7: unknown key",
        "did you mean `context`?",
    )


def test_api_error() -> None:
    error = InvalidRequest("no such field", param="n", code="unknown_parameter")
    assert (str(error), error.param, error.code) == ("no such field", "n", "unknown_parameter")
    assert (error.http_status, error.error_type) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EACCES, NoPermission),
        (errno.EPERM, NoPermission),
        (errno.EROFS, NoPermission),
    ],
)
def test_disk_errors(code: int, kind: type[SovereignError]) -> None:
    original = OSError(code, os.strerror(code))
    with (
        pytest.raises(kind, match=r"while saving .*/models") as caught,
        disk_errors("saving", Path("/models")),
    ):
        raise original
    assert caught.value.__cause__ is original
    assert isinstance(caught.value, SovereignError)
    assert caught.value.hint


def test_disk_errors_name_the_file_that_was_refused() -> None:
    refused = PermissionError(errno.EACCES, "denied", "/models/a.json")
    with pytest.raises(NoPermission, match=r"\(/models/a\.json\)"), disk_errors("saving", Path("/models")):
        raise refused


def test_other_disk_errors_pass() -> None:
    with pytest.raises(FileNotFoundError), disk_errors("saving", Path("/models")):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_nothing_happens_without_an_error(tmp_path: Path) -> None:
    with disk_errors("saving", tmp_path):
        (tmp_path / "a").write_text("x")
