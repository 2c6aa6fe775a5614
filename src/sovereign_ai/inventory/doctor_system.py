"""The machine beside its cards: disks, memory, limits, clock, names, ports. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sovereign_ai.inventory.case import Case
from sovereign_ai.inventory.findings import GIB, Check, Seen, fault, gib, ok, skipped, warning

LEAST_FREE_BYTES = {"engine": 3 * GIB, "models": 2 * GIB}
"""An engine environment takes 2.1 GiB and its downloads beside; the smallest useful models some hundred
MiB."""
LEAST_SHM_BYTES = 1 * GIB
"""Triton's stubs and vLLM's workers hand tensors over there."""
LEAST_FILES = 4096
"""Open files: one a stream at the gateway, one to the engine."""
LEAST_CONTAINER_FILES = 65536
LEAST_MAPS = 65530
"""Memory maps of a process: the kernel's default. Engines map every file of weights and every library."""
MOST_CLOCK_ERROR_S = 1.0
"""Certificates and log lines of several nodes bear a second."""
SYSTEM_BYTES = 2 * GIB
"""Memory that kubelet, containerd and the system itself take beside the pods."""
KUBERNETES_PORTS = {6443: "the API server", 10250: "the kubelet"}


def _disk(what: str, case: Case) -> Iterator[Seen]:
    free = case.condition.free_bytes.get(what)
    yield _least(free, LEAST_FREE_BYTES[what], "free some space")


def _least(size: int | None, least: int, fix: str) -> Seen:
    if size is None:
        return skipped("cannot be read")
    if size < least:
        return fault(f"{size / GIB:.1f} GiB, {least / GIB:.1f} are needed", fix)
    return ok(gib(size))


def _shared_memory(case: Case) -> Iterator[Seen]:
    yield _least(case.condition.shm_bytes, LEAST_SHM_BYTES, "mount a larger /dev/shm")


def _open_files(case: Case) -> Iterator[Seen]:
    files = case.condition.open_files
    if files is not None and 0 <= files < LEAST_FILES:
        yield warning(f"{files} at most", f"ulimit -n {LEAST_FILES * 4}, or LimitNOFILE= of the service")
    else:
        yield ok("unlimited" if files is None or files < 0 else f"{files} at most")


def _swap(case: Case) -> Iterator[Seen]:
    size, kubelet = case.condition.swap_bytes, case.condition.runtime.kubelet
    if size is None:
        yield skipped("cannot be read")
    elif not size:
        yield ok("none")
    elif kubelet is not None and kubelet.fail_swap_on:
        what = f"{gib(size)} of swap, and the kubelet refuses to start beside it"
        yield fault(
            what, "swapoff -a and take it out of /etc/fstab, or failSwapOn: false in the kubelet's file"
        )
    elif kubelet is not None and kubelet.swap_behavior != "LimitedSwap":
        yield ok(f"{gib(size)} of swap, which no pod uses")
    else:
        fix = "fine here; Kubernetes wants it off or configured (failSwapOn)"
        yield Seen("ok", f"{gib(size)} of swap", fix)


def _zram(case: Case) -> Iterator[Seen]:
    """Swap in memory: what is planned as free would be taken by what is swapped out."""
    size = case.condition.system.zram_bytes
    if size is None:
        yield skipped("cannot be read")
    elif size:
        what = f"{gib(size)} of zram: swapping takes the memory that engines are to have"
        yield warning(what, "swapoff /dev/zram0 and remove zram-generator or zramswap")
    else:
        yield ok("none")


def _cgroups(case: Case) -> Iterator[Seen]:
    if case.condition.cgroup_v2 is None:
        yield skipped("cannot be read")
    elif case.condition.cgroup_v2:
        yield ok("v2")
    else:
        yield warning("cgroup v1", "Kubernetes from 1.35 on wants cgroup v2")


def _huge(case: Case) -> Iterator[Seen]:
    size = case.condition.system.huge_bytes
    if size is None:
        yield skipped("cannot be read")
    elif size:
        what = f"{gib(size)} are reserved for huge pages, which no engine uses"
        fix = "sysctl vm.nr_hugepages=0, and take it out of /etc/sysctl.d and of the kernel's command line"
        yield warning(what, fix)
    else:
        yield ok("none reserved")


def _maps(case: Case) -> Iterator[Seen]:
    count = case.condition.system.map_count
    if count is None:
        yield skipped("cannot be read")
    elif count < LEAST_MAPS:
        yield warning(f"vm.max_map_count is {count}", f"sysctl vm.max_map_count={LEAST_MAPS * 4}")
    else:
        yield ok(f"vm.max_map_count is {count}")


def _clock(case: Case) -> Iterator[Seen]:
    clock = case.condition.system.clock
    if clock is None:
        yield skipped("the kernel does not tell")
    elif not clock.synchronised:
        yield warning(
            "nothing keeps it right", "enable chrony or systemd-timesyncd: timedatectl set-ntp true"
        )
    elif clock.error_s > MOST_CLOCK_ERROR_S:
        what = f"it may be wrong by {clock.error_s:.1f} s"
        yield warning(
            what, "see whether the time server is reached: chronyc tracking, timedatectl timesync-status"
        )
    else:
        yield ok(f"right within {clock.error_s * 1000:.0f} ms")


def _names(case: Case) -> Iterator[Seen]:
    names = case.condition.system.names
    if names is None:
        yield skipped("/etc/hosts cannot be read")
        return
    for name in (name for name, known in names.items() if not known):
        address = "127.0.0.1" if name == "localhost" else "127.0.1.1"
        what = f"{name} is not known without asking a name server"
        yield warning(what, f"add `{address} {name}` to /etc/hosts, or myhostname to /etc/nsswitch.conf")
    if all(names.values()):
        yield ok(f"{', '.join(names)} resolve here")


def _gateway_port(case: Case) -> Iterator[Seen]:
    listening, port = case.condition.system.listening, case.demand.gateway_port
    if listening is None:
        yield skipped("open ports cannot be read")
    elif port in listening and case.demand.gateway_runs:
        yield ok(f"the running stack has {port}")
    elif port in listening:
        fix = f"see who: ss -ltnp 'sport = :{port}'; or another gateway.port"
        yield warning(f"somebody listens on {port}", fix)
    else:
        yield ok(f"{port} is free")


def _kubernetes_ports(case: Case) -> Iterator[Seen]:
    listening = case.condition.system.listening
    if listening is None:
        yield skipped("open ports cannot be read")
        return
    taken = [f"{port} ({who})" for port, who in KUBERNETES_PORTS.items() if port in listening]
    yield ok(f"somebody listens on {', '.join(taken)}" if taken else "6443 and 10250 are free")


def _forwarding(case: Case) -> Iterator[Seen]:
    forwards = case.condition.system.ip_forward
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif forwards is None:
        yield skipped("cannot be read")
    elif forwards:
        yield ok("on")
    else:
        yield fault(
            "off: pods reach nothing beyond their node", "sysctl net.ipv4.ip_forward=1, in /etc/sysctl.d too"
        )


def _bridges(case: Case) -> Iterator[Seen]:
    filtered = case.condition.system.bridge_filter
    if case.no_cluster:
        yield skipped(case.no_cluster)
    elif filtered:
        yield ok("packets of bridges are filtered")
    else:
        what = "br_netfilter is not loaded" if filtered is None else "packets of bridges pass the filter by"
        fix = (
            "modprobe br_netfilter (also in /etc/modules-load.d), sysctl net.bridge.bridge-nf-call-iptables=1"
        )
        yield warning(f"{what}: Services may not work between pods of one node", fix)


def _container_limits(case: Case) -> Iterator[Seen]:
    limits = case.condition.system.containerd
    if case.no_cluster:
        yield skipped(case.no_cluster)
        return
    if limits is None:
        yield skipped("neither containerd nor its unit is to be seen")
        return
    wrong = []
    if limits.memlock_bytes not in (None, -1):
        wrong.append("LimitMEMLOCK=infinity")
    if limits.files is not None and 0 <= limits.files < LEAST_CONTAINER_FILES:
        wrong.append("LimitNOFILE=1048576")
    if wrong:
        memlock, files = _amount(limits.memlock_bytes), _amount(limits.files)
        what = f"{limits.source}: {memlock} locked bytes, {files} open files"
        file = "/etc/systemd/system/containerd.service.d/limits.conf"
        fix = f"write {' and '.join(wrong)} below [Service] into {file}, restart it"
        yield warning(what, fix)
    else:
        yield ok(f"{limits.source}: as engines need them")


def _amount(number: int | None) -> str:
    return {None: "unknown", -1: "unlimited"}.get(number, f"{number}")


def _plan_memory(case: Case) -> Iterator[Seen]:
    need, there = case.demand.limits_bytes, case.condition.inventory.nodes[0].memory_bytes
    if need is None:
        yield skipped("no plan is given: --plan FILE")
    elif need + SYSTEM_BYTES > there:
        what = f"the limits of the plan's pods are {gib(need)} together, the machine has {gib(there)}"
        fix = "lower kubernetes.shared_memory_gib, plan fewer groups, or add memory: pods may be killed"
        yield fault(what, fix)
    else:
        yield ok(f"{gib(need)} for the plan's pods, of {gib(there)}")


def _plan_shared(case: Case) -> Iterator[Seen]:
    need, there = case.demand.shared_bytes, case.condition.inventory.nodes[0].memory_bytes
    if need is None:
        yield skipped("no plan is given: --plan FILE")
    elif need > there // 2:
        what = (
            f"shared memory of the plan's pods may grow to {gib(need)}, the machine has {gib(there)} in all"
        )
        yield warning(what, "lower kubernetes.shared_memory_gib")
    else:
        yield ok(f"at most {gib(need)} for the plan's pods")


SYSTEM_CHECKS = (
    Check("disk for engine", partial(_disk, "engine")),
    Check("disk for models", partial(_disk, "models")),
    Check("shared memory", _shared_memory),
    Check("memory for the plan", _plan_memory),
    Check("shared memory for the plan", _plan_shared),
    Check("open files", _open_files),
    Check("memory maps", _maps),
    Check("huge pages", _huge),
    Check("swap", _swap),
    Check("compressed swap", _zram),
    Check("cgroups", _cgroups),
    Check("clock", _clock),
    Check("own names", _names),
    Check("gateway's port", _gateway_port),
    Check("Kubernetes' ports", _kubernetes_ports),
    Check("forwarding", _forwarding),
    Check("bridge filter", _bridges),
    Check("limits of containers", _container_limits),
)
