"""`sovereign` with a fake driver: `python -m tests.agent.fake_rig RIG.json agent …`.

RIG.json is read before each answer, so that a test can take a card away from a running process:
`{"names": […], "faults": [[call, index, code], …]}`; without it there is no driver. Like the other fakes of
the driver it proves what our code makes of answers, not what a driver answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sovereign_ai import cli
from sovereign_ai.inventory import nvml
from tests.inventory.fakes import FakeNvml


class RigNvml(FakeNvml):
    """The rig of the file, as it is when NVML is opened."""

    def __init__(self, file: Path) -> None:
        super().__init__([])
        self.file = file

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.file.exists():
            self.faults = {"init": nvml.LIBRARY_NOT_FOUND}
        else:
            rig: dict[str, Any] = json.loads(self.file.read_text())
            self.names = rig["names"]
            self.faults = {
                call if index is None else (call, index): code for call, index, code in rig.get("faults", [])
            }
            self.answers = {"temperature": 61, "power": 215_500, "clock reasons": 0x44}
        super().nvmlInit()


def main() -> None:
    file = Path(sys.argv.pop(1))
    vars(nvml)["pynvml"] = RigNvml(file)
    cli.main()


if __name__ == "__main__":
    main()
