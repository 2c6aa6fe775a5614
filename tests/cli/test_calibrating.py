"""What `sovereign calibrate` makes of speeds. The running stack is played by a fake gateway; the end-to-end
test asks the real one."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.cli import conversation
from sovereign_ai.cli.calibrating import calibrate, from_stack, from_table
from sovereign_ai.cli.conversation import Answer
from sovereign_ai.cli.measured import FILE, load, measured
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.errors import NotRunning, UsageError
from sovereign_ai.inventory import form_tiers
from sovereign_ai.planner import Wish, make_plan
from sovereign_ai.spec import Plan
from sovereign_ai.store import Store
from tests.cli.conftest import Here
from tests.inventory.fakes import cpu, inventory
from tests.planner.models import MINILM, SMOL

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
COLUMNS = (
    "gpu",
    "n_gpu",
    "link_parallel",
    "engine",
    "model",
    "quant",
    "batch",
    "test",
    "prefill_tok_s",
    "decode_tok_s",
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(home=tmp_path, storage=tmp_path / "storage")


def table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "speeds.csv"
    usual = dict.fromkeys(COLUMNS, "") | {
        "gpu": "RTX 3090 24GB",
        "n_gpu": "1",
        "engine": "vLLM 0.9",
        "model": "Llama-3.1-8B",
        "quant": "BF16",
        "batch": "1",
        "test": "ctx1024",
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(usual | row for row in rows)
    return path


def test_a_table_of_speeds(tmp_path: Path) -> None:
    slower = {"decode_tok_s": "25"}
    (entry,) = from_table(table(tmp_path, slower, {"test": "pp2048", "prefill_tok_s": "2000"}))
    assert (entry.card, entry.engine, entry.points, entry.tokens_per_s) == (
        "GeForce RTX 3090",
        "vllm",
        1,
        25.0,
    )
    known = constants_for("vllm")
    assert entry.constants.read["gddr-16"] > known.read["gddr-16"], "half the speed is twice the reading"
    assert entry.constants.compute != known.compute


def test_cards_are_measured_apart(tmp_path: Path) -> None:
    rows = ({"decode_tok_s": "40"}, {"gpu": "RTX 4090", "decode_tok_s": "50"})
    assert [one.card for one in from_table(table(tmp_path, *rows))] == [
        "GeForce RTX 3090",
        "GeForce RTX 4090",
    ]


def test_speeds_of_other_engines_say_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`llama\.cpp` is not an engine that serves here"):
        from_table(table(tmp_path, {"engine": "llama.cpp", "decode_tok_s": "40"}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the table is empty"),
        ("gpu,n_gpu\nRTX 3090,1\n", "cannot be read as a table of speeds"),
    ],
)
def test_tables_without_speeds(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        from_table(path)


def test_a_table_that_is_not_there(here: Here) -> None:
    done = here("calibrate", "--from", "/nowhere/speeds.csv")
    assert done.code == 64
    assert "/nowhere/speeds.csv: cannot be read" in done.err
    assert not (here.home / FILE).exists()


def test_a_plan_uses_what_a_table_says(here: Here, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "two-3090"
    plan = ("plan", "-f", str(example / "factory.yaml"), "-i", str(example / "inventory.json"), "--json")
    before = here(*plan).data
    assert here("calibrate", "--from", str(table(tmp_path, {"decode_tok_s": "25"}))).code == 0
    assert "GeForce RTX 3090" in measured(here.home)
    after = here(*plan).data
    slower = after["deployments"][0]["speed"]["decode_one"]
    assert slower < 0.7 * before["deployments"][0]["speed"]["decode_one"]


def test_measuring_again_replaces_only_what_was_measured(here: Here, tmp_path: Path) -> None:
    both = table(tmp_path, {"decode_tok_s": "40"}, {"gpu": "RTX 4090", "decode_tok_s": "50"})
    assert here("calibrate", "--from", str(both)).code == 0
    done = here("calibrate", "--from", str(table(tmp_path, {"decode_tok_s": "30"})), "--json")
    assert [one["tokens_per_s"] for one in done.data] == [30.0]
    speeds = {one.card: one.tokens_per_s for one in load(here.home).entries}
    assert speeds == {"GeForce RTX 4090": 50.0, "GeForce RTX 3090": 30.0}


def test_the_table_of_the_real_card_is_one() -> None:
    (entry,) = from_table(DATA / "h100_points.csv")
    assert (entry.card, entry.points) == ("H100 SXM", 12)
    assert 0.5 < entry.constants.compute < 0.8


class Gateway:
    """Answers as a stack of a known speed would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, paths: Paths, *, alone: float = 20.0) -> None:
        self.alone = alone
        host = inventory(cpu())
        plan = make_plan(host, form_tiers(host), [Wish(model=SMOL), Wish(model=MINILM)])
        self.write(paths, plan)
        stored = SimpleNamespace(model=SMOL, name=SMOL.name, version=SMOL.version)
        monkeypatch.setattr(local, "running", lambda paths: SimpleNamespace(gateway_url="http://stack"))
        monkeypatch.setattr(Store, "list", lambda store: (stored,))
        monkeypatch.setattr(conversation, "ask", self.ask)

    def write(self, paths: Paths, plan: Plan) -> None:
        paths.run.mkdir(parents=True, exist_ok=True)
        (paths.run / "plan.json").write_bytes(msgspec.json.encode(plan))

    def ask(self, url: str, key: str, model: str, messages: Any, options: Any) -> Answer:
        assert (url, model) == ("http://stack", "smollm2-135m")
        if options["max_tokens"] == 1:
            time.sleep(0.01)
            return Answer("", 1, 0.0, 0.0, prompt_tokens=650)
        together = "alone" not in messages[0]["content"]
        speed = self.alone / 4 if together else self.alone
        return Answer("story", 48, 47 / speed if speed else 0.0, 0.1, prompt_tokens=30)


def test_the_running_stack(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> None:
    Gateway(monkeypatch, paths)
    (entry,) = from_stack(Console(json=True), paths)
    assert (entry.engine, entry.vllm, entry.points) == ("vllm-cpu", "0.32.0", 3)
    assert entry.tokens_per_s == pytest.approx(20.0, rel=0.01), "the constants explain what was measured"
    assert entry.constants.sequence_s > constants_for("vllm-cpu").sequence_s


def test_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    Gateway(monkeypatch, paths)
    calibrate(Console(), paths, None)
    out, err = capsys.readouterr()
    assert "(vllm-cpu, 3 speeds)" in out
    assert "sequence_s" in out
    assert "every plan for these cards uses it from now on" in err
    assert json.loads((paths.home / FILE).read_text())["entries"][0]["engine"] == "vllm-cpu"


def test_answers_of_one_token_measure_nothing(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> None:
    Gateway(monkeypatch, paths, alone=0.0)
    with pytest.raises(UsageError, match="nothing can be measured"):
        from_stack(Console(json=True), paths)


def test_nothing_runs(paths: Paths) -> None:
    with pytest.raises(NotRunning, match="nothing is running here"):
        from_stack(Console(json=True), paths)


def test_no_chat_model_on_the_cpu(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> None:
    gateway = Gateway(monkeypatch, paths)
    gateway.write(paths, Plan(tiers=(), deployments=()))
    with pytest.raises(UsageError, match="no chat model runs on the CPU here"):
        from_stack(Console(json=True), paths)


def test_a_model_that_is_gone(monkeypatch: pytest.MonkeyPatch, paths: Paths) -> None:
    Gateway(monkeypatch, paths)
    monkeypatch.setattr(Store, "list", lambda store: ())
    with pytest.raises(UsageError, match="the store has no `smollm2-135m`"):
        from_stack(Console(json=True), paths)
