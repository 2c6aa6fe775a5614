"""Rounds without a cluster and without time: what is asked when, and what the board shows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from sovereign_ai.agent.board import Board
from sovereign_ai.agent.knowledge import Change
from sovereign_ai.agent.measuring import Reading
from sovereign_ai.agent.nodeapi import NodeFacts, _shortened
from sovereign_ai.agent.rounds import PENDING_MAX, Agent
from sovereign_ai.agent.serving import _attempt
from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.inventory.published import INVENTORY, token
from sovereign_ai.spec import Pcie
from tests.agent.test_knowledge import A, B, sick
from tests.inventory.fakes import cpu, gpu, node


class FakeNode:
    """`NodeApi` in memory; `away` makes every call fail."""

    def __init__(self) -> None:
        self.annotations: dict[str, str] = {}
        self.capacity: dict[str, str] = {}
        self.told: list[Change] = []
        self.away = False
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise InventoryError("the API server did not answer", "look for it")

    def read(self) -> NodeFacts:
        self._call("read")
        return NodeFacts(dict(self.annotations), dict(self.capacity), dict(self.capacity))

    def annotate(self, annotations: Mapping[str, str]) -> None:
        self._call("annotate")
        self.annotations |= annotations

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        self._call("tokens")
        self.capacity |= tokens

    def tell(self, change: Change, moment: float, serial: int) -> None:
        self._call("tell")
        self.told.append(change)


class Bench:
    """An agent whose measurements and clock are the test's."""

    def __init__(self) -> None:
        self.now = 1_764_000_000.0
        self.reading = Reading(node(A, B))
        self.api, self.board = FakeNode(), Board(15.0, lambda: self.now)
        self.restart()

    def restart(self) -> None:
        self.agent = Agent(lambda: self.reading, self.api, self.board, lambda: self.now)

    def round(self, after_s: float = 15.0) -> None:
        self.now += after_s
        self.agent.round()

    def tokens(self) -> list[str | None]:
        return [self.api.capacity.get(token(card.id)) for card in (A, B)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_new_is_written_once(bench: Bench) -> None:
    bench.round()
    assert bench.api.calls == ["read", "tokens", "annotate"]
    bench.api.calls.clear()
    for _ in range(7):
        bench.round()
    assert bench.api.calls == ["read"] * 7
    bench.round()
    assert bench.api.calls == ["read"] * 8 + ["annotate"]


def test_tokens_come_before_all_else(bench: Bench) -> None:
    bench.round()
    bench.api.calls.clear()
    bench.reading = Reading(node(A, sick(B)))
    bench.round()
    assert bench.api.calls == ["read", "tokens", "annotate", "tell"]
    assert bench.tokens() == ["1", "0"]


def test_an_api_server_that_is_away_is_asked_less_and_less(bench: Bench) -> None:
    bench.api.away = True
    asked = []
    for second in range(200):
        bench.round(1.0)
        if bench.api.calls:
            asked.append(second)
            bench.api.calls.clear()
    assert asked == [0, 5, 15, 35, 75, 135, 195]
    assert b"sovereign_agent_api_failures_total 7.0" in bench.board.text()
    assert b"sovereign_agent_rounds_total 200.0" in bench.board.text()
    assert b"sovereign_agent_api_up 0.0" in bench.board.text()
    assert bench.agent.failure == "the API server did not answer"
    bench.api.away = False
    bench.round(60.0)
    assert (bench.tokens(), bench.agent.failure) == (["1", "1"], "")


def test_events_wait_and_the_oldest_give_way(bench: Bench) -> None:
    bench.api.away = True
    bench.round()
    for number in range(PENDING_MAX + 5):
        bench.reading = Reading(node(A, sick(B, f"fault {number}")))
        bench.round(0.1)
    bench.api.away = False
    bench.round(60.0)
    assert len(bench.api.told) == PENDING_MAX
    assert bench.api.told[-1].message.endswith(f"fault {PENDING_MAX + 4}")


def test_a_restarted_agent_knows_what_the_last_one_wrote(bench: Bench) -> None:
    bench.round()
    bench.restart()
    bench.reading = Reading(node(cpu()), (), "the NVIDIA driver does not answer")
    bench.round()
    assert bench.tokens() == ["0", "0"]
    assert [change.reason for change in bench.api.told] == ["GpuFault", "GpuFault"]
    bench.round()
    assert len(bench.api.told) == 2


def test_a_card_that_was_taken_out_stays_at_zero(bench: Bench) -> None:
    bench.round()
    bench.reading = Reading(node(A))
    bench.round()
    bench.restart()
    bench.round()
    bench.api.capacity.clear()
    bench.round()
    assert bench.tokens() == ["1", "0"]
    assert bench.api.annotations[INVENTORY].count('"id"') == 1


def test_a_driver_without_known_cards_is_told_once(bench: Bench) -> None:
    bench.reading = Reading(node(cpu()), (), "the NVIDIA driver does not answer")
    bench.round()
    bench.round()
    assert [change.reason for change in bench.api.told] == ["GpuDriverFault"]


def test_a_round_that_fails_ends_nothing_but_counts_as_none(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.round()
    bench.agent = Agent(lambda: 1 / 0, bench.api, bench.board, lambda: bench.now)  # type: ignore[arg-type,return-value]
    for _ in range(4):
        _attempt(bench.agent)
        bench.now += 15
        assert bench.board.healthy()
    bench.now += 1
    assert not bench.board.healthy()


def test_what_a_card_tells_is_shown_and_nothing_else(bench: Bench) -> None:
    pcie = Pcie(generation=3, generation_max=4, width=4, width_max=16)
    card = msgspec.structs.replace(gpu(0, "RTX 3080", 10240), pcie=pcie)
    state = CardState(id=card.id, clock_reasons=0x24, temperature_c=80, power_w=200.0, busy=0.5)
    bench.reading = Reading(node(card, sick(B)), (state,))
    bench.round()
    lines = bench.board.text().decode().splitlines()
    found = {text.rpartition(" ")[0]: float(text.rpartition(" ")[2]) for text in lines if text[0] != "#"}
    of = f'device="{card.id}",node="box"'
    shown = {
        f"memory_used_bytes{{{of}}}": 300 << 20,
        f"memory_bytes{{{of}}}": 10240 << 20,
        f"utilization_ratio{{{of}}}": 0.5,
        f"temperature_celsius{{{of}}}": 80,
        f"power_watts{{{of}}}": 200,
        f"pcie_width{{{of}}}": 4,
        f"pcie_generation_max{{{of}}}": 4,
        f'clock_limit{{{of},reason="power_cap"}}': 1,
        f'clock_limit{{{of},reason="idle"}}': 0,
        f"fault{{{of}}}": 0,
        f"token{{{of}}}": 1,
        f'info{{device="{card.id}",driver="",name="RTX 3080",node="box"}}': 1,
    }
    assert {name: found[f"sovereign_device_{name}"] for name in shown} == shown
    sick_lines = [text for text in lines if B.id in text and not text.startswith("#")]
    assert {text.partition("{")[0] for text in sick_lines} == {
        "sovereign_device_fault",
        "sovereign_device_info",
        "sovereign_device_token",
    }


def test_a_message_is_cut_between_letters() -> None:
    assert _shortened("é" * 600) == "é" * 500
