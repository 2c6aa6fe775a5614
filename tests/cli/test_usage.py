from __future__ import annotations

import pytest

from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.usage import UsageWriter
from tests.cli.conftest import Here


@pytest.fixture
def used(here: Here) -> str:
    """A key that took 1,234 tokens, and one that was deleted since."""
    with Ledger(here.paths.ledger) as ledger:
        record, _ = ledger.create_key("laptop")
    writer = UsageWriter(here.paths.ledger, keep_days=10**6, clock=lambda: 1_769_860_800.0)
    for key, tokens in ((record.id, 1234), ("key-gone", 5)):
        writer.add(
            RequestRecord(
                method="POST", path="/", started=0.0, key=key, model="smol", answered=True, status=200,
                prompt_tokens=tokens,
            ),
            0.0,
        )  # fmt: skip
    writer.start()
    writer.close()
    return record.id


def test_usage_by_key(here: Here, used: str) -> None:
    rows = here("usage", "--json").data
    assert {(row["key"], row["name"], row["total_tokens"]) for row in rows} == {
        (used, "laptop", 1234),
        ("key-gone", None, 5),
    }
    shown = here("usage").out
    assert "1,234" in shown
    assert "1,239" in shown


def test_usage_by_model_and_day(here: Here, used: str) -> None:
    assert here("usage", "--by", "model", "--json").data[0]["model"] == "smol"
    assert here("usage", "--by", "day", "--csv").out == (
        "day,requests,prompt_tokens,completion_tokens,total_tokens,failed\n2026-01-31,2,1239,0,1239,0\n"
    )
    assert here("usage", "--since", "2026-02-01", "--json").data == []
    assert here("usage", "--csv").out.splitlines()[0].startswith("key,name,requests")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "yesterday"), "not a day"),
        (("--since", "20260131"), "not a day"),
        (("--csv", "--json"), "two formats"),
        (("--by", "week"), "week"),
    ],
)
def test_what_cannot_be(here: Here, arguments: tuple[str, ...], said: str) -> None:
    done = here("usage", *arguments)
    assert done.code == 64
    assert said in done.err
