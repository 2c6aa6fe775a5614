"""Runs the library that quantizes: a child process in an environment of its own, told what to do in JSON and
telling in JSON how far it is (backends/quantize/worker.py has the other end)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

import msgspec

from sovereign_ai.config import Paths, environment
from sovereign_ai.console import Console, Progress
from sovereign_ai.engines.calibration import Sample
from sovereign_ai.engines.environment import ensure
from sovereign_ai.errors import EngineFailed, NoSpace, UnsupportedModel

Scheme = Literal["fp8", "int8", "w4a16"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

KIND = "quantize"
"""Of the environment."""
WORKER = Path(__file__).parent / "backends" / "quantize" / "worker.py"
SAMPLE_TOKENS = 512
"""Kept of each calibration sample."""
STEPS = 3
"""Loading, quantizing, writing. With calibration data every layer, and the head, is a step of its own."""
NO_SPACE = ("No space left on device", "os error 28")
"""Of ENOSPC, in the words of Python and of SafeTensors."""
TOLD_LINES = 3
"""Last lines of the child's standard error that its failure is told with."""

ON_CPU: dict[Scheme, str] = {
    "int8": "",
    "fp8": "fp8 runs on CPUs without 8-bit float units at about a sixth of the speed of float32: it is for "
    "GPUs; on a CPU take int8",
    "w4a16": "the CPU engine of this version cannot run w4a16 (its 4-bit kernel computes in 16 bit, this "
    "engine in float32): it is for GPUs; on a CPU take int8",
}
"""What to know where the model is to be served on a CPU: vLLM 0.32 for CPUs, measured with SmolLM2-135M."""


class Job(NamedTuple):
    """`model` is the folder to read, `out` the one that the library writes."""

    model: Path
    out: Path
    scheme: Scheme
    samples: tuple[Sample, ...] = ()


class Made(msgspec.Struct, frozen=True):
    """What was done: `dtype` is that of what is not quantized, `ignored` are layers among it, `tools` the
    versions that worked."""

    dtype: str
    group_size: int | None
    samples: int
    ignored: tuple[str, ...]
    tools: dict[str, str]


class _Line(msgspec.Struct, frozen=True):
    step: str = ""
    part: int = 0
    made: Made | None = None
    refused: str = ""


def steps(layers: int, *, calibrated: bool) -> int:
    """Of the progress of one run."""
    return STEPS + (layers + 1 if calibrated else 0)


def python_of(paths: Paths, console: Console) -> Path:
    """The interpreter of the environment, installed now where it is not there yet.

    Raises what environment.ensure() raises.
    """
    return ensure(paths, KIND, console).python


def run(python: Path, job: Job, folder: Path, progress: Progress) -> Made:
    """Quantize one model; `folder` takes temporary files and the log. Progress in steps().

    The child ends with the call, however it ends. Raises UnsupportedModel where the scheme does not fit the
    model, NoSpace, and EngineFailed with the child's last words.
    """
    log = folder / "worker.log"
    heard = _Heard(progress)
    with log.open("wb") as errors, _child(python, folder, errors) as child:
        _tell(child, job)
        for line in child.stdout or ():
            heard.take(line)
        status = child.wait()
    if heard.refused:
        raise UnsupportedModel(heard.refused)
    if status != 0 or heard.made is None:
        raise _failure(status, log.read_text(encoding="utf-8", errors="replace"), folder)
    return heard.made


class _Heard:
    """What the child has said so far."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._steps, self._parts = progress, 0, 0
        self.made: Made | None = None
        self.refused = ""

    def take(self, raw: bytes) -> None:
        if not raw.endswith(b"\n"):
            return  # killed in the middle of a word
        line = msgspec.json.decode(raw, type=_Line)
        self.made, self.refused = line.made or self.made, line.refused or self.refused
        if line.step:
            self._steps += line.part == 0
            self._parts = max(self._parts, line.part)
            note = f"{line.step}, part {line.part}" if line.part else line.step
            self._progress.update(self._steps - 1 + self._parts, note=note)


def _tell(child: subprocess.Popen[bytes], job: Job) -> None:
    message = {
        "model": str(job.model),
        "out": str(job.out),
        "scheme": job.scheme,
        "samples": job.samples,
        "sample_tokens": SAMPLE_TOKENS,
        "parent": os.getpid(),
    }
    # A child that died at once breaks the pipe; its last words say why.
    with suppress(BrokenPipeError), child.stdin or nullcontext() as line:
        if line:
            line.write(msgspec.json.encode(message))


@contextmanager
def _child(python: Path, folder: Path, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own: Ctrl-C reaches this process alone, which then ends the child and what
    it has started."""
    child = subprocess.Popen(
        [str(python), "-I", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=_variables(folder),
        start_new_session=True,
    )
    with child:
        try:
            yield child
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def _variables(folder: Path) -> dict[str, str]:
    """Nothing is looked for on the network, caches go where they are removed, and threads that wait do not
    spin: beside two busy processes on two cores that made GPTQ more than five times slower."""
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "TMPDIR": str(folder),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {**environment(), **own}


def _failure(status: int, log: str, folder: Path) -> EngineFailed | NoSpace:
    said = [line.strip() for line in log.splitlines() if line.strip(" ^~")][-TOLD_LINES:]
    if any(words in line for line in said for words in NO_SPACE):
        return NoSpace(f"no space left while quantizing ({folder.parent})", "free some space")
    if status == -signal.SIGKILL:
        return EngineFailed("quantizing was killed by the system", "most likely there was not enough memory")
    return EngineFailed(f"quantizing failed: {' | '.join(said) or f'exit status {status}'}")
