"""`sovereign models quantize` with a script in the place of the library: it packs int8, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from sovereign_ai.cli import quantizing
from sovereign_ai.cli.quantizing import memory_bytes, quantize
from sovereign_ai.config import ModelEntry, Paths
from sovereign_ai.console import Console, Silent
from sovereign_ai.engines import quantizer
from sovereign_ai.errors import (
    BadModelFile,
    EngineFailed,
    EngineUnavailable,
    InventoryError,
    NoSpace,
    StoreError,
    UnsupportedModel,
    UsageError,
)
from sovereign_ai.spec import Device, Inventory, Node
from sovereign_ai.store import Manifest, Store, ensure
from sovereign_ai.store.inspect import inspect
from tests.store.tiny import tensors, write_folder, write_gguf

WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file

job = json.load(sys.stdin)
def say(**line): print(json.dumps(line), flush=True)
say(step="loading")
weights = load_file(Path(job["model"]) / "model.safetensors")
say(step="quantizing")
packed = {}
for name, values in weights.items():
    if name.endswith("_proj.weight"):
        scale = np.abs(values).max(1, keepdims=True) / 127
        packed[name] = (values / scale).round().astype(np.int8)
        packed[name + "_scale"] = scale.astype(np.float32)
    else:
        packed[name] = values.astype(np.float16)
say(step="writing")
out = Path(job["out"])
out.mkdir()
save_file(packed, out / "model.safetensors", metadata={"format": "pt"})
scheme = {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
(out / "config.json").write_text(json.dumps({"quantization_config": said}))
(out / "recipe.yaml").write_text("of the library")
say(made={"dtype": "float16", "group_size": None, "samples": len(job["samples"]), "ignored": ["lm_head"],
          "tools": {"llmcompressor": "1"}})
"""
GIB = 1 << 30
Play = Callable[[str], None]


@pytest.fixture(autouse=True)
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """The library's part, played by WORKER or by another script."""
    path = tmp_path / "worker.py"

    def place(script: str) -> None:
        path.write_text(script)

    place(WORKER)
    monkeypatch.setattr(quantizer, "WORKER", path)
    monkeypatch.setattr(quantizer, "python_of", lambda paths, console: Path(sys.executable))
    return place


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "take_inventory", lambda **_: inventory("cpu", 4 * GIB))


def inventory(kind: Any, free: int) -> Inventory:
    device = Device(id=kind, kind=kind, name=kind, memory_bytes=free, memory_free_bytes=free)
    node = Node(name="box", devices=(device,), cores=2, memory_bytes=free, memory_free_bytes=free)
    return Inventory(nodes=(node,))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(home=tmp_path / "home", storage=tmp_path / "storage")


@pytest.fixture
def store(paths: Paths) -> Store:
    return Store(paths.models, paths.cache)


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def base(tmp_path: Path, store: Store, console: Console) -> Manifest:
    gguf = write_gguf(tmp_path / "tiny.gguf")
    return ensure(store, ModelEntry(name="tiny", source=f"file:{gguf}"), console)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("some words\n" * 400)
    return path


def hidden(store: Store) -> list[str]:
    """What is in the store beside models and the lock."""
    return [path.name for path in store.models.iterdir() if path.name.startswith(".") and path.is_dir()]


def test_a_variant_lies_beside_its_base(
    paths: Paths, store: Store, base: Manifest, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(console, paths, "tiny", "int8", None)
    found, made = store.versions("tiny")
    assert found == base
    assert (made.version, made.model.format, made.source) == (f"{base.version}-int8", "int8", base.source)
    assert (made.origin, made.conversion, made.license) == (base.origin, base.conversion, base.license)
    assert made.model.dtype == "float16"
    assert made.model.shape == inspect(store.folder(base)).shape
    assert made.model.weights_bytes < base.model.weights_bytes / 2
    assert made.quantization
    assert msgspec.to_builtins(made.quantization) == {
        "scheme": "int8",
        "base": base.version,
        "tools": {"llmcompressor": "1"},
        "ignored": ("lm_head",),
        "group_size": None,
        "calibration": None,
        "calibration_sha256": None,
        "calibration_samples": 0,
    }
    store.verify(made, Silent())
    assert store.current("tiny") == base.version
    assert store.variant(base, "int8") == made
    assert hidden(store) == []
    assert f"tiny {made.version}: stored" in capsys.readouterr().out


def test_the_files_are_the_bases_own_but_for_weights_and_config(
    paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    quantize(console, paths, "tiny", "int8", None)
    made = store.versions("tiny")[-1]
    before = {file.path: file.sha256 for file in base.files}
    after = {file.path: file.sha256 for file in made.files}
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} == {"config.json", "model.safetensors"}
    tokenizer = store.folder(made) / "tokenizer.json"
    assert tokenizer.samefile(store.folder(base) / "tokenizer.json")
    old, new = (json.loads((store.folder(m) / "config.json").read_text()) for m in (base, made))
    assert new.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert new == {**old, "torch_dtype": "float16"}


def test_the_calibration_data_is_recorded(
    paths: Paths, store: Store, base: Manifest, console: Console, words: Path
) -> None:
    quantize(console, paths, "tiny", "int8", words)
    how = store.versions("tiny")[-1].quantization
    assert how
    assert (how.calibration, how.calibration_samples) == ("words.txt", 3)
    assert how.calibration_sha256 == hashlib.sha256(words.read_bytes()).hexdigest()


def test_a_variant_is_made_once(
    paths: Paths,
    store: Store,
    base: Manifest,
    console: Console,
    words: Path,
    play: Play,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantize(console, paths, "tiny", "int8", words)
    play("raise SystemExit('not again')")
    quantize(console, paths, "tiny", "int8", words)
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(StoreError, match=r"is there already, made from words\.txt"):
        quantize(console, paths, "tiny", "int8", None)
    assert len(store.versions("tiny")) == 2


def test_one_document_on_request(
    paths: Paths, base: Manifest, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(Console(json=True), paths, "tiny", "int8", None)
    assert json.loads(capsys.readouterr().out)["model"]["version"] == f"{base.version}-int8"


def test_the_version_that_serves_is_quantized_not_the_newest(
    tmp_path: Path, paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    other = write_gguf(tmp_path / "tiny.gguf", {name: v * 2 for name, v in tensors().items()})
    newer = ensure(store, ModelEntry(name="tiny", source=f"file:{other}"), console)
    assert newer.version != base.version
    with store.writing(console):
        store.switch(base)
    quantize(console, paths, "tiny", "int8", None)
    assert store.variant(base, "int8")
    assert store.variant(newer, "int8") is None


def test_no_model_of_that_name(paths: Paths, base: Manifest, console: Console) -> None:
    with pytest.raises(StoreError, match="there is no model `tinny`") as caught:
        quantize(console, paths, "tinny", "int8", None)
    assert caught.value.hint == "stored: tiny"


def test_an_empty_store(paths: Paths, console: Console) -> None:
    with pytest.raises(StoreError, match=r"there is no model `\.\./x`") as caught:
        quantize(console, paths, "../x", "int8", None)
    assert "the store is empty" in caught.value.hint


def test_a_variant_whose_base_is_gone_is_no_base(
    paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    quantize(console, paths, "tiny", "int8", None)
    with store.writing(console):
        store.remove(base)
    with pytest.raises(StoreError, match="only quantized variants of tiny"):
        quantize(console, paths, "tiny", "fp8", None)


@pytest.mark.parametrize(
    ("scheme", "data", "message"),
    [
        ("int4", False, "`int4` is not a scheme"),
        ("w4a16", False, "w4a16 needs calibration data"),
        ("fp8", True, "fp8 needs no calibration data"),
    ],
)
def test_schemes_and_their_data(
    scheme: str, data: bool, message: str, paths: Paths, base: Manifest, console: Console, words: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(console, paths, "tiny", scheme, words if data else None)


def test_a_bad_calibration_file_is_told_before_anything_is_installed(
    paths: Paths, base: Manifest, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "python_of", pytest.fail)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=r"a\.jsonl:1: "):
        quantize(console, paths, "tiny", "w4a16", tmp_path / "a.jsonl")


def test_an_embedding_model_is_refused(tmp_path: Path, paths: Paths, store: Store, console: Console) -> None:
    folder = write_folder(tmp_path / "minilm")
    ensure(store, ModelEntry(name="minilm", source=f"file:{folder}"), console)
    with pytest.raises(UnsupportedModel, match="BertModel is not a model that generates text"):
        quantize(console, paths, "minilm", "int8", None)


def test_a_checkpoint_that_came_quantized_is_refused(
    tmp_path: Path, paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    quantize(console, paths, "tiny", "int8", None)
    source = store.folder(store.versions("tiny")[-1])
    ensure(store, ModelEntry(name="given", source=f"file:{source}"), console)
    with pytest.raises(UnsupportedModel, match=r"quantized already \(int8\)"):
        quantize(console, paths, "given", "fp8", None)


@pytest.mark.parametrize(
    ("changes", "remote", "reason"),
    [
        ({"experts": 8}, False, "mixtures of experts"),
        (
            {"vision": {"layers": 1, "hidden": 1, "intermediate": 1, "patches": 1, "outputs": 1}},
            False,
            "images",
        ),
        ({"architecture": "T5ForConditionalGeneration"}, False, "T5For"),
        ({}, True, "code of its own"),
        ({}, False, ""),
    ],
)
def test_what_cannot_be_quantized(
    changes: dict[str, Any], remote: bool, reason: str, store: Store, base: Manifest
) -> None:
    facts = inspect(store.folder(base))
    shape = msgspec.convert({**msgspec.to_builtins(facts.shape), **changes}, type(facts.shape))
    manifest = msgspec.structs.replace(base, remote_code=remote)
    said = quantizing._unsupported(manifest, facts._replace(shape=shape))
    assert reason in said
    assert bool(said) == bool(reason)


def test_a_full_disk_and_a_small_memory_are_told_before_the_work(
    paths: Paths, base: Manifest, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "python_of", pytest.fail)
    monkeypatch.setattr(quantizing, "take_inventory", lambda **_: inventory("cpu", GIB // 4))
    with pytest.raises(EngineUnavailable, match=r"needs about 70\d\.\d MiB of memory, 256\.0 MiB are free"):
        quantize(console, paths, "tiny", "int8", None)
    monkeypatch.setattr(quantizing, "SPARE_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="quantizing tiny to int8 needs"):
        quantize(console, paths, "tiny", "int8", None)


def test_calibration_takes_memory_for_layers_and_samples(store: Store, base: Manifest) -> None:
    facts = inspect(store.folder(base))
    without = memory_bytes(facts, "int8", samples=0)
    assert without > facts.weights_bytes
    with_data = memory_bytes(facts, "int8", samples=10)
    columns = 6 * facts.shape.hidden**2 + facts.shape.intermediate**2
    assert with_data - without == 4 * (2 * columns + 2 * 10 * 512 * facts.shape.hidden)


@pytest.mark.parametrize(
    ("kind", "scheme", "told"),
    [("cpu", "fp8", True), ("cpu", "int8", False), ("gpu", "fp8", False), (None, "fp8", False)],
)
def test_what_a_cpu_makes_of_a_scheme_is_told_where_there_is_no_gpu(
    kind: str | None,
    scheme: str,
    told: bool,
    paths: Paths,
    base: Manifest,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def take_inventory(*, cpu_only: bool = False) -> Inventory:
        if kind is None and not cpu_only:
            raise InventoryError("the driver is broken")
        return inventory(kind or "cpu", 4 * GIB)

    def stop(paths: Paths, console: Console) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing, "take_inventory", take_inventory)
    monkeypatch.setattr(quantizer, "python_of", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(console, paths, "tiny", scheme, None)
    assert ("take int8" in capsys.readouterr().err) == told


def test_a_handful_of_samples_is_remarked_on(
    paths: Paths, base: Manifest, console: Console, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(console, paths, "tiny", "int8", words)
    assert "words.txt makes 3 samples" in capsys.readouterr().err


def test_a_library_that_makes_something_else_is_found_out(
    paths: Paths, store: Store, base: Manifest, console: Console, play: Play
) -> None:
    with pytest.raises(BadModelFile, match="quantizing tiny to fp8 made something else: int8"):
        quantize(console, paths, "tiny", "fp8", None)
    play(
        WORKER.replace("for name, values in weights.items():", "for name, values in [*weights.items()][:-3]:")
    )
    with pytest.raises(BadModelFile, match="made something else"):
        quantize(console, paths, "tiny", "int8", None)
    assert store.versions("tiny") == (base,)
    assert hidden(store) == []


@pytest.mark.parametrize("stage", ["loading", "quantizing", "writing"])
def test_a_failure_at_any_step_leaves_nothing(
    stage: str, paths: Paths, store: Store, base: Manifest, console: Console, play: Play
) -> None:
    play(WORKER.replace(f'say(step="{stage}")', 'raise ValueError("of the library")'))
    with pytest.raises(EngineFailed, match="ValueError: of the library"):
        quantize(console, paths, "tiny", "int8", None)
    assert store.versions("tiny") == (base,)
    assert hidden(store) == []


def test_a_damaged_base_is_not_quantized(
    paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    path = store.folder(base) / "tokenizer.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("hell", "heel", 1))
    with pytest.raises(StoreError, match=r"tokenizer\.json"):
        quantize(console, paths, "tiny", "int8", None)


def test_weights_in_several_files_stay_so(
    paths: Paths, store: Store, base: Manifest, console: Console, play: Play
) -> None:
    split = """
weights = load_file(out / "model.safetensors")
(out / "model.safetensors").unlink()
parts = {"a.safetensors": {}, "b.safetensors": {}}
for at, (name, values) in enumerate(weights.items()): parts["ab"[at % 2] + ".safetensors"][name] = values
for name, part in parts.items(): save_file(part, out / name, metadata={"format": "pt"})
names = {tensor: name for name, part in parts.items() for tensor in part}
(out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
"""
    play(WORKER.replace("say(made=", split + "say(made="))
    quantize(console, paths, "tiny", "int8", None)
    files = {file.path for file in store.versions("tiny")[-1].files}
    assert {"a.safetensors", "b.safetensors", "model.safetensors.index.json"} <= files
    assert "model.safetensors" not in files


COMMAND = """
import sys
from pathlib import Path
from tests.cli.test_quantizing import inventory
from sovereign_ai.cli import quantizing
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.engines import quantizer

storage, worker = map(Path, sys.argv[1:])
quantizer.WORKER = worker
quantizer.python_of = lambda paths, console: Path(sys.executable)
quantizing.take_inventory = lambda **_: inventory("cpu", 4 << 30)
quantizing.quantize(Console(), Paths(home=storage, storage=storage), "tiny", "int8", None)
"""


def started(paths: Paths) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", COMMAND, str(paths.storage), str(quantizer.WORKER)]
    return subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL
    )


def test_two_at_once_make_it_once(paths: Paths, store: Store, base: Manifest, play: Play) -> None:
    play(WORKER.replace('say(step="quantizing")', "import time; time.sleep(1)"))
    both = [started(paths), started(paths)]
    assert [one.wait() for one in both] == [0, 0]
    assert len(store.versions("tiny")) == 2
    assert hidden(store) == []


def test_killed_in_the_middle_nothing_is_visible_and_the_next_goes_on(
    paths: Paths, store: Store, base: Manifest, console: Console, play: Play
) -> None:
    # The real one is told by the kernel that its parent has died; this one looks.
    wait = "import time\nwhile os.getppid() == parent: time.sleep(0.05)\nraise SystemExit"
    play(WORKER.replace("say(made=", f"import os; parent = os.getppid()\n{wait}\nsay(made="))
    killed = started(paths)
    while not list(store.models.glob(".partial-tiny-*/made/config.json")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert store.versions("tiny") == (base,)
    store.verify(base, Silent())
    play(WORKER)
    quantize(console, paths, "tiny", "int8", None)
    assert len(store.versions("tiny")) == 2
    assert hidden(store) == []


def test_interrupted_nothing_is_left(
    paths: Paths, store: Store, base: Manifest, console: Console, play: Play
) -> None:
    play(WORKER.replace('say(step="quantizing")', "import time; time.sleep(600)"))

    def interrupt() -> None:
        while not list(store.models.glob(".partial-tiny-*/worker.log")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        quantize(console, paths, "tiny", "int8", None)
    thread.join()
    assert store.versions("tiny") == (base,)
    assert hidden(store) == []


def test_the_numbers_are_those_the_library_wrote(
    paths: Paths, store: Store, base: Manifest, console: Console
) -> None:
    quantize(console, paths, "tiny", "int8", None)
    before, after = (load_file(store.folder(m) / "model.safetensors") for m in store.versions("tiny"))
    name = "model.layers.0.self_attn.q_proj.weight"
    restored = after[name] * after[f"{name}_scale"]
    assert np.abs(restored - before[name]).max() <= np.abs(after[f"{name}_scale"]).max()
