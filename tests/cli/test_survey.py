"""`sovereign inventory` and `sovereign tiers`, on this machine and on the examples."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sovereign_ai import inventory as measured
from sovereign_ai.inventory.nvml import read_gpus
from sovereign_ai.spec import Inventory, Tier
from tests.cli.conftest import Here, Sovereign
from tests.inventory.fakes import FakeNvml

EXAMPLES = Path(__file__).parents[2] / "examples"
RIG = str(EXAMPLES / "reference-rig" / "inventory.json")


def test_this_machine(here: Here) -> None:
    done = here("inventory")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Nodes\n")
    found = msgspec.convert(here("inventory", "--json").data, Inventory)
    assert found.nodes[0].cores >= 1
    assert not here.home.exists()


def test_saved_and_read_again(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    saved = here("inventory", "--save", str(file), "--json")
    assert saved.err == f"saved to {file}\n"
    again = here("inventory", "-i", str(file), "--json")
    assert again.data == saved.data
    assert file.read_text() == again.out


def test_the_reference_rig(here: Here) -> None:
    done = here("inventory", "-i", RIG)
    for text in (
        r"rig +2 +RTX 3060 +12\.0 +11\.1 +0\.7 +8\.6 +360 +ok",
        r"rig +1 +00000000:21:00\.0 +1\.0 ×4 of 4\.0 ×16 +no +200 of 220 W",
        r"rig +5 +GPU-9799af58-9d81-5bf3-b28b-190b237f56e3",
    ):
        assert re.search(text, done.out)


def test_tiers_of_the_reference_rig(here: Here) -> None:
    done = here("tiers", "-i", RIG)
    rows = [line.split()[:5] for line in done.out.splitlines()]
    assert ["1", "primary", "primary", "GPU-1f2a7333", "GPU-9799af58"] in rows
    assert re.search(r"GPU-d41f3755 +utility +NVIDIA GeForce RTX 3070, 8 GiB and 448 GB/s", done.out)
    tiers = msgspec.convert(here("tiers", "-i", RIG, "--json").data, list[Tier])
    assert [(tier.name, len(tier.devices)) for tier in tiers] == [
        ("primary", 2),
        ("context", 1),
        ("utility", 3),
    ]


def test_rules_of_factory_yaml(here: Here) -> None:
    folder = EXAMPLES / "two-nodes"
    arguments = ("-i", str(folder / "inventory.json"), "-f", str(folder / "factory.yaml"))
    names = [tier["name"] for tier in here("tiers", *arguments, "--json").data]
    assert names == ["big", "coding", "utility", "utility-2"]


def test_a_rule_that_matches_nothing_names_its_line(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text("tiers:\n  - name: big\n    match: {name: A100}\n")
    done = here("tiers", "-i", RIG, "-f", str(file))
    assert (done.code, done.out) == (78, "")
    assert f"error: {file}:2: tier `big`: no card matches\n" in done.err


def test_a_file_that_is_no_inventory(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    file.write_text('{\n  "node": []\n}\n')
    for verb in ("inventory", "tiers"):
        done = here(verb, "-i", str(file))
        assert (done.code, done.out) == (69, "")
        assert done.err.startswith(f"error: {file}:2 (node): object contains unknown field `node`\n")
        assert "did you mean `nodes`?" in done.err


def test_a_bandwidth_that_the_driver_does_not_tell_is_the_catalogs(here: Here, tmp_path: Path) -> None:
    data = msgspec.json.decode(Path(RIG).read_bytes())
    for device in data["nodes"][0]["devices"]:
        device["bandwidth_bytes_per_s"] = None
    (tmp_path / "x.json").write_bytes(msgspec.json.encode(data))
    assert (
        here("tiers", "-i", str(tmp_path / "x.json"), "--json").out == here("tiers", "-i", RIG, "--json").out
    )


def test_a_lost_card_is_told_and_does_not_stop_the_others(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measured, "read_gpus", lambda: read_gpus(FakeNvml(["A", "B", "C"], {("card", 1): 15}))
    )
    done = here("tiers")
    assert done.code == 0
    assert "lost-1" not in done.out
    assert done.err.startswith("in no tier: lost-1 (GPU 1): does not answer: NVML says 15")
    assert re.search(r"#1 \(GPU 1\): does not answer", here("inventory").out)


def test_a_row_is_one_line_off_a_terminal(sovereign: Sovereign) -> None:
    sovereign.environment["COLUMNS"] = "40"
    out = sovereign("tiers", "-i", RIG).out
    assert len(out.splitlines()) == 2 + 3 + 2 + 6


def test_tables_stay_whole_on_a_terminal_of_eighty_columns(sovereign: Sovereign) -> None:
    """What one copies, UUIDs and numbers, is not broken over lines."""
    ours, theirs = pty.openpty()
    environment = {**sovereign.environment, "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "sovereign_ai", "inventory", "-i", RIG]
    subprocess.run(command, env=environment, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    out = b""
    while chunk := _read(ours):
        out += chunk
    os.close(ours)
    lines = out.decode().splitlines()
    assert max(map(len, (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines))) <= 80
    assert sum("GPU-" in line for line in lines) == 6
    assert any("GPU-9799af58-9d81-5bf3-b28b-190b237f56e3" in line for line in lines)
    assert any("RTX 3060 Ti" in line and "448" in line for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""
