from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sovereign_ai.gateway.totals import Totals, families_of


class Process:
    """Some metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.asked = Counter("asked_total", "Asked", ("model",), registry=self.registry)
        self.running = Gauge("running", "Running", ("model",), registry=self.registry)
        self.up = Gauge("up", "Up", registry=self.registry)
        self.time = Histogram("time", "Time", buckets=(1, 2), registry=self.registry)


def told(totals: Totals) -> dict[str, float]:
    lines = totals.text().decode().splitlines()
    return {name: float(v) for name, _, v in (line.rpartition(" ") for line in lines if line[0] != "#")}


def two() -> tuple[Process, Process, Totals]:
    one, other, totals = Process(), Process(), Totals({"up"})
    for process, up in (one, 1), (other, 0):
        process.asked.labels("m").inc(2)
        process.running.labels("m").set(3)
        process.up.set(up)
        process.time.observe(1.5)
    other.asked.labels("n").inc()
    totals.put(1, families_of(one.registry))
    totals.put(2, families_of(other.registry))
    return one, other, totals


def test_sums_and_the_least() -> None:
    _, _, totals = two()
    found = told(totals)
    assert found['asked_total{model="m"}'] == 4
    assert found['asked_total{model="n"}'] == 1
    assert found['running{model="m"}'] == 6
    assert found["up"] == 0
    assert [found[f'time_bucket{{le="{edge}"}}'] for edge in ("1.0", "2.0", "+Inf")] == [0, 2, 2]
    assert (found["time_count"], found["time_sum"]) == (2, 3)


def test_a_later_word_replaces_the_earlier() -> None:
    one, _, totals = two()
    one.asked.labels("m").inc()
    totals.put(1, families_of(one.registry))
    assert told(totals)['asked_total{model="m"}'] == 5


def test_what_a_process_counted_stays_when_it_ends() -> None:
    _, _, totals = two()
    totals.retire(2)
    totals.retire(2)
    found = told(totals)
    assert found['asked_total{model="m"}'] == 4
    assert found["time_count"] == 2
    assert found['running{model="m"}'] == 3
    assert found["up"] == 1
    totals.put(2, families_of(Process().registry))
    assert told(totals)['asked_total{model="m"}'] == 4


def test_types_and_order_are_those_of_one_process() -> None:
    one = Process()
    one.asked.labels("m").inc()
    totals = Totals({"up"})
    totals.put(1, families_of(one.registry))
    from prometheus_client import generate_latest

    assert totals.text() == generate_latest(one.registry)


def test_the_beginning_is_the_first_ones() -> None:
    _, _, totals = two()
    created = min(one.samples[-1][2] for f in totals._sources.values() for one in f if one.name == "time")
    assert told(totals)["time_created"] == float(str(created))
