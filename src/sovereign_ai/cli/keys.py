"""`sovereign keys …`: the gateway's API keys. What is changed holds at once, in a running gateway too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from cyclopts import App, Parameter

from sovereign_ai.cli.home import home_paths
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.admission import KeyRecord, Limits, Priority, Scope
from sovereign_ai.gateway.ledger import DEFAULT_GRACE_S, Grants, Ledger

app = App(name="keys", help="API keys of the gateway.")

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]

MAX_EXPIRES_DAYS = 36_500
"""A hundred years: beyond it, leave the option out."""
MAX_LIMIT = 10**15
"""Beyond it a limit is a slip of the finger, and 2^63 is not far."""
ALL = "all"
_DAY_S = 86400
_LIMITS = {name.replace("_", " "): name for name in Limits.__struct_fields__}

_W = TypeVar("_W")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a key may do. A dataclass, because the command line's library unfolds those into options."""

    scopes: str | None = None
    """inference, metrics, admin, with commas between (default: inference)."""
    models: str | None = None
    """Models that may be asked, with commas between, or `all` (default: all)."""
    priority: str | None = None
    """interactive or batch: who leaves the queue first (default: interactive)."""
    concurrency: int | None = None
    """Requests at the same time; 0: any number, as for all limits."""
    requests_per_minute: int | None = None
    """Requests in any 60 seconds."""
    tokens_per_minute: int | None = None
    """Tokens in any 60 seconds, of prompts and answers together."""
    tokens_per_day: int | None = None
    """Tokens in a day (UTC)."""
    tokens_per_month: int | None = None
    """Tokens in a month (UTC)."""

    def applied(self, grants: Grants) -> Grants:
        """`grants` with what is wished for changed. Raises UsageError for what cannot be."""
        changes: dict[str, Any] = {}
        if self.scopes is not None:
            changes["scopes"] = tuple(_one_of(word, get_args(Scope), "scope") for word in _words(self.scopes))
        if self.models is not None:
            changes["models"] = () if self.models.strip() == ALL else _words(self.models)
        if self.priority is not None:
            changes["priority"] = _one_of(self.priority, get_args(Priority), "priority")
        limits = msgspec.structs.replace(grants.limits, **self._limits())
        return msgspec.structs.replace(grants, **changes, limits=limits)

    def _limits(self) -> dict[str, int | None]:
        given = {name: getattr(self, name) for name in _LIMITS.values()}
        for name, value in given.items():
            if value is not None and not 0 <= value <= MAX_LIMIT:
                raise UsageError(f"--{name.replace('_', '-')} must be between 0 and {MAX_LIMIT:,}")
        return {name: value or None for name, value in given.items() if value is not None}


@app.command
def create(
    name: str, *, wishes: Wishes | None = None, expires_days: float | None = None, json: AsJson = False
) -> None:
    """Create an API key. The key is shown this once; only its digest is stored.

    Parameters
    ----------
    name
        What or whom the key is for.
    expires_days
        Days until it stops working (default: never).
    """
    grants = (wishes or Wishes()).applied(Grants())
    record, secret = _with(
        lambda ledger: ledger.create_key(name, expires_s=_seconds(expires_days), grants=grants)
    )
    _show_secret(Console(json=json), record, secret, "shown once, store it now")


@app.command(name="list")
def list_(*, json: AsJson = False) -> None:
    """List the API keys, never the secrets."""
    console = Console(json=json)
    rows = [_row(record) for record in _with(Ledger.list_keys)]
    if json:
        console.data(rows)
        return
    columns = ["id", "name", "key", "created", "expires", "revoked"]
    cells = [[*(_cell(row[c]) for c in columns), _may(row)] for row in rows]
    console.table("API keys", [*columns, "may"], cells)


@app.command(name="set")
def set_(
    key: str, *, wishes: Wishes | None = None, expires_days: float | None = None, json: AsJson = False
) -> None:
    """Change what a key may do, at once. What is not named stays.

    Parameters
    ----------
    key
        Its id, its name or its last characters.
    expires_days
        Days from now until it stops working.
    """
    if (wishes is None or wishes == Wishes()) and expires_days is None:
        raise UsageError("nothing to change", "name what to change: sovereign keys set --help")
    change = (wishes or Wishes()).applied
    record = _with(lambda ledger: ledger.set_key(key, change, expires_s=_seconds(expires_days)))
    console = Console(json=json)
    if json:
        console.data(_row(record))
    else:
        console.say(f"changed {record.id} `{record.name}`: {_may(_row(record))}")


@app.command
def rotate(key: str, *, grace: float = DEFAULT_GRACE_S, json: AsJson = False) -> None:
    """Give a key a new secret. The old one works a while longer, so that nobody is cut off.

    Parameters
    ----------
    key
        Its id, its name or its last characters.
    grace
        Seconds that the old secret still works.
    """
    if not 0 <= grace <= MAX_EXPIRES_DAYS * _DAY_S:
        raise UsageError(f"--grace must be between 0 and {MAX_EXPIRES_DAYS * _DAY_S:,} seconds")
    record, secret = _with(lambda ledger: ledger.rotate_key(key, grace_s=grace))
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.previous_until))
    _show_secret(Console(json=json), record, secret, f"shown once; the old one works until {until}")


@app.command
def revoke(key: str) -> None:
    """Revoke a key at once, in a running gateway too.

    Parameters
    ----------
    key
        Its id, its name or its last characters.
    """
    record = _with(lambda ledger: ledger.revoke_key(key))
    Console().say(f"revoked {record.id} `{record.name}`")


def _with(do: Callable[[Ledger], _W]) -> _W:
    with Ledger(home_paths().ledger) as ledger:
        return do(ledger)


def _show_secret(console: Console, record: KeyRecord, secret: str, note: str) -> None:
    if console.json:
        console.data({**_row(record), "key": secret})
    else:
        console.say(secret)
        console.note(f"key {record.id} `{record.name}`: {note}")


def _seconds(days: float | None) -> float | None:
    if days is not None and not 0 < days <= MAX_EXPIRES_DAYS:
        raise UsageError(f"--expires-days must be above 0 and at most {MAX_EXPIRES_DAYS}")
    return None if days is None else days * _DAY_S


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _one_of(word: str, known: Iterable[str], what: str) -> str:
    if word not in known:
        raise UsageError(f"`{word}` is not a {what}", f"one of: {', '.join(known)}")
    return word


def _row(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "key": record.prefix,
        "created": record.created,
        "expires": record.expires,
        "revoked": record.revoked,
        "old_secret_until": record.previous_until or None,
        "scopes": list(record.scopes),
        "models": list(record.models),
        "priority": record.priority,
        **{name: getattr(record.limits, name) for name in _LIMITS.values()},
    }


def _cell(value: object) -> str:
    if isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    return "–" if value is None else str(value)


def _may(row: dict[str, Any]) -> str:
    """In a few words: what differs from a key that may do everything."""
    words = [] if row["scopes"] == ["inference"] else [" ".join(row["scopes"])]
    words += [f"models {' '.join(row['models'])}"] if row["models"] else []
    words += [row["priority"]] if row["priority"] != "interactive" else []
    words += [f"{row[name]:,} {label}" for label, name in _LIMITS.items() if row[name] is not None]
    return ", ".join(words) or "everything"
