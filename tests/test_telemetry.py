from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.telemetry import ROOT, configure_logging


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    logger = logging.getLogger(ROOT)
    before = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.level, logger.handlers[:], logger.propagate = before


def test_json_lines() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, json_lines=True)
    logger = logging.getLogger(f"{ROOT}.gateway")
    logger.debug("not this")
    logger.info("served %s", "chat", extra={"model": "smol", "path": Path("/x"), "ttft_s": 0.5})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "sovereign_ai.gateway",
        "message": "served chat",
        "model": "smol",
        "path": "/x",
        "ttft_s": 0.5,
    }


def test_json_lines_carry_the_exception_in_one_line() -> None:
    stream = io.StringIO()
    configure_logging("error", stream, json_lines=True)
    try:
        int("broken\nin two")
    except ValueError:
        logging.getLogger(ROOT).exception("failed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "broken" in json.loads(stream.getvalue())["exception"]


def test_plain_lines() -> None:
    stream = io.StringIO()
    configure_logging("WARNING", stream, json_lines=False)
    logging.getLogger(ROOT).info("not this")
    logging.getLogger(f"{ROOT}.store").warning("slow disk")
    assert stream.getvalue().rstrip().endswith("WARNING sovereign_ai.store: slow disk")


def test_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", first, json_lines=True)
    configure_logging("info", second, json_lines=False)
    logging.getLogger(ROOT).info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("loud", io.StringIO(), json_lines=False)
