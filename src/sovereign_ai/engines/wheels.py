"""The wheels of an engine lock: downloaded once, checked to the byte, kept until the install is done."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from sovereign_ai.console import Console, Progress
from sovereign_ai.engines.lock import TORCH_PACKAGE, Lock, Package, Wheel
from sovereign_ai.errors import DigestMismatch, EngineInstallFailed
from sovereign_ai.store.pip import PipFailed, run_pip

BATCH_BYTES = 64 * 1024 * 1024
"""Bytes that one call of pip downloads: what an interruption costs at most, without a pip start per wheel."""

NOT_LOCKED = "not the file that the engine lock names"
CHECK_INDEX = "the package index serves another file under that name: check pip's settings"

UV = "uv==0.13.9"
"""Knows PyTorch's own index of CPU builds; asked only where pip's index has no CPU build of torch."""


def present_bytes(lock: Lock, python: str, folder: Path) -> int:
    """Bytes of the wheels that are in the folder already."""
    return sum(wheel.bytes for _, wheel in lock.wheels(python) if (folder / wheel.file).exists())


def download(lock: Lock, python: str, folder: Path, console: Console) -> list[Path]:
    """Bring every wheel of the lock into `folder`; what is there and right is not downloaded again.

    The wheel of torch is missing from the result where pip's index does not have it: see install_torch().

    Raises EngineInstallFailed with pip's last words, DigestMismatch, NoSpace.
    """
    missing = [pair for pair in lock.wheels(python) if not _is_right(folder / pair[1].file, pair[1])]
    total = lock.download_bytes(python)
    with console.progress(f"downloading {lock.title}", total=total) as progress:
        done = total - sum(wheel.bytes for _, wheel in missing)
        for batch in _batches(missing):
            _download_batch(batch, folder, progress, done)
            done += sum(wheel.bytes for _, wheel in batch)
            progress.update(done)
    return [file for _, wheel in lock.wheels(python) if (file := folder / wheel.file).exists()]


def _is_right(file: Path, wheel: Wheel) -> bool:
    if not file.exists():
        return False
    if file.stat().st_size == wheel.bytes and _sha256(file) == wheel.sha256:
        return True
    file.unlink()
    return False


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _batches(pairs: Sequence[tuple[Package, Wheel]]) -> Iterator[list[tuple[Package, Wheel]]]:
    """Groups of about BATCH_BYTES; torch alone, because it may need another index."""
    batch: list[tuple[Package, Wheel]] = []
    for package, wheel in pairs:
        if package.name == TORCH_PACKAGE:
            yield [(package, wheel)]
            continue
        batch.append((package, wheel))
        if sum(member.bytes for _, member in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _download_batch(
    batch: Sequence[tuple[Package, Wheel]], folder: Path, progress: Progress, already: int
) -> None:
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{p.requirement} --hash=sha256:{w.sha256}\n" for p, w in batch))
    finished = 0
    lines: list[str] = []

    def on_bytes(done: int, total: int) -> None:
        nonlocal finished
        progress.update(already + finished + done)
        finished += total if done == total else 0

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith("Collecting "):
            progress.update(already + finished, note=line.split()[1].partition("==")[0])

    arguments = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    arguments += ["--progress-bar", "raw", "-d", str(folder), "-r", str(pins)]
    try:
        run_pip(arguments, folder, on_bytes=on_bytes, on_line=on_line)
    except PipFailed as error:
        if _torch_is_elsewhere(batch, error):
            return
        if "DO NOT MATCH THE HASHES" in error.said:
            differing = [line.split()[0] for line in lines if " from " in line and line.endswith(":")]
            raise DigestMismatch(f"{', '.join(differing)}: {NOT_LOCKED}", CHECK_INDEX) from error
        raise EngineInstallFailed(f"downloading the engine: {error.said}", error.advice) from error
    for _, wheel in batch:
        if not _is_right(folder / wheel.file, wheel):
            raise DigestMismatch(f"{wheel.file}: {NOT_LOCKED}", CHECK_INDEX)


def _torch_is_elsewhere(batch: Sequence[tuple[Package, Wheel]], error: PipFailed) -> bool:
    """The CPU build of torch is not on every index; the install step has another way to it."""
    return batch[0][0].name == TORCH_PACKAGE and "No matching distribution" in error.said


def install_torch(torch: Package, wheel: Wheel | None, folder: Path, python: Path, console: Console) -> None:
    """Install torch's CPU build from PyTorch's own index, for machines whose pip index does not have it.

    uv knows where that index is. The digest is checked where the lock knows it.
    """
    if wheel is None:
        console.note(
            f"{torch.requirement}: locked by version only for this Python, its digest is not checked"
        )
    pins = folder / "torch.txt"
    pins.write_text(torch.requirement + (f" --hash=sha256:{wheel.sha256}" if wheel else "") + "\n")
    try:
        run_pip(["install", "-q", "--target", str(folder / "uv"), UV], folder)
    except PipFailed as error:
        raise EngineInstallFailed(f"installing {UV}: {error.said}", error.advice) from error
    command = [str(folder / "uv" / "bin" / "uv"), "pip", "install", "--no-deps", "--no-cache"]
    command += ["--torch-backend", "cpu", "--python", str(python), "-r", str(pins)]
    command += ["--require-hashes"] if wheel else []
    with console.progress(f"installing {torch.requirement} from PyTorch's index", unit="s"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise EngineInstallFailed(
            f"{torch.requirement} is neither on pip's index nor to be had from PyTorch's: {said[-1]}",
            "give pip an index that has PyTorch's CPU builds (pip config set global.extra-index-url …)",
        )
