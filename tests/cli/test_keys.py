from __future__ import annotations

import pytest

from sovereign_ai.gateway.admission import digest
from sovereign_ai.gateway.ledger import Ledger
from tests.cli.conftest import Here


def test_a_key_with_limits(here: Here) -> None:
    made = here(
        "keys", "create", "batch jobs", "--json", "--scopes", "inference,metrics", "--models", "smol, minilm",
        "--priority", "batch", "--concurrency", "2", "--requests-per-minute", "60",
        "--tokens-per-minute", "5000", "--tokens-per-day", "100000", "--tokens-per-month", "2000000",
    ).data  # fmt: skip
    assert made["scopes"] == ["inference", "metrics"]
    assert made["models"] == ["smol", "minilm"]
    assert (made["priority"], made["concurrency"], made["tokens_per_month"]) == ("batch", 2, 2_000_000)
    listed = here("keys", "list").out
    assert "models smol minilm, batch, 2 concurrency, 60 requests per minute" in listed


def test_set_changes_what_is_named_and_nothing_else(here: Here) -> None:
    here("keys", "create", "laptop", "--tokens-per-day", "1000", "--models", "smol")
    changed = here("keys", "set", "laptop", "--concurrency", "3", "--json").data
    assert (changed["tokens_per_day"], changed["models"], changed["concurrency"]) == (1000, ["smol"], 3)
    changed = here("keys", "set", "laptop", "--tokens-per-day", "0", "--models", "all", "--json").data
    assert (changed["tokens_per_day"], changed["models"], changed["concurrency"]) == (None, [], 3)
    said = here("keys", "set", "laptop", "--concurrency", "0").out
    assert said.endswith("`laptop`: everything\n")
    assert here("keys", "set", "laptop", "--expires-days", "1", "--json").data["expires"] > 0


def test_rotate(here: Here) -> None:
    old = here("keys", "create", "laptop").out.strip()
    done = here("keys", "rotate", "laptop", "--grace", "3600")
    new = done.out.strip()
    assert new != old
    assert "the old one works until" in done.err
    with Ledger(here.paths.ledger) as ledger:
        assert ledger.lookup(digest(old)) == ledger.lookup(digest(new)) is not None
    again = here("keys", "rotate", "laptop", "--json").data
    assert again["key"].startswith("sk-")
    assert again["old_secret_until"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "x", "--scopes", "all"), "one of: inference, metrics, admin"),
        (("create", "x", "--priority", "urgent"), "one of: interactive, batch"),
        (("create", "x", "--concurrency", "-1"), "--concurrency must be between 0 and"),
        (("create", "x", "--tokens-per-day", "9999999999999999"), "--tokens-per-day must be between"),
        (("set", "x"), "nothing to change"),
        (("set", "nobody", "--concurrency", "1"), "no key `nobody`"),
        (("rotate", "nobody"), "no key `nobody`"),
        (("rotate", "x", "--grace", "-1"), "--grace must be between"),
    ],
)
def test_what_cannot_be(here: Here, arguments: tuple[str, ...], said: str) -> None:
    done = here("keys", *arguments)
    assert done.code == 64
    assert said in done.err
    assert done.out == ""
