from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sovereign_ai.inventory.runtime import (
    Cdi,
    ContainerdFile,
    Handler,
    Kubelet,
    Runtime,
    Toolkit,
    read_runtime,
    toolkit_version,
)

MAIN = """
version = 3
imports = ["/etc/containerd/conf.d/9*.toml", 7]
[plugins."io.containerd.cri.v1.runtime"]
enable_cdi = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true
"""
NVIDIA = """
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
"""
TOOLKIT = """
accept-nvidia-visible-devices-envvar-when-unprivileged = false
[nvidia-container-cli]
ldconfig = "@/sbin/ldconfig.real"
[features]
allow-ldconfig-from-container = true
"""
CDI = """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits: {}
- name: GPU-1
containerEdits:
  mounts:
  - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.560.35.03
  - hostPath: /usr/lib/x86_64-linux-gnu/libnvidia-egl-gbm.so.1.1.1
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(root: Path) -> Runtime:
    return read_runtime(root, lambda path: "1.18.0")


def test_everything_that_is_configured(tmp_path: Path) -> None:
    write(tmp_path, "etc/containerd/config.toml", MAIN)
    write(tmp_path, "etc/containerd/conf.d/99-nvidia.toml", NVIDIA)
    write(tmp_path, "etc/containerd/conf.d/10-other.toml", "")
    write(tmp_path, "var/lib/kubelet/config.yaml", "cgroupDriver: systemd\nfailSwapOn: false\n")
    write(tmp_path, "usr/bin/nvidia-ctk", "")
    write(tmp_path, "etc/nvidia-container-runtime/config.toml", TOOLKIT)
    write(tmp_path, "sbin/ldconfig.real", "")
    write(tmp_path, "run/cdi/nvidia.yaml", CDI)
    write(tmp_path, "run/cdi/other.json", '{"kind": "vendor.com/nic", "devices": []}')
    write(tmp_path, "etc/cdi/fabric.yaml", "kind: nvidia.com/gpu-fabric\n")
    (tmp_path / "var/run").symlink_to("../run")
    (tmp_path / "var/lib/containerd").mkdir()
    found = read(tmp_path)
    runc = Handler(name="runc", key_version=3, systemd_cgroup=True, binary="")
    binary = "/usr/bin/nvidia-container-runtime"
    nvidia = Handler(name="nvidia", key_version=2, systemd_cgroup=None, binary=binary)
    assert found.containerd == (
        ContainerdFile(path="/etc/containerd/config.toml", version=3, handlers=(runc,), cdi=True),
        ContainerdFile(path="/etc/containerd/conf.d/99-nvidia.toml", version=2, handlers=(nvidia,)),
    )
    assert found.stray == ("/etc/containerd/conf.d/10-other.toml",)
    assert found.kubelet == Kubelet(cgroup_driver="systemd", fail_swap_on=False)
    assert found.toolkit == Toolkit(
        path="/usr/bin/nvidia-ctk",
        version="1.18.0",
        config="/etc/nvidia-container-runtime/config.toml",
        by_variable=False,
        ldconfig="@/sbin/ldconfig.real",
        ldconfig_there=True,
        ldconfig_from_container=True,
    )
    assert found.cdi == (
        Cdi(path="/var/run/cdi/nvidia.yaml", devices=("0", "GPU-1"), drivers=("560.35.03",)),
    )
    assert (found.images_free_bytes or 0) > 0


def test_the_operators_own_configuration_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "etc/nvidia-container-runtime/config.toml", TOOLKIT)
    own = "usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml"
    write(tmp_path, own, "")
    assert read(tmp_path).toolkit == Toolkit(config=f"/{own}")


def test_a_program_that_cannot_be_asked(tmp_path: Path) -> None:
    assert toolkit_version(tmp_path / "none") == ""


def test_nothing_is_configured(tmp_path: Path) -> None:
    assert read(tmp_path) == Runtime()


@pytest.mark.parametrize(
    "text", ["version = [", 'version = "3"', "version = 3\nplugins = 7", "imports = 3", "imports = ['../x']"]
)
def test_a_configuration_of_any_shape_is_read_or_told_of(tmp_path: Path, text: str) -> None:
    write(tmp_path, "etc/containerd/config.toml", text)
    write(tmp_path, "var/lib/kubelet/config.yaml", "[1, 2")
    write(tmp_path, "etc/cdi/a.yaml", "kind: nvidia.com/gpu\ndevices: [")
    write(tmp_path, "etc/cdi/b.yaml", "- nvidia.com/gpu\n")
    write(tmp_path, "etc/nvidia-container-runtime/config.toml", "= 1")
    found = read(tmp_path)
    assert bool(found.containerd[0].problem) == (text == "version = [")
    assert found.kubelet is None
    assert [one.problem for one in found.cdi] == ["is not YAML"]
    assert found.toolkit.problem.startswith("is not TOML")


def test_the_folder_of_images_may_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "etc/containerd/config.toml", 'root = "/data"')
    (tmp_path / "var/lib/containerd").mkdir(parents=True)
    assert read(tmp_path).images_free_bytes is None
    (tmp_path / "data").mkdir()
    assert read(tmp_path).images_free_bytes is not None


def test_the_version_that_the_program_tells(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-ctk"
    program.write_text(f"#!{sys.executable}\nprint('NVIDIA Container Toolkit CLI version 1.17.8')\n")
    assert toolkit_version(program) == ""  # may not be run
    program.chmod(0o755)
    assert toolkit_version(program) == "1.17.8"
