from __future__ import annotations

import pytest

from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.speed import constants_for, known_constants

parse = VllmVersion.parse


def test_every_entry_says_what_it_was_fitted_on() -> None:
    for entry in known_constants():
        assert entry.source, entry.engine
        assert min(entry.layer_s, entry.compute, *entry.read.values()) > 0


def test_every_engine_of_gpus_knows_all_kinds_of_memory_and_widths() -> None:
    keys = {f"{kind}-{width}" for kind in ("gddr", "hbm") for width in (16, 8, 4)}
    for entry in known_constants():
        expected = {"cpu-16", "cpu-8", "cpu-4"} if entry.engine == "vllm-cpu" else keys
        assert set(entry.read) == expected, entry.engine


def test_reading_takes_no_less_than_the_peak_allows() -> None:
    for entry in known_constants():
        assert all(factor >= 1 for factor in entry.read.values()), entry.engine


def test_older_versions_of_an_engine_come_first() -> None:
    for engine in {entry.engine for entry in known_constants()}:
        since = [entry.since for entry in known_constants() if entry.engine == engine]
        assert since[0] == ""
        assert sorted(since[1:], key=parse) == since[1:]


@pytest.mark.parametrize(
    ("version", "since"), [("0.5.5", ""), ("0.7.3", ""), ("0.8", "0.8"), ("0.24.0", "0.8")]
)
def test_constants_that_a_version_has_reached(version: str, since: str) -> None:
    assert constants_for("vllm", parse(version)).since == since


def test_without_a_version_the_newest() -> None:
    assert constants_for("vllm").since == "0.8"


def test_an_engine_that_nobody_measured_is_like_vllm() -> None:
    assert constants_for("mlx", parse("0.5.5")) == constants_for("vllm", parse("0.5.5"))
    assert constants_for("mlx") == constants_for("vllm")


def test_the_cpu_has_an_engine_of_its_own() -> None:
    assert constants_for("vllm-cpu", parse("0.32.0")).engine == "vllm-cpu"
