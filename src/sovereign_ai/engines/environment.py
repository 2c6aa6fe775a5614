"""Engine environments: the pinned place where Triton, vLLM and torch live, apart from this package. The
library that quantizes has one of its own, with an engine's behind it.

`<home>/engines/<kind>-py<version>-<digest of the lock>/` holds a virtual environment, Triton's files and,
once everything is in, `complete.json`. That file is written last and renamed into place: a folder without it
was interrupted and is finished by the next install, which downloads nothing twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec

from sovereign_ai.config import Paths
from sovereign_ai.console import Console, human_bytes
from sovereign_ai.engines import wheels
from sovereign_ai.engines.interpreter import Interpreter, find_interpreter
from sovereign_ai.engines.lock import TORCH_PACKAGE, TRITON_PACKAGE, Lock, load_lock
from sovereign_ai.errors import EngineError, EngineInstallFailed, EngineUnavailable, NoSpace, disk_errors
from sovereign_ai.spec import Inventory
from sovereign_ai.store.layout import writer_lock
from sovereign_ai.store.pip import PipFailed, run_pip

COMPLETE = "complete.json"
TRITON_FOLDERS = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")
STUB = "triton_python_backend_stub"
MIN_SPARE_BYTES = 256 * 1024 * 1024
"""Left free beside an install: compiled bytecode and what else the machine writes meanwhile."""


BEHIND = "behind.pth"
"""Names the packages of the environment behind; Python looks there after the environment's own."""


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of complete.json. `behind` is the folder of the environment behind it."""

    kind: str
    lock: str
    interpreter: Interpreter
    versions: dict[str, str]
    bytes: int
    installed_at: float
    behind: str | None = None


class EngineEnvironment(msgspec.Struct, frozen=True):
    """A finished environment in `root`."""

    root: Path
    complete: Complete

    @property
    def venv(self) -> Path:
        return self.root / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def site(self) -> Path:
        """Folder of its packages."""
        return _site(self.root, self.complete.interpreter.minor)

    @property
    def tritonserver(self) -> Path:
        return self.root / "triton" / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def library_path(self) -> str:
        """LD_LIBRARY_PATH of Triton: the stub's libpython, then the libraries of Triton's wheel."""
        libraries = self.root / "triton" / "nvidia_pytriton.libs"
        return f"{self.complete.interpreter.library_folder}:{libraries}"

    @property
    def stub_folder(self) -> Path:
        """Working folder of Triton. Its stubs look here first, and import numpy before any code of ours runs:
        so this folder shows them the environment's numpy and nothing else."""
        return self.root / "stub"

    def make_backends(self, folder: Path) -> Path:
        """Make the backend folder of a run anew: this package's backends and Triton's own files.

        Copies, because Triton refuses a backend library that a link leads out of the folder.
        """
        shutil.rmtree(folder, ignore_errors=True)
        triton = self.root / "triton" / "pytriton" / "tritonserver"
        python = triton / "backends" / "python"
        stub = triton / "python_backend_stubs" / self.complete.interpreter.minor / STUB
        with disk_errors("preparing the Triton backends", folder):
            _copy_backends(folder)
            shutil.copy2(python / "libtriton_python.so", folder / "python")
            shutil.copy2(stub, folder / "python")
            original = python / "triton_python_backend_utils.py"
            shutil.copy2(original, folder / "python" / "_triton_python_backend_utils.py")
        return folder


def _copy_backends(folder: Path) -> None:
    source = resources.files("sovereign_ai.engines") / "backends"
    for backend in ("python", "vllm", "embedding"):
        (folder / backend).mkdir(parents=True)
        for file in (source / backend).iterdir():
            if file.name.endswith(".py"):
                (folder / backend / file.name).write_bytes(file.read_bytes())


def kind_for(inventory: Inventory) -> str:
    """The engine kind for the devices at hand.

    Raises EngineUnavailable for GPUs: there is no CUDA environment in this version.
    """
    if any(device.kind == "gpu" for device in inventory.devices):
        raise EngineUnavailable(
            "there is no CUDA engine environment in this version yet: it plans for GPUs but cannot serve",
            "`--cpu` serves on the CPU of this machine instead",
        )
    return "cpu"


def ensure(paths: Paths, kind: str, console: Console) -> EngineEnvironment:
    """The finished environment of a kind; installed now where it is not there yet.

    Raises EngineInstallFailed, EngineUnavailable, NoSpace or NoPermission.
    """
    lock, digest = load_lock(kind)
    if found := _finished(paths, digest):
        return found
    behind = ensure(paths, lock.behind, console) if lock.behind else None
    interpreter = behind.complete.interpreter if behind else find_interpreter(lock.pythons)
    with disk_errors("installing the engine environment", paths.engines):
        paths.engines.mkdir(parents=True, exist_ok=True)
    with writer_lock(paths.engines, console):
        # Another process may have installed it while this one waited.
        return _finished(paths, digest) or _install(paths, lock, digest, interpreter, behind, console)


def _finished(paths: Paths, digest: str) -> EngineEnvironment | None:
    return next((e for e in installed(paths) if e.complete.lock == digest and _usable(e)), None)


def _usable(environment: EngineEnvironment) -> bool:
    """False after the interpreter it was made with was removed or replaced by another minor version, or the
    environment behind it was removed."""
    known, behind = environment.complete.interpreter, environment.complete.behind
    stands = behind is None or _read(environment.root.parent / behind) is not None
    return stands and environment.python.exists() and Path(known.library_folder).is_dir()


def installed(paths: Paths) -> tuple[EngineEnvironment, ...]:
    """All finished environments."""
    found = ((folder, _read(folder)) for folder in _folders(paths))
    return tuple(EngineEnvironment(folder, complete) for folder, complete in found if complete)


def unfinished(paths: Paths) -> tuple[Path, ...]:
    """Folders of interrupted installs."""
    return tuple(folder for folder in _folders(paths) if _read(folder) is None)


def _folders(paths: Paths) -> Iterator[Path]:
    if paths.engines.is_dir():
        yield from sorted(folder for folder in paths.engines.iterdir() if folder.is_dir())


def _read(folder: Path) -> Complete | None:
    try:
        return msgspec.json.decode((folder / COMPLETE).read_bytes(), type=Complete)
    except (OSError, msgspec.MsgspecError):
        return None


def remove(paths: Paths, name: str) -> int:
    """Remove an environment (or an unfinished one) by folder name. Returns the bytes freed."""
    folder = paths.engines / name
    if not name or folder not in tuple(_folders(paths)):
        known = ", ".join(folder.name for folder in _folders(paths)) or "none"
        raise EngineError(f"there is no engine environment `{name}`", f"installed: {known}")
    freed = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    with disk_errors("removing the engine environment", folder):
        (folder / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return freed


def _install(
    paths: Paths,
    lock: Lock,
    digest: str,
    interpreter: Interpreter,
    behind: EngineEnvironment | None,
    console: Console,
) -> EngineEnvironment:
    root = paths.engines / f"{lock.kind}-py{interpreter.minor}-{digest}"
    cache = paths.cache / "wheels" / root.name
    with disk_errors("installing the engine environment", root):
        cache.mkdir(parents=True, exist_ok=True)
        _check_space(root, lock, interpreter.minor, wheels.present_bytes(lock, interpreter.minor, cache))
        files = wheels.download(lock, interpreter.minor, cache, console)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _make_venv(root, interpreter)
        _put_torch(root, files, lock, interpreter.minor, cache, console)
        _install_wheels(
            root, [file for file in files if not _is_triton(file)], lock, interpreter.minor, console
        )
        if lock.has(TRITON_PACKAGE):
            _unpack_triton(root, next(file for file in files if _is_triton(file)))
            _make_stub_folder(root, interpreter.minor)
        if behind:
            _put_behind(behind, _site(root, interpreter.minor))
        complete = _finish(root, lock, digest, interpreter, behind)
        shutil.rmtree(cache, ignore_errors=True)
    return EngineEnvironment(root, complete)


def _site(root: Path, python: str) -> Path:
    return root / "venv" / "lib" / f"python{python}" / "site-packages"


def _put_torch(root: Path, files: list[Path], lock: Lock, python: str, cache: Path, console: Console) -> None:
    """Where the lock has it and pip's index did not."""
    if not lock.has(TORCH_PACKAGE) or any(file.name.startswith(f"{TORCH_PACKAGE}-") for file in files):
        return
    torch = lock.package(TORCH_PACKAGE)
    wheels.install_torch(torch, torch.wheel_for(python), cache, root / "venv" / "bin" / "python", console)


def _put_behind(behind: EngineEnvironment, site: Path) -> None:
    """By a relative path, so that the home folder can be moved."""
    (site / BEHIND).write_text(os.path.relpath(behind.site, site) + "\n")


def _check_space(root: Path, lock: Lock, python: str, present: int) -> None:
    needed = lock.unpacked_bytes(python) + lock.download_bytes(python) - present + MIN_SPARE_BYTES
    root.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root.parent).free
    if free < needed:
        raise NoSpace(
            f"the engine environment needs {human_bytes(needed)} in {root.parent}; {human_bytes(free)} free",
            "free some space, or choose another folder with SOVEREIGN_HOME",
        )


def _make_venv(root: Path, interpreter: Interpreter) -> None:
    command = [interpreter.executable, "-I", "-m", "venv", "--without-pip", str(root / "venv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        if "[Errno 28]" in said[-1]:  # ENOSPC, in the words of venv
            raise NoSpace(f"no space left: {said[-1]} ({root})", "free some space; what was complete is kept")
        raise EngineInstallFailed(f"{' '.join(command)}: {said[-1]}")


def _is_triton(file: Path) -> bool:
    return file.name.startswith(TRITON_PACKAGE.replace("-", "_"))


def _install_wheels(root: Path, files: list[Path], lock: Lock, python: str, console: Console) -> None:
    """pip puts the wheels in, without looking at what they ask for: the lock is the whole truth."""
    sizes = {wheel.file: wheel.unpacked_bytes for _, wheel in lock.wheels(python)}
    total = sum(sizes.get(file.name, 0) for file in files)
    site = _site(root, python)
    arguments = ["install", "--no-deps", "--no-index", "--no-cache-dir", "--no-warn-script-location", "-q"]
    with console.progress(f"installing {lock.title}", total=total) as progress:
        done = 0
        for batch in _batches(files, sizes):
            progress.update(done, note=batch[0].name.split("-")[0])
            try:
                run_pip([*arguments, *map(str, batch)], root, python=root / "venv" / "bin" / "python")
            except PipFailed as error:
                raise EngineInstallFailed(f"installing into {site}: {error.said}", error.hint) from error
            done += sum(sizes.get(file.name, 0) for file in batch)
            progress.update(done)


BATCH_BYTES = 150 * 1024 * 1024
"""Unpacked bytes that one call of pip installs: progress moves, and pip's start is not paid per wheel."""


def _batches(files: list[Path], sizes: dict[str, int]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for file in files:
        batch.append(file)
        if sum(sizes.get(member.name, 0) for member in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _unpack_triton(root: Path, wheel: Path) -> None:
    """Take the server's files out of its wheel; NVIDIA's Python code is not needed."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith(TRITON_FOLDERS):
                target = Path(archive.extract(entry, root / "triton"))
                mode = entry.external_attr >> 16
                if mode & 0o100 or target.name in ("tritonserver", STUB):
                    target.chmod(0o755)


def _make_stub_folder(root: Path, python: str) -> None:
    site = _site(root, python)
    (root / "stub").mkdir()
    for name in ("numpy", "numpy.libs"):
        # Relative: a home folder that was moved or copied still works.
        (root / "stub" / name).symlink_to(Path("..") / (site / name).relative_to(root))


def _finish(
    root: Path, lock: Lock, digest: str, interpreter: Interpreter, behind: EngineEnvironment | None
) -> Complete:
    complete = Complete(
        kind=lock.kind,
        lock=digest,
        interpreter=interpreter,
        versions={package.name: package.version for package in lock.installs(interpreter.minor)},
        bytes=sum(file.lstat().st_size for file in root.rglob("*") if not file.is_dir()),
        installed_at=time.time(),
        behind=behind.root.name if behind else None,
    )
    temporary = root / f".{COMPLETE}"
    temporary.write_bytes(msgspec.json.encode(complete))
    temporary.replace(root / COMPLETE)
    return complete
