"""`sovereign plan` and `sovereign plan diff` through the real command, good input and bad."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.cli import planning
from sovereign_ai.cli.measured import Calibration, Entry
from sovereign_ai.cli.planning import Request
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import load_factory
from sovereign_ai.console import Console
from sovereign_ai.errors import PlanError
from sovereign_ai.inventory import form_tiers, load_inventory
from sovereign_ai.spec import Plan
from sovereign_ai.store import Store
from tests.cli.conftest import Done, Here, Sovereign

EXAMPLES = Path(__file__).parents[2] / "examples"
RIG = EXAMPLES / "reference-rig"
ON_RIG = ("plan", "-f", str(RIG / "factory.yaml"), "-i", str(RIG / "inventory.json"))
FAST = "GPU-1f2a7333-0e1f-5061-8f3a-77193c18758a"
EMBEDDER = "  - name: bge-m3\n    source: hf:BAAI/bge-m3\n"
NEMO = "  - name: nemo\n    source: hf:mistralai/Mistral-Nemo-Instruct-2407\n"


class Desk:
    """The command with a factory.yaml and an inventory.json of one's own."""

    def __init__(self, here: Here, folder: Path) -> None:
        self.here, self.file, self.machine = here, folder / "factory.yaml", folder / "inventory.json"
        self.machine.write_bytes((RIG / "inventory.json").read_bytes())

    def __call__(self, text: str, *more: str) -> Done:
        self.file.write_text(text)
        return self.here("plan", "-f", str(self.file), "-i", str(self.machine), *more)

    def edit(self, **changes: Any) -> None:
        """Change fields of the first device of the inventory."""
        data = json.loads(self.machine.read_bytes())
        data["nodes"][0]["devices"][0] |= changes
        self.machine.write_text(json.dumps(data, indent=2))


@pytest.fixture
def desk(here: Here, tmp_path: Path) -> Desk:
    return Desk(here, tmp_path)


def refused(done: Done, code: int, message: str, hint: str | None = None) -> None:
    """Nothing but the error: what was wrong, and what to do."""
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) == (1 if hint is None else 2)
    if hint is not None:
        assert lines[1].startswith(f"  → {hint}")


# What comes out


def test_a_plan_in_tables_with_its_notes_beside_it(here: Here) -> None:
    done = here(*ON_RIG)
    assert done.code == 0
    titles = [line for line in done.out.splitlines() if line in ("Tiers", "Plan", "Engines", "Memory")]
    assert titles == ["Tiers", "Plan", "Engines", "Memory"]
    assert [line.partition(":")[0] for line in done.err.splitlines()] == [
        "mistral-nemo", "coder", "bge-m3", "to make", "to make",
    ]  # fmt: skip
    assert not here.home.exists()


def test_json_is_the_plan(here: Here) -> None:
    done = here(*ON_RIG, "--json")
    assert (done.code, done.err) == (0, "")
    plan = msgspec.json.decode(done.out, type=Plan)
    assert [one.model for one in plan.deployments] == ["mistral-nemo", "coder", "bge-m3"]


def test_a_saved_plan_is_what_json_prints(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")
    done = here(*ON_RIG, "--save", str(file), "--json")
    assert file.read_text() == done.out
    assert done.err == f"saved to {file}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_without_a_file_the_catalogs_models_on_this_machine(here: Here) -> None:
    done = here("plan", "--json")
    assert done.code == 0
    assert [one["model"] for one in done.data["deployments"]] == ["smollm2-135m", "minilm-l6-v2"]


def test_explain_shows_every_option_that_lost(here: Here) -> None:
    lines = here(*ON_RIG, "--explain", "coder").out.splitlines()
    rows = lines[lines.index("Options of coder that lost") + 1 :]
    assert rows[0].split() == ["fits", "option", "why"]
    assert {row.split()[0] for row in rows[1:]} == {"no", "yes"}
    assert any("4-bit (W4A16) on 1× RTX 3060 12GB" in row for row in rows)


def test_explain_as_json_puts_every_option_into_the_plan(here: Here) -> None:
    plain, explained = here(*ON_RIG, "--json").data, here(*ON_RIG, "--explain", "mistral-nemo", "--json").data
    told = [[one["option"] for one in data["rejected"] if one["model"] == "mistral-nemo"]
            for data in (plain, explained)]  # fmt: skip
    assert set(told[0]) <= set(told[1])
    assert {**plain, "rejected": None} == {**explained, "rejected": None}


def test_what_if_is_compared_with_the_machine_as_it_is(here: Here) -> None:
    done = here(*ON_RIG, "--what-if", "add 1x RTX 4090 to rig")
    assert done.code == 0
    _, title, after = done.out.partition("Changes against a plan for the devices as they are\n")
    assert title
    assert "  mistral-nemo moves from GPU-1f2a7333, GPU-9799af58 of rig to" in after


def test_without_a_card(here: Here) -> None:
    done = here(*ON_RIG, "--without", FAST[:8], "--json")
    assert done.code == 0
    assert FAST not in done.out
    assert here(*ON_RIG, "--without", FAST, "--json").out == done.out


def test_a_what_if_that_changes_nothing(here: Here) -> None:
    out = here(*ON_RIG, "--what-if", "add 1x GTX 1660 Super to rig").out
    assert out.endswith("Changes against a plan for the devices as they are\n  none\n")


def test_a_what_if_where_there_is_no_plan_without_it(desk: Desk) -> None:
    text = f"models:\n{NEMO}    context: 65536\n    quantization: [bfloat16]\n"
    done = desk(text, "--what-if", "add 1x A100 SXM 80GB to rig")
    assert done.code == 0
    assert "without the change there is no plan: " in done.err
    assert "no place for `nemo`" in done.err
    assert "Changes" not in done.out


def test_a_what_if_for_which_the_tiers_were_written(desk: Desk) -> None:
    """The rule matches no card of the machine as it is: no reason to end the plan for the other one."""
    tier = "tiers:\n  - name: big\n    role: big\n    match: {name: RTX 4090}\n"
    done = desk(f"models:\n{EMBEDDER}    tier: big\n{tier}", "--what-if", "add 1x RTX 4090 to rig")
    assert done.code == 0
    assert "without the change there is no plan: " in done.err


def test_a_running_plan_stays_where_it_is(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    here(*ON_RIG, "--save", str(file))
    out = here(*ON_RIG, "--current", str(file)).out
    assert out.endswith("Changes against the plan that runs\n  none\n")
    assert "Changes against" not in here(*ON_RIG).out


def test_a_copy_without_a_place_is_an_error_after_the_plan(desk: Desk) -> None:
    text = f"models:\n{NEMO}    replicas: 9\n"
    done = desk(text)
    assert done.code == 69
    assert "no place: nemo: " in done.out
    assert done.err.endswith(
        "error: no place for every copy of nemo\n  → sovereign plan --explain MODEL shows the options\n"
    )
    as_json = desk(text, "--json")
    assert (as_json.code, as_json.data["unplaced"][0]["model"]) == (69, "nemo")


def test_a_card_at_fault_is_told(desk: Desk) -> None:
    desk.edit(fault="does not answer: it is gone")
    done = desk(f"models:\n{EMBEDDER}", "--json")
    assert done.code == 0
    assert done.err == f"in no tier: {FAST} (NVIDIA GeForce RTX 3080): does not answer: it is gone\n"


def test_what_was_measured_here_decides_the_speed(here: Here) -> None:
    before = here(*ON_RIG, "--json").data["deployments"][1]["speed"]["decode_one"]
    vllm = constants_for("vllm")
    slow = msgspec.structs.replace(vllm, read={kind: 10 * part for kind, part in vllm.read.items()})
    entry = Entry(
        card="GeForce RTX 3060 12GB",
        engine="vllm",
        vllm="0.5.5",
        constants=slow,
        tokens_per_s=1.0,
        points=1,
        made=1,
    )
    here.home.mkdir()
    (here.home / "calibration.json").write_bytes(msgspec.json.encode(Calibration(entries=(entry,))))
    assert here(*ON_RIG, "--json").data["deployments"][1]["speed"]["decode_one"] < before / 2
    (here.home / "calibration.json").write_text("{")
    refused(here(*ON_RIG), 78, "calibration.json: damaged", "measure again: sovereign calibrate")


# plan diff


@pytest.fixture
def plans(here: Here, tmp_path: Path) -> tuple[str, str]:
    files = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    here(*ON_RIG, "--save", files[0])
    here(*ON_RIG, "--without", FAST, "--save", files[1])
    return files


def test_equal_plans(here: Here, plans: tuple[str, str]) -> None:
    assert here("plan", "diff", plans[0], plans[0]) == (0, "both plans deploy the same\n", "")
    assert here("plan", "diff", plans[0], plans[0], "--json") == (0, "[]\n", "")


def test_different_plans(here: Here, plans: tuple[str, str]) -> None:
    done = here("plan", "diff", *plans)
    assert (done.code, done.err) == (1, "")
    assert "mistral-nemo moves from GPU-1f2a7333, GPU-9799af58 of rig to " in done.out
    as_json = here("plan", "diff", *plans, "--json")
    assert (as_json.code, as_json.data) == (1, done.out.splitlines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tiers: []", "not a plan: JSON is malformed: invalid character (byte 4)"),
        (b"", "not a plan: Input data was truncated"),
        (b'{"nodes": []}', "not a plan: Object contains unknown field `nodes`"),
        (b'{"tiers": [], "deployments": 3}', "not a plan: Expected `array`, got `int` - at `$.deployments`"),
        (b'{"tiers": "\xff"}', "not a plan: "),
        (b"[" * 100_000, "not a plan: "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_not_a_plan(
    here: Here, tmp_path: Path, plans: tuple[str, str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "broken.json"
    if content is not None:
        file.write_bytes(content)
    for arguments in (
        ("plan", "diff", plans[0], str(file)),
        ("plan", "diff", str(file), plans[0]),
        ("plan", "diff", str(file), plans[0], "--json"),
        (*ON_RIG, "--current", str(file)),
        (*ON_RIG, "--current", str(file), "--json"),
    ):
        refused(here(*arguments), 78, f"{file}: {message}", "make one: sovereign plan --save FILE")


@pytest.mark.parametrize("field", ["memories", "devices"])
def test_a_plan_that_was_edited_badly(here: Here, plans: tuple[str, str], field: str) -> None:
    data = json.loads(Path(plans[0]).read_bytes())
    data["deployments"][2][field] = []
    Path(plans[0]).write_text(json.dumps(data))
    counts = "0 memories for 1 devices" if field == "memories" else "1 memories for 0 devices"
    refused(
        here("plan", "diff", *plans),
        78,
        f"{plans[0]}: not a plan: {counts} - at `$.deployments[2]`",
        "make one",
    )


def test_a_folder_is_not_a_plan(here: Here, tmp_path: Path) -> None:
    refused(here(*ON_RIG, "--current", str(tmp_path)), 78, f"{tmp_path}: cannot be read", "make one")


# Bad input: factory.yaml


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("tier: utilty", "there is no tier `utilty` for `bge-m3`", "did you mean `utility`?"),
        ("tier: elsewhere", "there is no tier `elsewhere`", "tiers here: context, primary, utility"),
        ("devices: [GPU-dead]", "there is no device `GPU-dead` for `bge-m3`", "sovereign inventory lists"),
        ("devices: [GPU-]", "`GPU-` begins the names of 6 devices", "write more of it"),
    ],
)
def test_a_wish_that_the_machine_contradicts(desk: Desk, line: str, message: str, hint: str) -> None:
    for more in ((), ("--json",)):
        refused(desk(f"models:\n{EMBEDDER}    {line}\n", *more), 78, f"{desk.file}:2: {message}", hint)


def test_two_that_insist_on_the_same_card(desk: Desk) -> None:
    pins = f"models:\n{EMBEDDER}    devices: [{FAST}]\n{NEMO}    devices: [{FAST}, GPU-9799]\n"
    message = f"{desk.file}:5: `nemo` and `bge-m3` both insist on {FAST}"
    refused(desk(pins), 78, message, "give it to one of them")


def test_pins_to_two_machines(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text(f"models:\n{EMBEDDER}    devices: [GPU-053059c8, GPU-567560a9]\n")
    done = here("plan", "-f", str(file), "-i", str(EXAMPLES / "two-nodes" / "inventory.json"))
    refused(done, 78, f"{file}:2: the devices of `bge-m3` are on different nodes", "one deployment runs on")


def test_a_pin_to_a_card_that_died(desk: Desk) -> None:
    done = desk(f"models:\n{EMBEDDER}    devices: [{FAST}]\n", "--without", FAST)
    refused(done, 78, f"{desk.file}:2: there is no device `{FAST}`", "sovereign inventory lists")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("context: -1", "context -1 is below 16 tokens"),
        ("priority: -1", "priority -1 is not between 1 and 100"),
        ("share: -0.5", "share -0.5 is not above 0"),
        ("min_tokens_per_s: -1", "min_tokens_per_s -1 is not 0 or more"),
        ("concurrency: -1", "concurrency -1 is not between 1 and 10000"),
        ("replicas: -1", "replicas -1 is not between 1 and 1000"),
    ],
)
def test_negative_numbers_of_a_model(desk: Desk, line: str, message: str) -> None:
    refused(desk(f"models:\n{EMBEDDER}    {line}\n"), 78, f"{desk.file}:4: {message}")


def test_negative_numbers_elsewhere(desk: Desk) -> None:
    refused(desk("planner:\n  move_cost: -1\n"), 78, f"{desk.file}:2: move_cost -1 is not 0 or more")
    match = "tiers:\n  - name: a\n    match:\n      min_memory_gib: -1\n"
    refused(desk(match), 78, f"{desk.file}:4: min_memory_gib -1 is not above 0")


def test_a_context_beyond_what_the_model_was_made_for(desk: Desk) -> None:
    done = desk(f"models:\n{EMBEDDER}    context: 10000\n")
    refused(done, 69, f"{desk.file}:2: a context of 10000 tokens for `bge-m3`", "set its context to 8192")


def test_a_release_that_does_not_exist(desk: Desk) -> None:
    refused(
        desk('engine:\n  release: "23.13"\n'), 78, "Triton release `23.13` is not known", "the nearest known"
    )


IMPOSSIBLE = "models:\n  - name: big\n    source: hf:Qwen/Qwen2.5-72B-Instruct\n    context: 32768\n"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_impossible_model_names_three_ways_out(desk: Desk, more: tuple[str, ...]) -> None:
    done = desk(IMPOSSIBLE, *more)
    refused(
        done, 69, f"{desk.file}:2: no place for `big` with a context of 32768 tokens: the closest is", "ask"
    )
    ways = done.err.splitlines()[1].removeprefix("  → ").split("; or ")
    assert len(ways) == 3
    assert ways[0] == "ask for a smaller context than 32768"
    assert ways[1].startswith("add memory: ")
    assert ways[2] == "serve a smaller model, or one that is quantized further"


def test_an_impossible_model_can_be_explained(desk: Desk) -> None:
    done = desk(IMPOSSIBLE, "--explain", "big")
    assert done.code == 69
    assert done.out.startswith("Options of big that lost\n")
    assert all(line.startswith("no ") for line in done.out.splitlines()[2:])
    assert "no place for `big`" in done.err
    as_json = desk(IMPOSSIBLE, "--explain", "big", "--json")
    assert (as_json.code, as_json.out) == (69, "")


def test_a_possible_model_beside_an_impossible_one(desk: Desk) -> None:
    """What fits did not lose to anything: there is no plan."""
    out = desk(f"{IMPOSSIBLE}{EMBEDDER}", "--explain", "bge-m3").out
    assert out.splitlines()[0] == "Options of bge-m3 that lost"
    assert "yes" not in out


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_explain_of_a_model_that_nobody_wishes_for(here: Here, more: tuple[str, ...]) -> None:
    refused(
        here(*ON_RIG, "--explain", "codr", *more), 64, "no model `codr` to explain", "did you mean `coder`?"
    )
    names = "models: mistral-nemo, coder, bge-m3"
    refused(here(*ON_RIG, "--explain", "x", *more), 64, "no model `x` to explain", names)


# Bad input: models (more in test_wanted.py)


def test_a_model_that_the_catalog_does_not_know(desk: Desk) -> None:
    done = desk("models:\n  - name: x\n    source: hf:Qwen/Qwen2.5-7C-Instruct\n")
    near = "the catalog has qwen2.5-7b, "
    refused(done, 78, f"{desk.file}:2: nothing is known of `Qwen/Qwen2.5-7C-Instruct`", near)


def test_a_folder_with_a_broken_config(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": [')
    done = desk("models:\n  - name: x\n    source: file:./model\n")
    refused(done, 65, f"{desk.file}:2: {tmp_path}/model/config.json: not a JSON object")


# Bad input: inventory.json


def test_a_uuid_that_is_there_twice(desk: Desk) -> None:
    desk.edit(id="GPU-4afa4a21-7520-5369-8b6f-70419ddcfc33")
    for more in ((), ("--json",)):
        done = desk(f"models:\n{EMBEDDER}", *more)
        assert (done.code, done.out) == (69, "")
        assert done.err.startswith(f"error: {desk.machine}:")
        assert "GPU-4afa4a21-7520-5369-8b6f-70419ddcfc33" in done.err
        assert f"(first {desk.machine}:7 (nodes[0].devices[0].id))" in done.err


def test_an_inventory_that_is_broken_off(desk: Desk) -> None:
    desk.machine.write_text(desk.machine.read_text()[:400])
    refused(desk(f"models:\n{EMBEDDER}"), 69, f"{desk.machine}:15: not valid JSON", "fix the syntax")


@pytest.mark.parametrize(
    "field", ["memory_bytes", "memory_free_bytes", "bandwidth_bytes_per_s", "power_limit_w"]
)
def test_negative_numbers_of_a_card(desk: Desk, field: str) -> None:
    desk.edit(**{field: -1})
    done = desk(f"models:\n{EMBEDDER}")
    assert (done.code, done.out) == (69, "")
    assert f"(nodes[0].devices[0].{field}): " in done.err
    assert done.err.startswith(f"error: {desk.machine}:")


# Bad input: the command line


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ("--what-if", "nonsense"),
            "`nonsense` is not a change of an inventory",
            'write "add 1x RTX 3060 12GB',
        ),
        (("--what-if", "add 0x T4"), "`add 0x T4`: between 1 and 64 cards can be added", None),
        (("--what-if", "add 1x RTX 9999"), "no card `RTX 9999` in the catalog", "did you mean RTX "),
        (("--what-if", "remove GPU-dead"), "there is no device `GPU-dead`", "sovereign inventory lists"),
        (("--without", "GPU-dead"), "there is no device `GPU-dead`", "sovereign inventory lists"),
        (("--without", "GPU-"), "6 devices begin with `GPU-`", "sovereign inventory lists"),
    ],
)
def test_a_change_that_cannot_be(
    here: Here, arguments: tuple[str, ...], message: str, hint: str | None
) -> None:
    for more in ((), ("--json",)):
        refused(here(*ON_RIG, *arguments, *more), 64, message, hint)


def test_a_folder_that_does_not_exist_to_save_to(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "none" / "plan.json"
    refused(here(*ON_RIG, "--save", str(file)), 64, f"{file}: the plan cannot be saved there: No such file")
    refused(here(*ON_RIG, "--save", str(tmp_path)), 64, f"{tmp_path}: the plan cannot be saved there: Is a")


@contextmanager
def forbidden(folder: Path) -> Iterator[Path]:
    """A folder that this process cannot write to: for root, by becoming nobody for the while."""
    folder.mkdir(mode=0o555)
    for parent in folder.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_written(here: Here, tmp_path: Path) -> None:
    here(*ON_RIG)  # all code is loaded now: nobody may not be able to read it
    with forbidden(tmp_path / "forbidden") as folder:
        done = here(*ON_RIG, "--save", str(folder / "plan.json"))
    refused(
        done, 77, f"no permission while saving the plan ({folder}/.plan.json.", "make the folder writable"
    )
    assert list(folder.iterdir()) == []


# What `up` asks


def test_up_takes_all_of_a_plan_or_none(here: Here) -> None:
    factory = load_factory(RIG / "factory.yaml")
    inventory = load_inventory(RIG / "inventory.json")
    wishes = wishes_for(factory.models, Store(here.paths.models, here.paths.cache))
    made = planning.plan_of(factory, here.paths, inventory, form_tiers(inventory), wishes)
    assert len(made.deployments) == 3
    many = [msgspec.structs.replace(wish, replicas=9) for wish in wishes]
    with pytest.raises(PlanError, match=r"not everything has a place: .*coder: "):
        planning.plan_of(factory, here.paths, inventory, form_tiers(inventory), many)


def test_a_request_asks_for_nothing_by_default() -> None:
    assert Request() == ((None, False, None, None), None, None, None, (), ())


def test_native_code_prints_nothing(sovereign: Sovereign) -> None:
    """The solver has a banner; it must not reach the streams of the command."""
    done = sovereign(*ON_RIG)
    assert "highs" not in (done.out + done.err).lower()
    assert done.out.startswith("Tiers\n")
    assert done.err.startswith("mistral-nemo: ")


def test_the_console_of_a_plan_is_silent_with_json(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(tiers=(), deployments=())
    assert not planning.diff(Console(json=True), *[_saved(here, plan)] * 2)
    assert capsys.readouterr().out == "[]\n"


def _saved(here: Here, plan: Plan) -> Path:
    file = here.home.with_name("empty.json")
    planning.save_plan(file, plan)
    return file
