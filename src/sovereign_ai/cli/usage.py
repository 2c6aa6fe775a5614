"""`sovereign usage`: what keys and models took, from the gateway's ledger."""

from __future__ import annotations

import csv as formats
import io
from datetime import date
from typing import Annotated, Any

from cyclopts import App, Parameter

from sovereign_ai.cli.home import home_paths
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.usage import By, Usage, report

app = App(name="usage", help="Show what was used: requests and tokens, by key, model or day.")

_COLUMNS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens", "failed")


@app.default
def usage(
    *,
    by: By = "key",
    since: str | None = None,
    csv: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="", help="One JSON document on standard output.")] = False,
) -> None:
    """Show what was used: requests and tokens, by key, model or day.

    Parameters
    ----------
    by
        key, model or day.
    since
        First day, YYYY-MM-DD (UTC; default: from the beginning).
    csv
        As CSV on standard output.
    """
    if csv and json:
        raise UsageError("--csv and --json are two formats", "choose one of them")
    _check_day(since)
    path = home_paths().ledger
    with Ledger(path) as ledger:
        names = {key.id: key.name for key in ledger.list_keys()}
    rows = [_row(by, one, names) for one in report(path, by, since)]
    console = Console(json=json)
    if json:
        console.data(rows)
    elif csv:
        console.say(_as_csv(by, rows))
    else:
        _show(console, by, rows)


def _check_day(text: str | None) -> None:
    """fromisoformat alone would also take 20260131 and 2026-W05."""
    if text is None:
        return
    try:
        known = date.fromisoformat(text).isoformat()
    except ValueError:
        known = ""
    if known != text:
        raise UsageError(f"--since {text} is not a day", "write YYYY-MM-DD")


def _row(by: By, one: Usage, names: dict[str, str]) -> dict[str, Any]:
    """Keys that were deleted are shown by their id alone."""
    row: dict[str, Any] = {by: one.name}
    if by == "key":
        row["name"] = names.get(one.name)
    return {**row, **{column: getattr(one, column) for column in _COLUMNS}}


def _heads(by: By) -> list[str]:
    return [by, "name", *_COLUMNS] if by == "key" else [by, *_COLUMNS]


def _as_csv(by: By, rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = formats.DictWriter(text, _heads(by), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _show(console: Console, by: By, rows: list[dict[str, Any]]) -> None:
    heads = _heads(by)
    total = {column: sum(row[column] for row in rows) for column in _COLUMNS}
    cells = [[_cell(row.get(head)) for head in heads] for row in [*rows, {by: "all", **total}]]
    console.table("Usage", [head.replace("_", " ") for head in heads], cells)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "–")
