from __future__ import annotations

import pytest

from sovereign_ai.cli import doctoring
from sovereign_ai.inventory.doctor import Finding
from tests.cli.conftest import Here


def test_on_this_machine(here: Here) -> None:
    done = here("doctor", "--json")
    assert {"driver", "cards on the bus", "shared memory"} <= {one["check"] for one in done.data}
    assert done.code == (1 if any(one["state"] == "fault" for one in done.data) else 0)


def test_a_fault_is_shown_with_its_remedy(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        Finding(check="driver", state="fault", what="too old", fix="install a newer one"),
        Finding(check="disk for models", state="ok", what="50 GiB"),
    )
    monkeypatch.setattr(doctoring, "examine", lambda *_: found)
    done = here("doctor")
    assert done.code == 1
    assert done.out.splitlines() == [
        "fault    driver: too old",
        "         → install a newer one",
        "ok       disk for models: 50 GiB",
    ]
