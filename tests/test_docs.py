"""What the docs say is what the program does: commands run, options, keys and links are those there are.

docs/how-to/plan-a-rig.md shows real output. Where predictions changed, remake it with

    SOVEREIGN_UPDATE_GOLDEN=1 .venv/bin/pytest tests/test_docs.py

which puts the most similar line of the output for one that is no longer there, and read the difference before
it is committed: what the text says of the numbers is not remade.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from sovereign_ai.catalog.releases import DEFAULT_RELEASE
from sovereign_ai.config import (
    ClusterSettings,
    ClusterStorage,
    EngineSettings,
    Factory,
    GatewaySettings,
    Match,
    ModelEntry,
    PlannerSettings,
    TierRule,
    TracingSettings,
    UpstreamEntry,
    load_factory,
)
from sovereign_ai.inventory.cluster_doctor import CLUSTER_CHECKS
from sovereign_ai.inventory.doctor import HOST_CHECKS
from sovereign_ai.spec import Format
from tests.cli.conftest import Here, here

__all__ = ["here"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how-to" / "plan-a-rig.md"
ALL = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "examples" / "README.md"])


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Shown(NamedTuple):
    """A command of a console block, and what the docs show of its output; `code` where they tell it."""

    command: str
    lines: list[str]
    code: int = 0


def commands(text: str) -> Iterator[Shown]:
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield Shown(command, [line for line in lines if line != "…"])


def typed(text: str) -> list[Shown]:
    """Commands with the exit codes that `echo $?` behind them shows."""
    found: list[Shown] = []
    for shown in commands(text):
        if shown.command == "echo $?":
            found[-1] = found[-1]._replace(code=int(shown.lines[0]))
        else:
            found.append(shown)
    return found


def corrected(text: str, shown: Shown, real: list[str]) -> str:
    for line in shown.lines:
        if line not in real:
            near = difflib.get_close_matches(line, real, n=1, cutoff=0.0)[0]
            text = text.replace(f"\n{line}\n", f"\n{near}\n")
    return text


def test_the_how_to_runs_as_written(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, one after the other, as a reader does."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    text = HOW_TO.read_text()
    assert len(typed(text)) >= 10
    for shown in typed(text):
        program, *arguments = shlex.split(shown.command)
        if program == "cat":
            real = Path(arguments[0]).read_text().splitlines()
        else:
            assert program == "sovereign"
            done = here(*arguments)
            assert done.code == shown.code, (shown.command, done.err)
            real = [*done.out.splitlines(), *done.err.splitlines()]
        if os.environ.get("SOVEREIGN_UPDATE_GOLDEN"):
            HOW_TO.write_text(corrected(HOW_TO.read_text(), shown, real))
        else:
            left = iter(real)
            missing = [line for line in shown.lines if line not in left]
            assert missing == [], shown.command


def test_every_check_of_doctor_is_in_the_reference() -> None:
    """The page has exactly those there are, in the order in which they are shown."""
    _, _, checks = (DOCS / "reference" / "doctor.md").read_text().partition("\n## The driver\n")
    named = re.findall(r"^\| (?!check \||-)([^|]+) \| [^|]+ \| [^|]+ \|$", checks, re.MULTILINE)
    assert named == [*(one.name for one in HOST_CHECKS), *(one.name for one in CLUSTER_CHECKS)]
    assert len(named) == len(set(named)) >= 30


LATER: set[str] = set()
"""Verbs that a text says are not there yet."""


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_command_in_a_text_exists(here: Here, file: Path) -> None:
    """Verbs and options that any document names between backticks or in a block of commands."""
    text = file.read_text()
    lines = re.findall(r"`(sovereign [^`]+)`", text)
    lines += re.findall(r"^(?:\$ |    )(sovereign .+)$", text, re.MULTILINE)
    for line in lines:
        verb = re.match(r"sovereign (plan diff|keys \w+|engine \w+|models \w+|migrate \w+|\w+)", line)
        if verb and verb[1] not in LATER:
            helped = here(*verb[1].split(), "--help")
            assert helped.code == 0, line
            for option in re.findall(r"(?<=[\[ ])--[a-z-]+", line):
                assert re.search(rf"{option}\b", helped.out), line


VERBS = ("up", "inventory", "doctor", "tiers", "plan", "plan diff", "calibrate", "chat", "logs", "agent")
KEY_VERBS = ("keys create", "keys list", "keys set", "keys rotate", "usage")
STORE_VERBS = ("models pull", "models convert", "models quantize", "models use", "migrate compose")
SHORT = {"--factory": "`-f`", "--inventory": "`-i`", "--lines": "-n N", "--follow": "-f"}
POSITIONAL = {"--a", "--b", "--question", "--name", "--source", "--gguf", "--file", "--key"}


@pytest.mark.parametrize("verb", VERBS + KEY_VERBS + STORE_VERBS)
def test_every_option_is_in_the_reference(here: Here, verb: str) -> None:
    helped = here(*verb.split(), "--help").out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", helped)) - {"--help", "--version"} - POSITIONAL
    text = (DOCS / "reference" / "command-line.md").read_text()
    assert f"`sovereign {verb} " in text
    missing = [option for option in options if option not in text and SHORT.get(option, option) not in text]
    assert [option for option in missing if not option.startswith("--empty-")] == []


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Top level", Factory),
        ("models", ModelEntry),
        ("tiers", TierRule),
        ("tiers", Match),
        ("planner", PlannerSettings),
        ("engine", EngineSettings),
        ("gateway", GatewaySettings),
        ("gateway.upstreams", UpstreamEntry),
        ("kubernetes", ClusterSettings),
        ("kubernetes.storage", ClusterStorage),
        ("gateway.tracing", TracingSettings),
    ],
)
def test_every_key_of_factory_yaml_is_in_the_reference(heading: str, struct: type[msgspec.Struct]) -> None:
    text = (DOCS / "reference" / "factory.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    keys = {key for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
            for key in re.findall(r"\w+", row)}  # fmt: skip
    fields = {field.name for field in msgspec.structs.fields(struct)} - {"where"}
    others = {"name", "role", "match"} if struct is Match else set(Match.__struct_fields__)
    assert fields - keys == set()
    assert keys - fields <= others


def test_defaults_and_formats_are_those_there_are() -> None:
    text = (DOCS / "reference" / "factory.md").read_text()
    for key, default in (
        ("port", GatewaySettings().port),
        ("host", f"`{GatewaySettings().host}`"),
        ("max_body_bytes", f"{GatewaySettings().max_body_bytes:,}"),
        ("move_cost", PlannerSettings().move_cost),
        ("prefer", f"`{PlannerSettings().prefer}`"),
        ("release", f'`"{DEFAULT_RELEASE}"`'),
        ("role", "`utility`"),
    ):
        assert re.search(rf"^\| `{key}` \| [^|]+ \| {re.escape(str(default))} \|", text, re.MULTILINE), key
    assert all(f"`{form}`" in text for form in Format.__args__)  # type: ignore[attr-defined]


YAML = [
    (file, number, block) for file in ALL for number, block in enumerate(blocks(file.read_text(), "yaml"))
]


@pytest.mark.parametrize(
    ("file", "number", "block"), YAML, ids=[f"{file.name}-{number}" for file, number, _ in YAML]
)
def test_a_factory_in_a_text_is_one(tmp_path: Path, file: Path, number: int, block: str) -> None:
    written = tmp_path / "factory.yaml"
    written.write_text(block)
    assert load_factory(written) != Factory()


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        other = (file.parent / path) if path else file
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert anchor in anchors, target
