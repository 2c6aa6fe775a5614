"""The drive that a cluster's pods read their models from. Asked where Kubernetes is on the machine, or where
the drive's folder is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sovereign_ai.inventory.case import Case
from sovereign_ai.inventory.drive import SENTINEL
from sovereign_ai.inventory.findings import GIB, Check, Seen, fault, gib, ok, skipped, warning

LEAST_FREE_BYTES = 10 * GIB
"""A version of a model in 4 bits that is to come beside what is there."""


def _nothing(case: Case) -> str:
    """Why nothing is asked of the drive."""
    drive = case.condition.drive
    if not drive.there:
        return case.no_cluster and f"{case.no_cluster} and no {drive.path}"
    return "" if drive.mounts is not None else "the mount table cannot be read"


def _serious(case: Case) -> Callable[[str, str], Seen]:
    """Only pods depend on it: a machine that serves without Kubernetes is not at fault."""
    return warning if case.no_cluster else fault


def _mounted(case: Case) -> Iterator[Seen]:
    drive = case.condition.drive
    if reason := _nothing(case):
        yield skipped(reason)
    elif not drive.there:
        fix = f"mkdir -p {drive.path}, mount the drive there, name it in /etc/fstab; or set storage.path"
        yield fault(f"{drive.path} is not there: no pod would find its model", fix)
    elif drive.mount is None or drive.mount.point == "/":
        what = f"{drive.path} lies on the root file system: the drive is not mounted, or there is none"
        yield _serious(case)(what, f"mount the drive at {drive.path} and name it in /etc/fstab")
    else:
        yield ok(f"{drive.mount.source} ({drive.mount.kind}) at {drive.mount.point}")


def _absent(case: Case) -> str:
    return _nothing(case) or ("" if case.condition.drive.there else f"no {case.condition.drive.path}")


def _once(case: Case) -> Iterator[Seen]:
    drive = case.condition.drive
    if reason := _absent(case):
        yield skipped(reason)
        return
    mount = drive.mount
    loops = [one for one in drive.below if mount and one.device == mount.device]
    stacked = [one for one in drive.mounts or () if mount and one.point == mount.point]
    if loops:
        what = f"{loops[0].point} shows the drive inside itself: a pod sees it twice, a copy never ends"
        yield fault(what, f"umount {loops[0].point} and take its bind mount out of /etc/fstab")
    elif len(stacked) > 1 and mount and mount.point != "/":
        what = f"{len(stacked)} mounts are stacked on {mount.point}: the upper hides the lower"
        yield warning(what, f"umount {mount.point} until one is left; look for two lines in /etc/fstab")
    elif drive.below:
        what = f"{', '.join(one.point for one in drive.below)} is mounted inside: pods may write there"
        yield warning(what, "mount it elsewhere: read-only does not reach mounts below")
    else:
        yield ok("no other mount hides or repeats it")


def _sentinel(case: Case) -> Iterator[Seen]:
    drive = case.condition.drive
    if reason := _absent(case):
        yield skipped(reason)
    elif drive.sentinel:
        yield ok(f"{SENTINEL} is there")
    else:
        what = f"{drive.path}/{SENTINEL} is missing: pods would take this for an unmounted folder"
        yield _serious(case)(what, f"where the drive is mounted: touch {drive.path}/{SENTINEL}")


def _writable(case: Case) -> Iterator[Seen]:
    drive = case.condition.drive
    if reason := _absent(case):
        yield skipped(reason)
    elif drive.mount is not None and drive.mount.read_only:
        what = "mounted read-only: pods are served, `sovereign models pull` cannot write"
        yield warning(
            what, f"mount -o remount,rw {drive.mount.point}; if that fails, look for its errors in dmesg"
        )
    else:
        yield ok("mounted for reading and writing")


def _room(case: Case) -> Iterator[Seen]:
    free = case.condition.drive.free_bytes
    if reason := _absent(case):
        yield skipped(reason)
    elif free is None:
        yield skipped("cannot be read")
    elif free < LEAST_FREE_BYTES:
        yield warning(f"{gib(free)} free", "remove versions that nothing serves: sovereign models remove")
    else:
        yield ok(f"{gib(free)} free")


DRIVE_CHECKS = (
    Check("model drive", _mounted),
    Check("model drive mounted once", _once),
    Check("model drive's sentinel", _sentinel),
    Check("model drive's mode", _writable),
    Check("model drive's space", _room),
)
