from __future__ import annotations

import pytest

from sovereign_ai.catalog.releases import (
    DEFAULT_RELEASE,
    VllmVersion,
    release,
    releases,
    supported_arguments,
)
from sovereign_ai.errors import ConfigError

parse = VllmVersion.parse


def test_the_default_release() -> None:
    known = release(DEFAULT_RELEASE)
    assert (known.vllm, known.driver) == ("0.5.5", 560)
    assert known.image == "nvcr.io/nvidia/tritonserver:24.12-vllm-python-py3"


def test_releases_and_their_engines_only_go_up() -> None:
    names = [known.name for known in releases()]
    versions = [known.version for known in releases()]
    assert names == sorted(set(names))
    assert versions == sorted(versions)


@pytest.mark.parametrize(
    ("name", "nearest"), [("25.06", "25.05"), ("27.03", "26.07"), ("23.01", "24.10"), ("latest", "26.07")]
)
def test_an_unknown_release_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` is not known") as caught:
        release(name)
    assert nearest in caught.value.hint


def test_versions_compare_by_number() -> None:
    order = ["0.5.5", "0.6.3.post1", "0.6.x", "0.7", "0.8.1", "0.10.1.1", "0.10.2", "0.28", "0.28.1"]
    versions = [parse(text) for text in order]
    assert versions == sorted(versions)
    assert parse("0.28") == parse("0.28.0")
    assert parse("0.8.1 V0") == parse("0.8.1")


@pytest.mark.parametrize(
    ("text", "said", "v1"),
    [
        ("0.5.5", "0.5.5", False),
        ("v0.6.3.post1", "0.6.3", False),
        ("0.10.1.1", "0.10.1.1", True),
        ("0.7.x V0", "0.7.x V0", False),
        ("0.7.x V1", "0.7.x V1", True),
        ("0.8.4 V0", "0.8.4 V0", False),
        ("0.29dev", "0.29.0", True),
        ("0.6.6-0.7", "0.6.6", False),
        ("0.6.5 PR", "0.6.5", False),
        ("V1 2026-09", "0.24.0 V1", True),
        ("V0", "0.7.3 V0", False),
    ],
)
def test_what_people_write_for_a_version(text: str, said: str, v1: bool) -> None:
    version = parse(text)
    assert (str(version), version.v1) == (said, v1)


def test_a_text_without_a_version() -> None:
    with pytest.raises(ConfigError, match="`new` is not a version of vLLM"):
        parse("new")


@pytest.mark.parametrize(
    ("text", "card", "v1"),
    [
        ("0.10.1.1", "8.6", True),
        ("0.10.1.1", "7.5", False),
        ("0.11.0", "7.5", True),
        ("0.8.1 V1", "7.5", True),
        ("0.5.5", "9.0", False),
        ("0.10.1.1", None, False),
    ],
)
def test_older_cards_kept_the_older_engine(text: str, card: str | None, v1: bool) -> None:
    assert parse(text).runs_v1(card) is v1


@pytest.mark.parametrize(
    ("name", "card", "why"),
    [
        ("24.12", "8.6", ""),
        ("24.12", "6.1", ""),
        ("24.12", "5.2", "needs compute capability 6.0"),
        ("24.12", "12.0", "has no kernels for compute capability 12.0"),
        ("25.03", "7.0", "needs compute capability 7.5"),
        ("25.03", "12.0", ""),
        ("25.01", "12.0", ""),
    ],
)
def test_which_cards_a_release_runs_on(name: str, card: str, why: str) -> None:
    reason = release(name).refuses_card(card)
    assert (reason == "") == (why == "")
    assert why in reason


@pytest.mark.parametrize(
    ("driver", "datacenter", "good"),
    [
        ("560.35.03", False, True),
        ("575.51", False, True),
        ("550.90.07", False, False),
        ("550.90.07", True, False),
        ("535.183.01", False, False),
        ("535.183.01", True, True),
        (None, False, True),
        ("", False, True),
    ],
)
def test_which_drivers_a_release_runs_on(driver: str | None, datacenter: bool, good: bool) -> None:
    reason = release("24.12").refuses_driver(driver, datacenter=datacenter)
    assert (reason == "") is good
    assert good or "needs driver 560 or later" in reason


def test_a_release_whose_driver_nobody_looked_up_refuses_none() -> None:
    assert release("25.01").refuses_driver("470.57") == ""


def test_arguments_come_and_go() -> None:
    first, last = supported_arguments("0.5.5"), supported_arguments(parse("0.32.0"))
    assert {"dtype", "enable_chunked_prefill", "disable_custom_all_reduce", "swap_space"} <= first
    assert "kv_cache_memory_bytes" not in first | supported_arguments("0.10.1.1")
    assert "kv_cache_memory_bytes" in supported_arguments("0.10.2") & last
    assert "swap_space" in supported_arguments("0.17.1")
    assert "swap_space" not in supported_arguments("0.18") | last
