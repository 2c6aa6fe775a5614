"""The script that runs in a pod before the engine, as a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

SCRIPT = resources.files("sovereign_ai.render.kubernetes").joinpath("scripts/check_store.py")
WEIGHTS = b"weights" * 1000


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A drive with one model, and what the store says of it."""
    root = tmp_path / "drive"
    folder = root / "models" / "smol" / "1"
    folder.mkdir(parents=True)
    (root / ".sovereign-storage").touch()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    stored = {
        "path": "model.safetensors",
        "bytes": len(WEIGHTS),
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps({"files": [stored]}))
    return root


def check(root: Path, files: Any = None) -> tuple[int, str]:
    checks = {
        "root": str(root),
        "sentinel": ".sovereign-storage",
        "models": [{"name": "smol", "version": "1", "files": files or {}}],
    }
    path = root.parent / "checks.json"
    path.write_text(json.dumps(checks))
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_drive_in_order(drive: Path) -> None:
    code, said = check(drive)
    assert (code, said.count("as they should be")) == (0, 1)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert check(drive, {"model.safetensors": [len(WEIGHTS), digest]})[0] == 0


def test_a_drive_that_is_not_mounted(drive: Path) -> None:
    (drive / ".sovereign-storage").unlink()
    code, said = check(drive)
    assert code == 1
    assert "the drive is not mounted on this node" in said


def test_what_is_wrong_with_a_model(drive: Path) -> None:
    file = drive / "models" / "smol" / "1" / "model.safetensors"
    file.write_bytes(WEIGHTS[:-1] + b"x")
    assert "is damaged" in check(drive)[1]
    file.write_bytes(WEIGHTS[:-1])
    assert f"has {len(WEIGHTS) - 1} bytes instead of {len(WEIGHTS)}" in check(drive)[1]
    file.unlink()
    assert "cannot be read" in check(drive)[1]
    (file.parent / "manifest.json").write_text("{")
    assert "has no manifest.json" in check(drive)[1]
    (file.parent / "manifest.json").unlink()
    file.parent.rmdir()
    code, said = check(drive)
    assert (code, "pull the model on this node" in said) == (1, True)
