from __future__ import annotations

from pathlib import Path

from sovereign_ai.inventory.drive import Drive, parse_mounts, read_drive

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 259:1 / /mnt/my\040drive rw,noatime shared:2 master:1 - xfs /dev/nvme0n1 ro,attr2
41 40 259:1 /models /mnt/my\040drive/again ro - xfs /dev/nvme0n1 rw
torn line
"""


def test_the_mount_table() -> None:
    root, drive, again = parse_mounts(TABLE)
    assert (root.point, root.device, root.read_only) == ("/", "8:1", False)
    assert (drive.point, drive.source, drive.kind, drive.read_only) == (
        "/mnt/my drive",
        "/dev/nvme0n1",
        "xfs",
        True,
    )
    assert (again.part, again.read_only) == ("/models", True)


def test_what_a_path_lies_on() -> None:
    mounts = tuple(parse_mounts(TABLE))
    drive = Drive(path="/mnt/my drive", mounts=mounts)
    assert drive.mount == mounts[1]
    assert drive.below == (mounts[2],)
    assert Drive(path="/mnt/my drive 2", mounts=mounts).mount == mounts[0]
    assert Drive(path="/x").mount is None


def test_the_folder_itself(tmp_path: Path) -> None:
    there = tmp_path / "mnt/models"
    there.mkdir(parents=True)
    found = read_drive(tmp_path, Path("/mnt/models"))
    assert (found.there, found.sentinel, found.mounts) == (True, False, None)
    assert found.free_bytes
    (there / ".sovereign-storage").touch()
    assert read_drive(tmp_path, Path("/mnt/models")).sentinel
    assert read_drive(tmp_path, Path("/mnt/none")) == Drive(path="/mnt/none")
