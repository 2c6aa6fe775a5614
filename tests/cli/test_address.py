from __future__ import annotations

import json
import shlex

import pytest

from sovereign_ai.cli import address
from sovereign_ai.console import Console

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(("secret", "key"), [("sk-1", "sk-1"), (None, "$SOVEREIGN_API_KEY")])
def test_the_curl_line_is_one_command_of_the_shell(secret: str | None, key: str) -> None:
    words = shlex.split(address.curl_line(URL, "smol", secret))
    assert words[:2] == ["curl", f"{URL}/v1/chat/completions"]
    assert f"Authorization: Bearer {key}" in words
    assert json.loads(words[-1])["model"] == "smol"


@pytest.mark.parametrize(("secret", "key"), [("sk-1", '"sk-1"'), (None, 'os.environ["SOVEREIGN_API_KEY"]')])
def test_the_python_line_is_a_program(secret: str | None, key: str) -> None:
    words = shlex.split(address.python_line(URL, "smol", secret))
    assert words[:2] == ["python", "-c"]
    compile(words[2], "line", "exec")
    assert f"api_key={key}" in words[2]


def test_a_new_key_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    address.show(Console(), URL, "smol", "sk-1")
    out = capsys.readouterr().out
    assert "API key   sk-1   (shown this once" in out
    assert len(out.splitlines()) == 5


def test_without_a_new_key_the_variable_stands_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    address.show(Console(), URL, "smol", None)
    assert "one you have in SOVEREIGN_API_KEY" in capsys.readouterr().out
