"""Metrics of several processes as those of one. Pure.

Counters and histograms are sums, over processes that have ended too, so that none ever goes back. Gauges are
sums over the living, except those of which the least counts: an endpoint is up where it is for everybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Sample = tuple[str, dict[str, str], float]
"""Name, labels and value."""

_GAUGE = "gauge"
_CREATED = "_created"


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with all its label values."""

    name: str
    documentation: str
    kind: str
    samples: list[Sample]


def families_of(registry: CollectorRegistry) -> list[Family]:
    """What the registry's metrics say now."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


class Totals(Collector):
    """`least`: names of the gauges that are not added up."""

    def __init__(self, least: Collection[str]) -> None:
        self._least = least
        self._sources: dict[int, list[Family]] = {}
        self._past: list[Family] = []

    def put(self, source: int, families: list[Family]) -> None:
        """What a process says now, in place of what it said before."""
        self._sources[source] = families

    def retire(self, source: int) -> None:
        """The process has ended: what it counted stays, what it held is gone."""
        last = self._sources.pop(source, [])
        self._past = self._merged([self._past, [one for one in last if one.kind != _GAUGE]])

    def collect(self) -> Iterator[Metric]:
        for family in self._merged([self._past, *self._sources.values()]):
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self)

    def _merged(self, sources: Iterable[list[Family]]) -> list[Family]:
        found: dict[str, list[Family]] = {}
        for families in sources:
            for family in families:
                found.setdefault(family.name, []).append(family)
        return [self._one(same) for same in found.values()]

    def _one(self, same: list[Family]) -> Family:
        values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        least = same[0].name in self._least
        for family in same:
            for name, labels, value in family.samples:
                place = name, tuple(labels.items())
                before = values.get(place)
                values[place] = value if before is None else _together(name, before, value, least=least)
        samples = [(name, dict(labels), value) for (name, labels), value in values.items()]
        return Family(same[0].name, same[0].documentation, same[0].kind, samples)


def _together(name: str, one: float, other: float, *, least: bool) -> float:
    return min(one, other) if least or name.endswith(_CREATED) else one + other
