"""calibration.json: what was measured on one's own cards, kept for every later plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from sovereign_ai.catalog.speed import Constants
from sovereign_ai.deploy.state import write_json
from sovereign_ai.errors import ConfigError, disk_errors
from sovereign_ai.spec import Noun

FILE = "calibration.json"


class Entry(Noun, frozen=True, kw_only=True):
    """What was measured on one kind of card."""

    card: str
    engine: str
    vllm: str
    constants: Constants
    tokens_per_s: float
    points: int
    made: int


class Calibration(Noun, frozen=True, kw_only=True):
    """calibration.json. `format` is the layout of this file."""

    format: int = 1
    entries: tuple[Entry, ...] = ()


def load(home: Path) -> Calibration:
    """What was measured so far; empty without a file. Raises ConfigError for a damaged one."""
    path = home / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return Calibration()
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: damaged: {error}", "measure again: sovereign calibrate") from error


def save(home: Path, found: Calibration) -> None:
    """Keep it for every later plan. Raises NoSpace, NoPermission."""
    with disk_errors("saving what was measured", home):
        home.mkdir(parents=True, exist_ok=True)
        write_json(home / FILE, found)


def measured(home: Path) -> Mapping[str, Constants]:
    """Card's name → constants, for the planner."""
    return {entry.card: entry.constants for entry in load(home).entries}
