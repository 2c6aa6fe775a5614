from __future__ import annotations

import time
from pathlib import Path

import pytest

from sovereign_ai.cli.logs import show
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError
from tests.cli.conftest import Here


@pytest.fixture
def folder(here: Here) -> Path:
    found = here.paths.logs
    found.mkdir(parents=True)
    (found / "gateway.log").write_text("one\ntwo\nthree")
    (found / "triton-cpu.log").write_text("loading\n")
    (found / "triton-cpu.log.1").write_text("of the last run\n")
    return found


def test_without_logs_there_is_nothing_to_show(here: Here) -> None:
    done = here("logs")
    assert (done.code, done.out) == (64, "")
    assert "there are no logs yet" in done.err


def test_all_logs_are_labelled(here: Here, folder: Path) -> None:
    assert here("logs").out == (
        "gateway      one\ngateway      two\ngateway      three\ntriton-cpu   loading\n"
    )


def test_one_log_is_shown_as_it_is(here: Here, folder: Path) -> None:
    assert here("logs", "gateway", "-n", "2").out == "two\nthree\n"
    assert here("logs", "gateway", "-n", "0").out == ""
    assert here("logs", "gateway", "--lines=-3").out == ""


@pytest.mark.parametrize(
    ("name", "hint"), [("gatewy", "did you mean `gateway`?"), ("x", "logs: gateway, triton-cpu")]
)
def test_a_wrong_name_is_told_the_right_ones(here: Here, folder: Path, name: str, hint: str) -> None:
    done = here("logs", name)
    assert (done.code, done.out) == (64, "")
    assert f"there is no log `{name}`" in done.err
    assert hint in done.err


def test_a_name_before_there_are_logs(here: Here) -> None:
    assert "logs: none yet" in here("logs", "gateway").err


def test_bytes_that_are_no_text_are_shown_somehow(here: Here, folder: Path) -> None:
    (folder / "gateway.log").write_bytes(b"caf\xe9\n")
    assert here("logs", "gateway").out == "caf\N{REPLACEMENT CHARACTER}\n"


def test_following_shows_what_is_added_and_new_logs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "gateway.log"
    steps = iter(["append", "nothing", "anew", "gone", "back", "end"])

    def tick(seconds: float) -> None:
        match next(steps):
            case "append":
                with file.open("a") as opened:
                    opened.write("\nfour\n")
            case "anew":
                file.write_text("new\n")
            case "gone":
                file.unlink()
            case "back":
                file.write_text("back\n")
            case "end":
                raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", tick)
    with pytest.raises(KeyboardInterrupt):
        show(folder, Console(), "gateway", lines=1, follow=True)
    assert capsys.readouterr().out == "three\n\nfour\nnew\nback\n"


def test_an_unknown_log_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        show(tmp_path, Console(), "x", lines=1, follow=False)
