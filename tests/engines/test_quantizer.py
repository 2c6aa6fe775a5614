"""The line to the worker, with small scripts in its place; and what of the worker needs no torch."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sovereign_ai.engines import quantizer
from sovereign_ai.engines.calibration import Message, Sample
from sovereign_ai.engines.quantizer import Job, Made, run
from sovereign_ai.errors import EngineFailed, NoSpace, UnsupportedModel

MADE = {"dtype": "bfloat16", "group_size": None, "samples": 0, "ignored": ["lm_head"], "tools": {"a": "1"}}
Play = Callable[[str], None]


class Seen:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, str | None]] = []

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self.updates.append((done, note))


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Puts a script, which has the job as `job` and `say`, in the place of the worker."""

    def place(script: str) -> None:
        path = tmp_path / "play.py"
        start = "import json, os, pathlib, sys, time\njob = json.load(sys.stdin)\n"
        start += "def say(**line): print(json.dumps(line), flush=True)\n"
        path.write_text(start + script)
        monkeypatch.setattr(quantizer, "WORKER", path)

    return place


def worked(folder: Path, job: Job | None = None) -> tuple[Made, Seen]:
    seen = Seen()
    job = job or Job(folder / "model", folder / "made", "int8")
    return run(Path(sys.executable), job, folder, seen), seen


def test_the_job_arrives_and_the_result_comes_back(tmp_path: Path, play: Play) -> None:
    play(
        "pathlib.Path(job['out']).write_text(json.dumps(job))\n"
        "print('noise of a library', file=sys.stderr)\n"
        f"say(made={MADE!r})"
    )
    samples = (Sample(text="a"), Sample(messages=(Message("user", "b"),)))
    made, _ = worked(tmp_path, Job(Path("/m"), tmp_path / "out", "w4a16", samples))
    assert made == Made("bfloat16", None, 0, ("lm_head",), {"a": "1"})
    assert json.loads((tmp_path / "out").read_text()) == {
        "model": "/m",
        "out": str(tmp_path / "out"),
        "scheme": "w4a16",
        "samples": [{"text": "a"}, {"messages": [{"role": "user", "content": "b"}]}],
        "sample_tokens": quantizer.SAMPLE_TOKENS,
        "parent": os.getpid(),
    }


def test_each_step_and_each_part_is_told(tmp_path: Path, play: Play) -> None:
    play(
        "say(step='loading'); say(step='quantizing')\n"
        "for part in (1, 2, 3): say(step='quantizing', part=part)\n"
        f"say(step='writing'); say(made={MADE!r})"
    )
    _, seen = worked(tmp_path)
    assert seen.updates == [
        (0, "loading"),
        (1, "quantizing"),
        (2, "quantizing, part 1"),
        (3, "quantizing, part 2"),
        (4, "quantizing, part 3"),
        (5, "writing"),
    ]
    assert quantizer.steps(2, calibrated=True) == 6
    assert quantizer.steps(2, calibrated=False) == 3


def test_a_refusal_is_of_the_model(tmp_path: Path, play: Play) -> None:
    play("say(refused='a layer is 33 wide'); sys.exit(1)")
    with pytest.raises(UnsupportedModel, match="a layer is 33 wide"):
        worked(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('of the library')", "ValueError: of the library"),
        ("sys.exit(3)", "exit status 3"),
        ("say(step='loading')", "exit status 0"),  # it went without a result
        ("sys.stdout.write('{\"made')", "exit status 0"),
        ("sys.stdin.close(); os.close(0); sys.exit('nothing read')", "nothing read"),
    ],
)
def test_a_failure_has_the_last_words(script: str, message: str, tmp_path: Path, play: Play) -> None:
    play(script)
    with pytest.raises(EngineFailed, match="quantizing failed: ") as caught:
        worked(tmp_path)
    assert message in caught.value.message
    assert "^^" not in caught.value.message


def test_a_worker_that_dies_before_it_listens_is_told_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "play.py"
    path.write_text("import sys; sys.exit('no such library')")
    monkeypatch.setattr(quantizer, "WORKER", path)
    much = tuple(Sample(text="x" * 2000) for _ in range(200))
    with pytest.raises(EngineFailed, match="no such library"):
        worked(tmp_path, Job(tmp_path, tmp_path, "int8", much))


def test_a_full_disk_and_a_lack_of_memory_are_named(tmp_path: Path, play: Play) -> None:
    play("raise OSError(28, 'No space left on device')")
    with pytest.raises(NoSpace):
        worked(tmp_path)
    play("os.kill(os.getpid(), 9)")
    with pytest.raises(EngineFailed, match="killed by the system") as caught:
        worked(tmp_path)
    assert "memory" in caught.value.hint


def test_the_worker_ends_with_the_call(tmp_path: Path, play: Play) -> None:
    play("pathlib.Path(job['out']).write_text(str(os.getpid())); say(step='loading'); time.sleep(600)")

    class Interrupting(Seen):
        def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
            raise KeyboardInterrupt

    job = Job(tmp_path, tmp_path / "pid", "fp8")
    with pytest.raises(KeyboardInterrupt):
        run(Path(sys.executable), job, tmp_path, Interrupting())
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker", quantizer.WORKER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_groups_are_as_large_as_every_layer_allows(worker: ModuleType) -> None:
    assert worker.group_size({4096, 14336}) == 128
    assert worker.group_size({576, 1536}) == 64
    assert worker.group_size({96, 4096}) == 32
    with pytest.raises(worker.Refused, match="a layer is 33 wide"):
        worker.group_size({33, 4096})


def test_the_real_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """It is stopped where it would load torch, then its parent is killed."""
    (tmp_path / "torch.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    parent = (
        "import json, os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, {str(quantizer.WORKER)!r}], stdin=subprocess.PIPE)\n"
        "child.communicate(json.dumps({'parent': os.getpid()}).encode())"
    )
    started = subprocess.Popen([sys.executable, "-c", parent], env={"PYTHONPATH": str(tmp_path)})
    pid = int(waited_for(tmp_path / "pid"))
    assert not gone(pid)
    started.send_signal(signal.SIGKILL)
    started.wait()
    for _ in range(500):
        if gone(pid):
            return
        time.sleep(0.02)
    raise AssertionError("the worker lives on")


def waited_for(path: Path) -> str:
    for _ in range(500):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def test_a_worker_whose_parent_is_gone_already_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(quantizer.WORKER)], input=b'{"parent": 1}', capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
