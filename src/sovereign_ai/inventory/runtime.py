"""How containers come to the cards of this machine: kubelet, containerd, NVIDIA's container toolkit, CDI.
Reading only; doctor_runtime.py judges. `root` stands for `/` in tests; what is not there is None or empty."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sovereign_ai.inventory.system import text_of
from sovereign_ai.spec import Noun

CONFIGS = ("etc/containerd/config.toml", "var/lib/rancher/k3s/agent/etc/containerd/config.toml")
DROP_INS = "etc/containerd/conf.d"
DATA_FOLDERS = ("var/lib/rancher/k3s/agent/containerd", "var/lib/containerd")
KUBELET = "var/lib/kubelet/config.yaml"
TOOLKIT_CONFIGS = (
    "usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml",
    "etc/nvidia-container-runtime/config.toml",
)
"""NVIDIA's operator brings its own, which is the one that its runtime reads then."""
TOOLKIT_FOLDERS = ("usr/bin", "usr/local/bin", "usr/local/nvidia/toolkit")
CDI_FOLDERS = ("etc/cdi", "var/run/cdi", "run/cdi")
CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""The key below which a configuration of this version has its runtimes: containerd 1.x and 2.x."""
CDI_KIND = "nvidia.com/gpu"
LIBRARY = re.compile(r"\.so\.(\d{3,}\.\d+(?:\.\d+)?)\b")
"""The driver's libraries carry its version: libcuda.so.560.35.03."""
VERSION_LIMIT_S = 10


class Handler(Noun, frozen=True, kw_only=True):
    """A runtime of containerd's, by `name`; `version` of the configuration whose key it stands under."""

    name: str
    key_version: int
    systemd_cgroup: bool | None
    binary: str


class ContainerdFile(Noun, frozen=True, kw_only=True):
    """One file of containerd's configuration. `problem`: why it cannot be read."""

    path: str
    version: int = 1
    handlers: tuple[Handler, ...] = ()
    cdi: bool | None = None
    problem: str = ""


class Kubelet(Noun, frozen=True, kw_only=True):
    """With the defaults that the kubelet itself has."""

    cgroup_driver: str = "cgroupfs"
    fail_swap_on: bool = True
    swap_behavior: str = ""


class Toolkit(Noun, frozen=True, kw_only=True):
    """`path` of nvidia-ctk, `config` of its runtime. `ldconfig_there`: whether the host has what `ldconfig`
    names. `problem`: why its configuration cannot be read."""

    path: str = ""
    version: str = ""
    config: str = ""
    by_variable: bool = True
    ldconfig: str = ""
    ldconfig_there: bool | None = None
    ldconfig_from_container: bool = False
    problem: str = ""


class Cdi(Noun, frozen=True, kw_only=True):
    """A CDI specification of NVIDIA cards: its devices' names, and the driver versions that it mounts."""

    path: str
    devices: tuple[str, ...]
    drivers: tuple[str, ...]
    problem: str = ""


class Runtime(Noun, frozen=True, kw_only=True):
    """`stray`: files of conf.d that containerd's configuration does not import. Bytes of its folder."""

    containerd: tuple[ContainerdFile, ...] = ()
    stray: tuple[str, ...] = ()
    kubelet: Kubelet | None = None
    toolkit: Toolkit = Toolkit()
    cdi: tuple[Cdi, ...] = ()
    images_free_bytes: int | None = None
    images_total_bytes: int | None = None


def read_runtime(root: Path, version: Callable[[Path], str] = lambda path: toolkit_version(path)) -> Runtime:
    """`version` asks the program at a path for its version."""
    main = next((root / path for path in CONFIGS if (root / path).is_file()), None)
    settings = {} if main is None else _toml(main)[0]
    imported = list(_imported(root, settings)) if main else []
    drop_ins = sorted((root / DROP_INS).glob("*.toml"))
    free, total = _room(root, settings)
    return Runtime(
        containerd=tuple(_containerd(root, path) for path in ([main, *imported] if main else [])),
        stray=tuple(_shown(root, path) for path in drop_ins if path not in imported),
        kubelet=_kubelet(root / KUBELET),
        toolkit=_toolkit(root, version),
        cdi=tuple(_cdis(root)),
        images_free_bytes=free,
        images_total_bytes=total,
    )


def toolkit_version(path: Path) -> str:
    """The number that `nvidia-ctk --version` prints; empty where it does not run."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"version (\d+\.\d+\.\d+)", done.stdout)
    return found[1] if found else ""


def _toml(path: Path) -> tuple[dict[str, Any], str]:
    """Its content, or why there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), ""
    except OSError as error:
        return {}, error.strerror or "cannot be read"
    except ValueError as error:
        return {}, f"is not TOML: {error}"


def _at(tree: Any, *keys: str) -> Any:
    """The value at `keys`; None where one of them is missing, or not a table."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _shown(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


def _imported(root: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    patterns = settings.get("imports")
    for pattern in patterns if isinstance(patterns, list) else []:
        if isinstance(pattern, str) and pattern.startswith("/") and pattern.endswith(".toml"):
            yield from sorted(root.glob(pattern.lstrip("/")))


def _containerd(root: Path, path: Path) -> ContainerdFile:
    settings, problem = _toml(path)
    version = settings.get("version", 1)
    version = version if isinstance(version, int) else 1
    handlers = tuple(handler for key in CRI for handler in _handlers(settings, key))
    cdi = _at(settings, "plugins", CRI.get(version, ""), "enable_cdi")
    return ContainerdFile(
        path=_shown(root, path),
        version=version,
        handlers=handlers,
        cdi=cdi if isinstance(cdi, bool) else None,
        problem=problem,
    )


def _handlers(settings: Mapping[str, Any], key_version: int) -> Iterator[Handler]:
    runtimes = _at(settings, "plugins", CRI[key_version], "containerd", "runtimes")
    for name in runtimes if isinstance(runtimes, Mapping) else {}:
        systemd = _at(runtimes, name, "options", "SystemdCgroup")
        yield Handler(
            name=name,
            key_version=key_version,
            systemd_cgroup=systemd if isinstance(systemd, bool) else None,
            binary=str(_at(runtimes, name, "options", "BinaryName") or ""),
        )


def _kubelet(path: Path) -> Kubelet | None:
    text = text_of(path)
    if text is None:
        return None
    try:
        settings = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None
    usual = Kubelet()
    return Kubelet(
        cgroup_driver=str(_at(settings, "cgroupDriver") or usual.cgroup_driver),
        fail_swap_on=_at(settings, "failSwapOn") is not False,
        swap_behavior=str(_at(settings, "memorySwap", "swapBehavior") or ""),
    )


def _toolkit(root: Path, version: Callable[[Path], str]) -> Toolkit:
    program = next(
        (found for folder in TOOLKIT_FOLDERS if (found := root / folder / "nvidia-ctk").exists()), None
    )
    config = next((found for path in TOOLKIT_CONFIGS if (found := root / path).exists()), None)
    settings, problem = _toml(config) if config else ({}, "")
    ldconfig = str(_at(settings, "nvidia-container-cli", "ldconfig") or "")
    return Toolkit(
        path=_shown(root, program) if program else "",
        version=version(program) if program else "",
        config=_shown(root, config) if config else "",
        by_variable=settings.get("accept-nvidia-visible-devices-envvar-when-unprivileged") is not False,
        ldconfig=ldconfig,
        ldconfig_there=(root / ldconfig.lstrip("@/")).exists() if ldconfig else None,
        ldconfig_from_container=_at(settings, "features", "allow-ldconfig-from-container") is True,
        problem=problem,
    )


def _cdis(root: Path) -> Iterator[Cdi]:
    seen = set()
    for folder in CDI_FOLDERS:
        for path in sorted((root / folder).glob("*")):
            # /var/run is a link to /run
            if path.suffix in (".yaml", ".yml", ".json") and (real := path.resolve()) not in seen:
                seen.add(real)
                if (found := _cdi(root, path)) is not None:
                    yield found


def _cdi(root: Path, path: Path) -> Cdi | None:
    """None for what is of another kind."""
    text = text_of(path)
    if text is None:
        return Cdi(path=_shown(root, path), devices=(), drivers=(), problem="cannot be read")
    if CDI_KIND not in text:
        return None
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return Cdi(path=_shown(root, path), devices=(), drivers=(), problem="is not YAML")
    if _at(tree, "kind") != CDI_KIND:
        return None
    devices = _at(tree, "devices")
    names = [str(_at(one, "name")) for one in devices] if isinstance(devices, list) else []
    drivers = sorted(set(LIBRARY.findall(text)))
    return Cdi(path=_shown(root, path), devices=tuple(names), drivers=tuple(drivers))


def _room(root: Path, settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Free and all bytes of the file system that containerd keeps images on."""
    own = settings.get("root")
    folders = (
        [root / own.lstrip("/")] if isinstance(own, str) and own else [root / one for one in DATA_FOLDERS]
    )
    for folder in folders:
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        return usage.free, usage.total
    return None, None
