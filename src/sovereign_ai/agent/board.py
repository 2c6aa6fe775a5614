"""What the agent shows of itself: /metrics and /healthz. Every name of its metrics is declared here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.spec import Device, Node, Pcie

THROTTLING = {
    0x1: "idle",
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
}
"""nvmlClocksEventReason bits (nvml.h): why the clocks are not higher."""

HEALTHY_ROUNDS, HEALTHY_MIN_S = 4, 60.0
"""How many intervals may pass since the last round, and how many seconds at least: a call to a driver that
hangs does not come back, and only an end of the process helps."""


class Snapshot(NamedTuple):
    """One round. `tokens`: what the node should say; `told`: whether the cluster says so."""

    node: Node
    states: tuple[CardState, ...]
    tokens: Mapping[str, str]
    moment: float
    told: bool


class _Gauge(NamedTuple):
    name: str
    help: str
    value: Callable[[Device, CardState], float | None]


def _link(device: Device) -> Pcie:
    """All 0 where the driver does not tell."""
    return device.pcie or Pcie(generation=0, generation_max=0, width=0, width_max=0)


_PER_DEVICE = (
    _Gauge("memory_bytes", "Memory in all", lambda one, _: one.memory_bytes),
    _Gauge(
        "memory_used_bytes",
        "Memory that processes and the driver hold",
        lambda one, _: one.memory_bytes - one.memory_free_bytes,
    ),
    _Gauge("utilization_ratio", "Part of the last second in which a kernel ran", lambda _, now: now.busy),
    _Gauge("temperature_celsius", "Temperature of the chip", lambda _, now: now.temperature_c),
    _Gauge("power_watts", "Power that it draws", lambda _, now: now.power_w),
    _Gauge("power_limit_watts", "Power that it may draw", lambda one, _: one.power_limit_w),
    _Gauge("pcie_width", "PCIe lanes now", lambda one, _: _link(one).width or None),
    _Gauge("pcie_width_max", "PCIe lanes at most", lambda one, _: _link(one).width_max or None),
    _Gauge("pcie_generation", "PCIe generation now", lambda one, _: _link(one).generation or None),
    _Gauge("pcie_generation_max", "Highest generation", lambda one, _: _link(one).generation_max or None),
)


def families(snapshot: Snapshot) -> Iterator[GaugeMetricFamily]:
    """All that is known of the devices. What a card does not tell has no sample; one that does not answer
    has only its fault and token."""
    node, states = snapshot.node, {state.id: state for state in snapshot.states}
    answering = [one for one in node.devices if one.id in states or not one.fault]
    for gauge in _PER_DEVICE:
        family = _family(gauge.name, gauge.help, ("node", "device"))
        for device in answering:
            value = gauge.value(device, states.get(device.id, CardState(id=device.id)))
            if value is not None:
                family.add_metric([node.name, device.id], value)
        yield family
    yield _faults(node)
    yield _names(node)
    yield _throttling(node.name, snapshot.states)
    yield _tokens(node.name, snapshot.tokens)


def _faults(node: Node) -> GaugeMetricFamily:
    family = _family("fault", "1: it is lost or at fault", ("node", "device"))
    for device in node.devices:
        family.add_metric([node.name, device.id], float(bool(device.fault)))
    return family


def _tokens(node: str, tokens: Mapping[str, str]) -> GaugeMetricFamily:
    family = _family("token", "What the node offers of the card to pods: 1 or 0", ("node", "device"))
    for name, value in sorted(tokens.items()):
        family.add_metric([node, name.partition("/")[2]], float(value))
    return family


def _family(name: str, text: str, labels: Iterable[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sovereign_device_{name}", text, labels=list(labels))


def _names(node: Node) -> GaugeMetricFamily:
    family = _family("info", "1, with the device's name", ("node", "device", "name", "driver"))
    for device in node.devices:
        family.add_metric([node.name, device.id, device.name, node.driver_version or ""], 1.0)
    return family


def _throttling(node: str, states: Iterable[CardState]) -> GaugeMetricFamily:
    family = _family("clock_limit", "1: why its clocks are not higher", ("node", "device", "reason"))
    for state in states:
        if state.clock_reasons is None:
            continue
        for bit, reason in THROTTLING.items():
            family.add_metric([node, state.id, reason], float(bool(state.clock_reasons & bit)))
    return family


class Board(Collector):
    """The last round, and counts of all; written by the rounds, read by the server's threads."""

    def __init__(self, interval_s: float, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._patience_s = max(HEALTHY_MIN_S, HEALTHY_ROUNDS * interval_s)
        self._snapshot: Snapshot | None = None
        self._alive = monotonic()
        self._registry = registry = CollectorRegistry()
        self._rounds = Counter("sovereign_agent_rounds_total", "Measurements", registry=registry)
        self._measured = Gauge(
            "sovereign_agent_measured_timestamp_seconds", "Last measurement", registry=registry
        )
        self._published = Gauge(
            "sovereign_agent_published_timestamp_seconds",
            "When the cluster was last known to say what was measured",
            registry=registry,
        )
        self._up = Gauge("sovereign_agent_api_up", "0 while the API server cannot be told", registry=registry)
        self._failures = Counter(
            "sovereign_agent_api_failures_total", "Requests that the API server did not do", registry=registry
        )
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return families(self._snapshot) if self._snapshot else ()

    def show(self, snapshot: Snapshot) -> None:
        """A round is over."""
        self._snapshot, self._alive = snapshot, self._monotonic()
        self._rounds.inc()
        self._measured.set(snapshot.moment)
        self._up.set(snapshot.told)

    def published(self, moment: float) -> None:
        self._published.set(moment)

    def failed(self) -> None:
        self._failures.inc()

    def healthy(self) -> bool:
        """Whether rounds still end. An API server that is away is no fault of this process."""
        return self._monotonic() - self._alive <= self._patience_s

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
