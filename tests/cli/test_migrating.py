"""`sovereign migrate compose` on every example, as it was read and agreed on; and what it refuses.

The agreed ones lie beside each compose file: factory.yaml (standard output) and report.txt (standard error).
Remake them with

    SOVEREIGN_UPDATE_GOLDEN=1 .venv/bin/pytest tests/cli/test_migrating.py

and read the difference before it is committed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.cli import migrating
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import load_factory
from sovereign_ai.migrate import Migration
from sovereign_ai.store import Store
from tests.cli.conftest import Done, Here

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "examples" / "compose"
NAMES = sorted(folder.name for folder in COMPOSE.iterdir() if folder.is_dir())
RIG = Path("examples/reference-rig/inventory.json")
ON_THE_RIG = ("one-giant-gpu", "pinned-by-uuid")
"""Examples that are read with the rig's inventory."""

SECRETS = (
    "sk-old-llama-0123456789abcdef", "webui-3f9c1b7a", "hf_OldTokenOldTokenOldToken", "vllm-old-key-42424242",
    "webui-api-key-77", "local-ai-key-1", "local-ai-key-2", "sk-litellm-master-1234", "dbpass-9876",
    "tei-secret-key-5555", "old$key$with$dollars", "tok-should-not-show", "pg-should-not-show",
    "hf_AnotherOldTokenAnotherOld",
)  # fmt: skip
"""Every key, token and password of the examples."""

Run = Callable[..., Done]


@pytest.fixture
def run(here: Here, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, typed in the checkout."""
    monkeypatch.chdir(ROOT)

    def ran(
        file: Path | str,
        out: Path | None = None,
        *,
        inventory: Path | None = None,
        force: bool = False,
        as_json: bool = False,
    ) -> Done:
        options = ["-i", str(inventory)] if inventory else []
        options += ["--out", str(out)] if out else []
        options += [*["--force"] * force, *["--json"] * as_json]
        return here("migrate", "compose", str(file), *options)

    return ran


def file_of(name: str) -> Path:
    """As a person types it in the checkout."""
    return Path("examples") / "compose" / name / "docker-compose.yml"


def inventory_of(name: str) -> Path | None:
    return RIG if name in ON_THE_RIG else None


def agreed(file: Path, text: str) -> str:
    if os.environ.get("SOVEREIGN_UPDATE_GOLDEN"):
        file.write_text(text)
    return file.read_text()


def bytes_below(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(bytes(file) + file.read_bytes() for file in files)).hexdigest()


# The examples


@pytest.mark.parametrize("name", NAMES)
def test_what_was_agreed_on(run: Run, name: str) -> None:
    done = run(file_of(name), inventory=inventory_of(name))
    assert done.code == 0
    assert done.out == agreed(COMPOSE / name / "factory.yaml", done.out)
    assert done.err == agreed(COMPOSE / name / "report.txt", done.err)


@pytest.mark.parametrize("name", NAMES)
def test_every_factory_loads(name: str) -> None:
    factory = load_factory(COMPOSE / name / "factory.yaml")
    assert factory.models
    for model in factory.models:
        if model.source.startswith("file:"):
            assert Path(model.source.removeprefix("file:")).is_absolute()


@pytest.mark.parametrize("name", NAMES)
def test_models_of_the_hub_can_be_planned_for(here: Here, tmp_path: Path, name: str) -> None:
    """On eight large cards, so that everything has a place; those pinned to the rig's cards on the rig."""
    factory = load_factory(COMPOSE / name / "factory.yaml")
    known = [model for model in factory.models if model.source.startswith("hf:")]
    if not known:
        pytest.skip("its models are files or Ollama's")
    pinned = any(model.devices for model in known)
    machine = ROOT / "examples" / ("reference-rig" if pinned else "eight-a100") / "inventory.json"
    fields = ("name", "source", "task", "context", "concurrency", "replicas", "quantization", "devices")
    entries = [{key: getattr(model, key) for key in fields if getattr(model, key)} for model in known]
    file = tmp_path / "factory.yaml"
    file.write_bytes(msgspec.json.encode({"models": entries}))
    done = here("plan", "-f", str(file), "-i", str(machine), "--json")
    assert done.code == 0, done.err
    assert {one["model"] for one in done.data["deployments"]} == {model.name for model in known}


@pytest.mark.parametrize("name", NAMES)
def test_one_document_with_json(run: Run, name: str) -> None:
    done = run(file_of(name), inventory=inventory_of(name), as_json=True)
    assert (done.code, done.err) == (0, "")
    made = msgspec.json.decode(done.out, type=Migration)
    assert made.factory == (COMPOSE / name / "factory.yaml").read_text()
    assert migrating.report_lines(made.report) == (COMPOSE / name / "report.txt").read_text().splitlines()
    assert made.models == tuple(one.name for one in load_factory(COMPOSE / name / "factory.yaml").models)


@pytest.mark.parametrize("name", NAMES)
def test_the_old_files_stay_as_they_are(run: Run, tmp_path: Path, name: str) -> None:
    before = bytes_below(COMPOSE / name)
    assert run(file_of(name), tmp_path / "factory.yaml").code == 0
    assert bytes_below(COMPOSE / name) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_shown(run: Run, tmp_path: Path, name: str) -> None:
    plain = run(file_of(name))
    saved = run(file_of(name), tmp_path / "factory.yaml")
    whole = run(file_of(name), as_json=True)
    texts = [*plain, *saved, *whole, (tmp_path / "factory.yaml").read_text()]
    assert [secret for secret in SECRETS for text in texts if secret in str(text)] == []


def test_the_secrets_are_those_of_the_examples() -> None:
    files = [*COMPOSE.glob("*/docker-compose.yml"), *COMPOSE.glob("*/.env")]
    text = "\n".join(file.read_text() for file in files)
    assert [secret for secret in SECRETS if secret not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_the_report_points_at_its_file(run: Run, name: str) -> None:
    done = run(file_of(name), inventory=inventory_of(name), as_json=True)
    for line in msgspec.json.decode(done.out, type=Migration).report:
        path, _, number = line.where.rpartition(":")
        rows = (ROOT / path).read_text().splitlines()
        assert 1 <= int(number) <= len(rows)
        for word in re.findall(r"^`(-[^`]+|[A-Z_]{4,})`", line.what):
            assert word in rows[int(number) - 1].replace("_", "-") or word in rows[int(number) - 1], line


def test_the_giant_gpu_becomes_three_tiers(run: Run) -> None:
    report = (COMPOSE / "one-giant-gpu" / "report.txt").read_text()
    assert "6 cards as one GPU become 3 tiers (primary: 2× NVIDIA GeForce RTX 3080" in report
    assert "12 on RTX 3060 (GPU-3f0e08af, tier context)" in report
    without = run(file_of("one-giant-gpu"))
    assert "6 cards as one GPU: a model now runs on cards that match" in without.err


# Where it is written


def test_out_is_written_whole_and_the_report_shown(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "factory.yaml"
    done = run(file_of("vllm-awq-pair"), out)
    assert (done.code, done.err) == (0, f"saved to {out}\n")
    assert done.out.startswith("Carried over\n")
    text = out.read_text()
    assert text.startswith("# Made from examples/compose/vllm-awq-pair/docker-compose.yml by")
    assert [path.name for path in tmp_path.iterdir()] == ["factory.yaml"]
    assert load_factory(out).models[0].name == "qwen-32b"


def test_out_and_json(run: Run, tmp_path: Path) -> None:
    done = run(file_of("vllm-awq-pair"), tmp_path / "f.yaml", as_json=True)
    assert (done.code, done.err) == (0, "")
    assert done.data["factory"] == (tmp_path / "f.yaml").read_text()


def test_paths_fit_the_place_of_the_factory(run: Run, tmp_path: Path) -> None:
    """Elsewhere they become absolute; beside the compose file they stay."""
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "models").mkdir()
    (folder / "models" / "m.gguf").write_text("")
    compose = folder / "docker-compose.yml"
    compose.write_text(
        "services: {a: {image: 'ghcr.io/ggml-org/llama.cpp:server', command: -m /models/m.gguf, "
        "volumes: ['./models:/models']}}"
    )
    assert run(compose, folder / "factory.yaml").code == 0
    assert "source: file:models/m.gguf" in (folder / "factory.yaml").read_text()
    done = run(compose, tmp_path / "factory.yaml")
    assert done.code == 0
    assert f"source: file:{folder}/models/m.gguf" in (tmp_path / "factory.yaml").read_text()
    assert "is not there" not in done.out
    for file in (folder / "factory.yaml", tmp_path / "factory.yaml"):
        assert load_factory(file).models[0].source == f"file:{folder}/models/m.gguf"


def test_an_existing_file_is_kept_unless_forced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "factory.yaml"
    out.write_text("mine")
    done = run(file_of("vllm-awq-pair"), out)
    assert (done.code, done.out) == (64, "")
    assert done.err == f"error: {out} is there already\n  → choose another name, or replace it with --force\n"
    assert out.read_text() == "mine"
    assert run(file_of("vllm-awq-pair"), out, force=True).code == 0
    assert load_factory(out).models


def test_the_compose_file_is_never_written_to(run: Run, tmp_path: Path) -> None:
    compose = tmp_path / "docker-compose.yml"
    compose.write_bytes((ROOT / file_of("vllm-awq-pair")).read_bytes())
    link = tmp_path / "link.yaml"
    link.symlink_to(compose)
    for out in (compose, link):
        done = run(compose, out, force=True)
        assert done.code == 64
        assert "is the compose file itself" in done.err
    assert compose.read_bytes() == (ROOT / file_of("vllm-awq-pair")).read_bytes()


def test_out_that_cannot_be(run: Run, tmp_path: Path) -> None:
    assert "is a folder" in run(file_of("localai"), tmp_path).err
    done = run(file_of("localai"), tmp_path / "no" / "factory.yaml")
    assert (done.code, "there is no such folder" in done.err) == (64, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert run(file_of("localai"), tmp_path / "factory.yaml").code == 77
    finally:
        tmp_path.chmod(stat.S_IRWXU)


# What is refused


def refused(run: Run, tmp_path: Path, text: str) -> tuple[int, str]:
    file = tmp_path / "docker-compose.yml"
    file.write_text(text)
    done = run(file)
    assert done.out == ""
    assert done.err.startswith("error: ")
    return done.code, done.err.removeprefix(f"error: {tmp_path}/").splitlines()[0]


VLLM = "services:\n  a:\n    image: vllm/vllm-openai\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "docker-compose.yml:1: not valid YAML"),
        ("", "docker-compose.yml: the file is empty"),
        ("hello", "docker-compose.yml:1: not a compose file: a text at its top"),
        ("apiVersion: v1\nkind: Pod\n", "docker-compose.yml:2: not a compose file: it has no `services`"),
        ("models:\n- name: x\n", "docker-compose.yml:1: not a compose file: it has no `services`"),
        ("services:\n", "docker-compose.yml:1: there are no services"),
        ("services: {}\n", "docker-compose.yml:1: there are no services"),
        ("services: [a]\n", "docker-compose.yml:1: `services` takes a mapping, not a list"),
        ("version: '9'\n" + VLLM, "docker-compose.yml:1: unknown version `9`"),
        (VLLM + "    image: x\n", "docker-compose.yml:4: `image` is given twice (first on line 3)"),
        ("services:\n  a: x\n", "docker-compose.yml:2: service `a` is a text, not a mapping"),
        ("services:\n  'a b': {}\n", "docker-compose.yml:2: `a b` cannot be a service's name"),
        (
            "services:\n  db: {image: redis}\n",
            "docker-compose.yml:2: no service runs a model that is known here (db)",
        ),
        (
            "services:\n  x:\n    image: acme\n    command: [--model-id, x]\n",
            "docker-compose.yml:4: no service runs a model that is known here (x); `--model-id` looks as if",
        ),
        (
            VLLM + "    command: a/b --max-model-len 9999999999\n",
            "docker-compose.yml:4: 9999999999 cannot be",
        ),
        (
            VLLM + "    command: a/b --max-model-len many\n",
            "docker-compose.yml:4: `many` is not a whole number",
        ),
        (VLLM + "    command: a/b -tp 0\n", "docker-compose.yml:4: 0 cannot be a number of cards"),
        (VLLM + "    command: 'a/b \"x'\n", "docker-compose.yml:4: `command` has a quote that is not closed"),
        (
            VLLM + "    command: {a: b}\n",
            "docker-compose.yml:4: `command` takes a text or a list, not a mapping",
        ),
        (VLLM + "    ports: ['99999:80']\n", "docker-compose.yml:4: 99999 cannot be a port"),
        (VLLM + "    ports: [many]\n", "docker-compose.yml:4: `many` is not a port"),
        (VLLM + "    ports: 80\n", "docker-compose.yml:4: `ports` takes a list, not a text"),
        (VLLM + "    environment: 5\n", "docker-compose.yml:4: `environment` takes a mapping or a list"),
        (VLLM + "    extends: b\n", "docker-compose.yml:4: there is no service `b` to extend"),
        (VLLM + "    extends: a\n", "docker-compose.yml:4: `a` extends itself"),
        (VLLM + "    command: $(date)\n", "docker-compose.yml:4: a `$` that begins no variable"),
        (VLLM + "    scale: -1\n", "docker-compose.yml:4: -1 cannot be a number of copies"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    code, said = refused(run, tmp_path, text)
    assert code == 78
    assert said.startswith(message)


def test_files_that_are_none(run: Run, tmp_path: Path) -> None:
    assert "no such file" in run(tmp_path / "no.yml").err
    assert "is a folder" in run(tmp_path).err
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in run(tmp_path / "b").err
    (tmp_path / "c").write_bytes(b" " * 2_000_000)
    assert "larger than 1 MiB" in run(tmp_path / "c").err
    assert "cannot be read: not a file name" in run("a\0b").err


def test_nothing_carried_over_is_told_and_refused(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "docker-compose.yml", tmp_path / "factory.yaml"
    file.write_text("services:\n  o:\n    image: ollama/ollama\n")
    done = run(file, out)
    assert done.code == 78
    assert "which models it has is only in its volume" in done.out
    assert "no model could be carried over" in done.err
    assert not out.exists()
    whole = run(file, as_json=True)
    assert (whole.code, json.loads(whole.out)["factory"]) == (78, "")


def test_an_error_shows_no_secret(run: Run, tmp_path: Path) -> None:
    text = VLLM + "    environment: {API_KEY: sk-123456789}\n    command: a/b --max-model-len sk-123456789\n"
    code, said = refused(run, tmp_path, text)
    assert (code, "sk-123456789" in said, "[hidden]" in said) == (78, False, True)


def test_the_store_is_not_needed(tmp_path: Path) -> None:
    """Wishes can be made from what was written, where the catalog knows the models."""
    factory = load_factory(COMPOSE / "vllm-two-services" / "factory.yaml")
    wishes = wishes_for(factory.models, Store(tmp_path / "models", tmp_path / "cache"))
    assert [wish.context for wish in wishes] == [32000, 16384]


# The how-to


def test_the_how_to_shows_what_is_printed(run: Run) -> None:
    """Lines of each console block come in the command's output in that order; `…` stands for others."""
    text = (ROOT / "docs" / "how-to" / "from-compose.md").read_text()
    blocks = re.findall(r"^```console\n\$ sovereign migrate compose (.*?)\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 3
    for arguments, shown in blocks:
        file, *options = arguments.split()
        done = run(file, inventory=Path(options[1]) if options else None)
        left = iter([*done.out.splitlines(), *done.err.splitlines()])
        assert [line for line in shown.splitlines() if line != "…" and line not in left] == []
