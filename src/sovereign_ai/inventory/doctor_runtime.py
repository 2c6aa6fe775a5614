"""How containers come to the cards: containerd, NVIDIA's toolkit, CDI, the room for images. Asked only where
Kubernetes is on the machine. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sovereign_ai.inventory.case import Case
from sovereign_ai.inventory.findings import Check, Seen, fault, gib, ok, skipped, warning
from sovereign_ai.inventory.runtime import CRI, Cdi, ContainerdFile, Handler

NVIDIA = "nvidia"
"""The handler that our RuntimeClass names, as NVIDIA's own tools call it."""
CONFIGURE = "nvidia-ctk runtime configure --runtime=containerd, then restart containerd"
GENERATE = "nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"
LEAST_TOOLKIT = (1, 17, 8)
"""Closes CVE-2025-23266 and CVE-2025-23267: a container that takes the host over."""
IMAGE_BYTES, PULL_BYTES = 20 * 10**9, 30 * 10**9
"""Triton's image with vLLM unpacked, and with its packed layers beside it while it is pulled."""
COLLECT_ABOVE = 0.85
"""Part of the file system from which the kubelet removes images (imageGCHighThresholdPercent)."""


def _files(case: Case) -> tuple[ContainerdFile, ...]:
    return case.condition.runtime.containerd


def _handlers(case: Case) -> list[tuple[ContainerdFile, Handler]]:
    """Of the name `nvidia`, under a key that the file's version reads."""
    return [
        (file, handler)
        for file in _files(case)
        for handler in file.handlers
        if handler.name == NVIDIA and handler.key_version == file.version
    ]


def _configuration(case: Case) -> Iterator[Seen]:
    files = _files(case)
    broken = [file for file in files if file.problem]
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif not files:
        yield skipped("no configuration of containerd is where it is looked for")
    elif broken:
        for file in broken:
            yield fault(
                f"{file.path}: {file.problem}", "correct it, or containerd config default > that file"
            )
    else:
        yield ok(f"version {files[0].version}, {len(files)} files")


def _imports(case: Case) -> Iterator[Seen]:
    stray = case.condition.runtime.stray
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif stray:
        what = f"containerd does not read {', '.join(stray)}: no file imports it"
        yield warning(what, 'add imports = ["/etc/containerd/conf.d/*.toml"] to /etc/containerd/config.toml')
    else:
        yield ok("every file of conf.d is imported")


def _nvidia_runtime(case: Case) -> Iterator[Seen]:
    misplaced = [
        (file, one)
        for file in _files(case)
        for one in file.handlers
        if one.name == NVIDIA and one.key_version != file.version
    ]
    if case.no_runtime:
        yield skipped(case.no_runtime)
    elif not _files(case):
        yield skipped("no configuration of containerd is where it is looked for")
    elif found := _handlers(case):
        yield ok(f"`{NVIDIA}` in {found[0][0].path}")
    elif misplaced:
        file, one = misplaced[0]
        what = (
            f"{file.path} is of version {file.version}, "
            f"and has `{NVIDIA}` under the key of version {one.key_version}"
        )
        fix = f'move it below plugins."{CRI.get(file.version, CRI[3])}", or {CONFIGURE}'
        yield fault(what, fix)
    else:
        yield fault(f"containerd knows no runtime `{NVIDIA}`: no sandbox can be made", CONFIGURE)


def _cgroup_driver(case: Case) -> Iterator[Seen]:
    kubelet = case.condition.runtime.kubelet
    handlers = {
        one.name: one for file in _files(case) for one in file.handlers if one.key_version == file.version
    }
    asked = [handlers[name] for name in ("runc", NVIDIA) if name in handlers]
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif kubelet is None or not asked:
        yield skipped("the kubelet's or containerd's configuration is not where it is looked for")
    else:
        systemd = kubelet.cgroup_driver == "systemd"
        wrong = [one.name for one in asked if bool(one.systemd_cgroup) != systemd]
        for name in wrong:
            what = f"the kubelet uses {kubelet.cgroup_driver}, containerd's runtime `{name}` does not"
            setting = f"SystemdCgroup = {str(systemd).lower()}"
            yield fault(what, f"{setting} in the options of runtimes.{name}, then restart containerd")
        if not wrong:
            yield ok(f"{kubelet.cgroup_driver}, for {' and '.join(one.name for one in asked)} too")


def _toolkit(case: Case) -> Iterator[Seen]:
    toolkit = case.condition.runtime.toolkit
    if case.no_containers:
        yield skipped(case.no_containers)
    elif not toolkit.path:
        yield fault("nvidia-ctk is not installed", "install nvidia-container-toolkit")
    elif not toolkit.version:
        yield warning(f"{toolkit.path} does not tell its version", "install nvidia-container-toolkit anew")
    elif tuple(map(int, toolkit.version.split("."))) < LEAST_TOOLKIT:
        least = ".".join(map(str, LEAST_TOOLKIT))
        what = f"{toolkit.version} lets a container take the machine over (CVE-2025-23266)"
        yield fault(what, f"install nvidia-container-toolkit {least} or later")
    else:
        yield ok(toolkit.version)


def _by_variable(case: Case) -> Iterator[Seen]:
    toolkit = case.condition.runtime.toolkit
    if case.no_runtime:
        yield skipped(case.no_runtime)
    elif toolkit.problem:
        yield fault(f"{toolkit.config}: {toolkit.problem}", "correct it")
    elif not toolkit.by_variable:
        what = "accept-nvidia-visible-devices-envvar-when-unprivileged is false: pods would see no card"
        fix = f"set it to true in {toolkit.config}, or use pinning: dra"
        yield fault(what, fix)
    else:
        yield ok("NVIDIA_VISIBLE_DEVICES of an unprivileged pod is followed")


def _ldconfig(case: Case) -> Iterator[Seen]:
    toolkit = case.condition.runtime.toolkit
    if case.no_containers:
        yield skipped(case.no_containers)
    elif not toolkit.ldconfig:
        yield skipped("the configuration of NVIDIA's runtime does not set it")
    elif not toolkit.ldconfig.startswith("@") and not toolkit.ldconfig_from_container:
        what = f"{toolkit.ldconfig} would be run from the container, which the toolkit refuses"
        yield fault(what, f'ldconfig = "@{toolkit.ldconfig}" in {toolkit.config}')
    elif not toolkit.ldconfig_there:
        what = f"{toolkit.ldconfig.lstrip('@')} is not on this machine"
        fix = 'ldconfig = "@/sbin/ldconfig.real" on Ubuntu, "@/sbin/ldconfig" elsewhere'
        yield fault(what, fix)
    else:
        yield ok(toolkit.ldconfig)


def _no_specification(case: Case) -> str:
    """Why the specification's content cannot be judged."""
    if case.no_containers:
        return case.no_containers
    if not case.condition.runtime.cdi:
        return "there is no specification"
    return ""


def _cdi(case: Case) -> Iterator[Seen]:
    found = case.condition.runtime.cdi
    if case.no_containers:
        yield skipped(case.no_containers)
    elif not found:
        yield warning("no specification of NVIDIA's cards in /etc/cdi or /var/run/cdi", GENERATE)
    else:
        for one in found:
            yield fault(f"{one.path} {one.problem}", GENERATE) if one.problem else ok(one.path)


def _cdi_cards(case: Case) -> Iterator[Seen]:
    if reason := _no_specification(case):
        yield skipped(reason)
        return
    names = {name for one in case.condition.runtime.cdi for name in one.devices}
    missing = [device for device in case.gpus if device.id not in names and not device.fault]
    by_index = [device for device in missing if str(device.index) in names]
    if missing and len(by_index) == len(missing):
        what = "it names cards by number alone, and numbers change when a card is lost"
        yield warning(what, GENERATE)
    elif missing:
        yield fault(f"it lacks {', '.join(device.id for device in missing)}", GENERATE)
    else:
        yield ok("it has every card by its UUID")


def _cdi_driver(case: Case) -> Iterator[Seen]:
    loaded = case.condition.inventory.nodes[0].driver_version
    if reason := _no_specification(case):
        yield skipped(reason)
        return
    stale: list[Cdi] = [
        one for one in case.condition.runtime.cdi if one.drivers and loaded not in one.drivers
    ]
    for one in stale:
        what = f"{one.path} mounts libraries of driver {', '.join(one.drivers)}, {loaded} is loaded"
        yield fault(what, f"systemctl restart nvidia-cdi-refresh, or {GENERATE}")
    if not stale:
        yield ok(f"made for driver {loaded}" if loaded else "no driver to compare with")


def _image_room(case: Case) -> Iterator[Seen]:
    free, total = case.condition.runtime.images_free_bytes, case.condition.runtime.images_total_bytes
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif free is None or not total:
        yield skipped("containerd's folder is not where it is looked for")
    elif free < PULL_BYTES:
        size = f"{IMAGE_BYTES / 1e9:.0f} GB"
        what = f"{gib(free)} free in containerd's folder: pulling an image of {size} takes more"
        yield warning(what, "crictl rmi --prune, or move containerd's `root` to a larger disk")
    elif 1 - (free - IMAGE_BYTES) / total > COLLECT_ABOVE:
        what = f"{gib(free)} free, but with the image more than {COLLECT_ABOVE:.0%} of the disk is in use"
        yield warning(what, "free some space: the kubelet removes images then, and pulls them again")
    else:
        yield ok(f"{gib(free)} free in containerd's folder")


RUNTIME_CHECKS = (
    Check("containerd's configuration", _configuration),
    Check("containerd's imports", _imports),
    Check("nvidia runtime", _nvidia_runtime),
    Check("cgroup driver", _cgroup_driver),
    Check("container toolkit", _toolkit),
    Check("cards by variable", _by_variable),
    Check("ldconfig", _ldconfig),
    Check("CDI specification", _cdi),
    Check("CDI cards", _cdi_cards),
    Check("CDI driver", _cdi_driver),
    Check("room for images", _image_room),
)
