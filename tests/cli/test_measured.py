from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.cli.measured import FILE, Calibration, Entry, load, measured, save
from sovereign_ai.errors import ConfigError


def entry(card: str) -> Entry:
    return Entry(
        card=card,
        engine="vllm",
        vllm="0.8",
        constants=constants_for("vllm"),
        tokens_per_s=50.0,
        points=2,
        made=1,
    )


def test_nothing_was_measured_yet(tmp_path: Path) -> None:
    assert load(tmp_path) == Calibration()
    assert measured(tmp_path) == {}


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    save(tmp_path / "new", Calibration(entries=(entry("RTX 3090"),)))
    assert measured(tmp_path / "new") == {"RTX 3090": constants_for("vllm")}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"calibration\.json: damaged"):
        load(tmp_path)
