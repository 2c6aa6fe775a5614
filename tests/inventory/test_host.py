from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.host import (
    capped_memory,
    parse_cfs_quota,
    parse_cgroups,
    parse_cpu_max,
    parse_cpuinfo,
    parse_limit,
    parse_meminfo,
    parse_reclaimable,
    read_host,
    whole_cores,
)

CPUINFO = """\
processor\t: 0
model name\t: AMD Ryzen 9
flags\t\t: fpu sse4_2 avx2 fma f16c avx512f

processor\t: 1
model name\t: AMD Ryzen 9
flags\t\t: fpu sse4_2 avx2 fma f16c
"""
MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   15000000 kB\nHugePages_Total:       0\n"
)
MIB = 1 << 20


def test_cpuinfo_counts_only_what_every_core_has() -> None:
    assert parse_cpuinfo(CPUINFO) == ("AMD Ryzen 9", ("avx2", "fma", "f16c", "sse4_2"))


def test_cpuinfo_of_arm_and_of_nothing() -> None:
    assert parse_cpuinfo("Features\t: fp asimd bf16 sve\n") == ("", ("sve", "bf16", "asimd"))
    assert parse_cpuinfo("") == ("", ())


def test_meminfo() -> None:
    assert parse_meminfo(MEMINFO) == (16_000_000 * 1024, 15_000_000 * 1024)
    with pytest.raises(InventoryError, match="MemAvailable"):
        parse_meminfo("MemTotal: 1 kB\n")


def test_cgroups() -> None:
    text = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n"
    assert parse_cgroups(text) == {"memory": "/a/b", "cpu": "/c", "cpuacct": "/c", "": "/d"}


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000", 0.5), ("", None), ("1 0", None)],
)
def test_cpu_max(text: str, cores: float | None) -> None:
    assert parse_cpu_max(text) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1\n", "100000\n", None), ("200000\n", "100000\n", 2.0), ("", "", None)]
)
def test_cfs_quota(quota: str, period: str, cores: float | None) -> None:
    assert parse_cfs_quota(quota, period) == cores


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("9223372036854771712\n", None), ("1048576\n", MIB), ("", None)]
)
def test_limit(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_reclaimable() -> None:
    assert parse_reclaimable("anon 5\ninactive_file 7\n") == 7
    assert parse_reclaimable("inactive_file 7\ntotal_inactive_file 9\n") == 9
    assert parse_reclaimable("") == parse_reclaimable("inactive_file x\n") == 0


@pytest.mark.parametrize(
    ("affinity", "quotas", "cores"),
    [(8, [], 8), (8, [1.5], 1), (2, [6.0], 2), (4, [0.2], 1), (8, [6, 3.9], 3)],
)
def test_whole_cores(affinity: int, quotas: list[float], cores: int) -> None:
    assert whole_cores(affinity, quotas) == cores


def test_capped_memory() -> None:
    assert capped_memory(100, 90, []) == (100, 90)
    assert capped_memory(100, 90, [(60, 20)]) == (60, 40)
    assert capped_memory(100, 10, [(60, 20), (200, 0)]) == (60, 10)
    assert capped_memory(100, 90, [(60, 70)]) == (60, 0)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/cpuinfo": CPUINFO, "proc/meminfo": MEMINFO} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovereign_ai.inventory.host.os.sched_getaffinity", lambda _: set(range(8)))


def test_a_machine_without_limits(tmp_path: Path) -> None:
    found = read_host(machine(tmp_path, {}))
    assert (found.cpu_name, found.cores, found.memory_bytes) == ("AMD Ryzen 9", 8, 16_000_000 * 1024)
    assert found.memory_free_bytes == 15_000_000 * 1024
    assert found.name


def test_cgroup_v2_and_the_groups_above(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/app\n",
        "sys/fs/cgroup/user/app/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/user/app/memory.max": f"{4096 * MIB}\n",
        "sys/fs/cgroup/user/app/memory.current": f"{1024 * MIB}\n",
        "sys/fs/cgroup/user/app/memory.stat": f"inactive_file {256 * MIB}\n",
    }
    found = read_host(machine(tmp_path, files))
    assert (found.cores, found.memory_bytes, found.memory_free_bytes) == (3, 4096 * MIB, 3328 * MIB)


def test_the_whole_machine_has_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's pod has a fraction of a core and little memory: that says nothing of its node."""
    monkeypatch.setattr("sovereign_ai.inventory.host.os.cpu_count", lambda: 16)
    files = {
        "proc/self/cgroup": "0::/pod\n",
        "sys/fs/cgroup/pod/cpu.max": "10000 100000\n",
        "sys/fs/cgroup/pod/memory.max": f"{128 * MIB}\n",
    }
    found = read_host(machine(tmp_path, files), whole=True)
    assert (found.cores, found.memory_bytes) == (16, 16_000_000 * 1024)


def test_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2048 * MIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{100 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = read_host(machine(tmp_path, files))
    assert (found.cores, found.memory_bytes, found.memory_free_bytes) == (2, 2048 * MIB, 1948 * MIB)


@pytest.mark.parametrize("group", ["/docker/4f2a", "/../../init"])
def test_in_a_container_the_groups_path_is_not_mounted(tmp_path: Path, group: str) -> None:
    files = {"proc/self/cgroup": f"0::{group}\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}
    assert read_host(machine(tmp_path, files)).cores == 1


def test_no_proc(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"cannot read .*cpuinfo: No such file"):
        read_host(tmp_path)


def test_this_machine() -> None:
    found = read_host()
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert 1 <= found.cores <= 8
    assert found.cpu_name


@given(st.text())
def test_parsers_take_any_text(text: str) -> None:
    parse_cpuinfo(text)
    parse_cgroups(text)
    parse_cpu_max(text)
    parse_cfs_quota(text, text)
    parse_limit(text)
    parse_reclaimable(text)
    with pytest.raises(InventoryError):
        parse_meminfo(text)


def test_a_quota_with_a_separator_behind_it() -> None:
    """Python counts the unit separator as white space to strip, but not as white space around a number."""
    assert parse_cfs_quota("150000\x1f", "100000\x1f") == 1.5
