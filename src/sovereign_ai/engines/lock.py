"""The lock: what an environment holds, to the byte. Pure.

`locks/<kind>.json` is made by `tools/lock_engine.py`. The environment's folder name carries the lock's
digest, so a new lock never reuses an old environment. `cpu` is the engine's; `quantize`, for making quantized
variants, holds only what differs from the environment behind it.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import msgspec

from sovereign_ai.errors import EngineUnavailable

TRITON_PACKAGE = "nvidia-pytriton"
"""Carries the tritonserver binary, the Python backend and its stubs; taken for its files alone."""

TORCH_PACKAGE = "torch"
"""Installed by a step of its own: its CPU build is not on every package index."""


class Wheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `bytes` as downloaded, `unpacked_bytes` as it lies on disk."""

    file: str
    sha256: str
    bytes: int
    unpacked_bytes: int
    pythons: tuple[str, ...]


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    wheels: tuple[Wheel, ...]

    def wheel_for(self, python: str) -> Wheel | None:
        return next((wheel for wheel in self.wheels if python in wheel.pythons), None)

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pythons` are the minor versions the lock was resolved for, best proved first. `behind` is the kind of
    environment whose packages are seen where this one has none of its own."""

    kind: str
    platform: str
    pythons: tuple[str, ...]
    packages: tuple[Package, ...]
    behind: str | None = None

    def has(self, name: str) -> bool:
        return any(package.name == name for package in self.packages)

    @property
    def title(self) -> str:
        """For texts that people read."""
        return "the quantizing library" if self.behind else "the engine"

    def wheels(self, python: str) -> tuple[tuple[Package, Wheel], ...]:
        """Every wheel whose digest is known, for one Python minor version such as `3.11`."""
        pairs = ((package, package.wheel_for(python)) for package in self.packages)
        return tuple((package, wheel) for package, wheel in pairs if wheel)

    def installs(self, python: str) -> tuple[Package, ...]:
        """What goes in for one Python: every package with a wheel for it, and torch where it is listed."""
        return tuple(p for p in self.packages if p.wheel_for(python) or p.name == TORCH_PACKAGE)

    def download_bytes(self, python: str) -> int:
        return sum(wheel.bytes for _, wheel in self.wheels(python))

    def unpacked_bytes(self, python: str) -> int:
        return sum(wheel.unpacked_bytes for _, wheel in self.wheels(python))

    def package(self, name: str) -> Package:
        return next(package for package in self.packages if package.name == name)


def load_lock(kind: str) -> tuple[Lock, str]:
    """The lock and its digest (12 hexadecimal digits), which changes with that of the lock behind it.

    Raises EngineUnavailable where the project has no environment of that kind yet.
    """
    file = resources.files("sovereign_ai.engines") / "locks" / f"{kind}.json"
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise EngineUnavailable(
            f"there is no `{kind}` engine environment in this version", "known: cpu, quantize"
        ) from error
    lock = msgspec.json.decode(content, type=Lock)
    if lock.behind:
        content += load_lock(lock.behind)[1].encode()
    return lock, hashlib.sha256(content).hexdigest()[:12]
