"""One measurement, on this machine and with a fake driver."""

from __future__ import annotations

import pytest

from sovereign_ai.agent.measuring import measure
from sovereign_ai.inventory import nvml
from tests.inventory.fakes import FakeNvml


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    monkeypatch.setattr(nvml, "pynvml", fake)


def test_the_node_has_its_name_in_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml(["A", "B"], answers={"power": 99_500, "temperature": 50}))
    reading = measure("worker-1")
    assert (reading.node.name, reading.trouble) == ("worker-1", "")
    assert [device.name for device in reading.node.devices] == ["A", "B"]
    assert [(state.power_w, state.temperature_c) for state in reading.states] == [(99.5, 50)] * 2


def test_a_driver_that_cannot_answer_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml(["A"], {"count": 999}))
    reading = measure("worker-1")
    assert [device.kind for device in reading.node.devices] == ["cpu"]
    assert reading.trouble == "the NVIDIA driver cannot count its GPUs: NVML says 999 (NVML code 999)"


def test_no_driver_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml([], {"init": nvml.LIBRARY_NOT_FOUND}))
    reading = measure("worker-1")
    assert ([device.kind for device in reading.node.devices], reading.states) == (["cpu"], ())
    assert reading.trouble == ""
